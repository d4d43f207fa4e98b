"""GPT-2 (Radford et al. 2019) by transformers: a classifier of texts, and one of next words with tied embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from models import Example

WORDS, LENGTH = 11, 5


class Logits(nn.Module):
    """Of token ids, without padding: where a text ends, transformers asks the values of its tokens."""

    def __init__(self, gpt2: nn.Module) -> None:
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt2(input_ids=ids, use_cache=False).logits


def build(task: str, attention: str) -> Example:
    """``classifier`` or ``words``, with ``eager`` or ``sdpa`` attention."""
    config = GPT2Config(
        vocab_size=WORDS,
        n_embd=4,
        n_layer=2,
        n_head=2,
        n_inner=6,
        n_positions=LENGTH,
        num_labels=3,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    kind = {"classifier": GPT2ForSequenceClassification, "words": GPT2LMHeadModel}[task]
    return Example(Logits(kind(config)).eval(), (torch.randint(WORDS, (3, LENGTH)),))
