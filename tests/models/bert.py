"""BERT (Devlin et al. 2018) by transformers: a classifier of texts, and one of words with tied embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from models import Example

WORDS, LENGTH = 11, 5


class Logits(nn.Module):
    """Of token ids and a mask, which is 0 behind the end of a text.

    transformers takes a mask of two axes apart by ``if mask.all()``, which no mapped function may ask; one of four
    axes, to be added to the scores, goes through as it is.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        away = mask.logical_not()[:, None, None, :] * -1e4
        return self.bert(input_ids=ids, attention_mask=away).logits


def build(task: str, attention: str) -> Example:
    """``classifier`` or ``words``, with ``eager`` or ``sdpa`` attention."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=LENGTH,
        num_labels=3,
        initializer_range=0.5,
        attn_implementation=attention,
    )
    kind = {"classifier": BertForSequenceClassification, "words": BertForMaskedLM}[task]
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 3:] = 0
    return Example(Logits(kind(config)).eval(), (torch.randint(WORDS, (3, LENGTH)), mask))
