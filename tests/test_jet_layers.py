"""Jets through whole layers: attention, recurrent and convolutional modules, reparametrised weights."""

from __future__ import annotations

import pytest
import torch
from jets import check
from torch import nn
from torch.nn import functional as F

from jacfn._exact import exact_kernels

TOKENS, CONTEXT = (2, 3, 4), (2, 2, 4)
HEADS = (2, 2, 3, 4)
MASK = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
FLOATING = torch.tensor([[0.0, -1, 2], [0.5, 0, 0], [-torch.inf, 1, 0]], dtype=torch.float64)
BAG = torch.tensor([0, 2, 1])
PADDED = torch.tensor([[False, False, True], [False, False, False]])


def attended(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def plainly(module, *inputs):
    return module(*inputs)


def first(module, *inputs):
    return module(*inputs)[0]


def itself(**options):
    return lambda module, x: module(x, x, x, **options)[0]


FUNCTIONS = {
    "attention": (attended(), HEADS, HEADS, HEADS),
    "attention with a mask": (attended(attn_mask=MASK), HEADS, HEADS, HEADS),
    "attention with a floating mask": (attended(attn_mask=FLOATING, scale=0.3), HEADS, HEADS, HEADS),
    "causal attention": (attended(is_causal=True), HEADS, HEADS, HEADS),
    "attention of more queries": (attended(), (2, 5, 4), (2, 3, 4), (2, 3, 2)),
    "attention of groups": (attended(enable_gqa=True), (2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2)),
}

MODULES = {
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), itself(), TOKENS),
    "MultiheadAttention without weights": (lambda: nn.MultiheadAttention(4, 2), itself(need_weights=False), TOKENS),
    "MultiheadAttention with masks": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        itself(key_padding_mask=PADDED, attn_mask=~MASK),
        TOKENS,
    ),
    "MultiheadAttention with biases": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True),
        itself(),
        TOKENS,
    ),
    "MultiheadAttention to a context": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda module, x, y: module(x, y, y)[0],
        TOKENS,
        CONTEXT,
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"),
        plainly,
        TOKENS,
    ),
    "TransformerEncoderLayer norm first": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, norm_first=True, activation=F.silu),
        plainly,
        TOKENS,
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, activation=F.gelu),
        plainly,
        TOKENS,
        CONTEXT,
    ),
    "LSTM": (lambda: nn.LSTM(4, 3), first, TOKENS),
    "LSTM of layers": (
        lambda: nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2),
        lambda module, x: module(x)[1][0],
        TOKENS,
    ),
    "GRU": (lambda: nn.GRU(4, 3, batch_first=True), first, TOKENS),
    "GRU with a state": (lambda: nn.GRU(4, 3), first, TOKENS, (1, 3, 3)),
    "RNN": (lambda: nn.RNN(4, 3), first, TOKENS),
    "LSTMCell": (lambda: nn.LSTMCell(4, 3), lambda module, x: torch.cat(module(x), -1), (2, 4)),
    "GRUCell": (lambda: nn.GRUCell(4, 3), plainly, (2, 4), (2, 3)),
    "RNNCell": (lambda: nn.RNNCell(4, 3), plainly, (2, 4)),
    "Bilinear": (lambda: nn.Bilinear(4, 3, 2), plainly, (2, 4), (2, 3)),
    "EmbeddingBag": (
        lambda: lambda w: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), w.sin(), mode="mean"),
        plainly,
        (4, 3),
    ),
    "EmbeddingBag with weights": (
        lambda: lambda w, p: F.embedding_bag(BAG, w, torch.tensor([0, 2]), mode="sum", per_sample_weights=p),
        plainly,
        (4, 3),
        (3,),
    ),
    "Conv1d circular": (lambda: nn.Conv1d(3, 4, 2, padding=1, padding_mode="circular"), plainly, TOKENS),
    "Conv2d reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), plainly, (1, 2, 3, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), plainly, (1, 2, 3, 2)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), plainly, (2, 4)),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), plainly, (2, 4)),
}

#: Of whose parameters.
PARAMETERS = {
    "LSTM": (lambda: nn.LSTM(4, 3), first, TOKENS),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), itself(), TOKENS),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 1, 2, activation=F.gelu), plainly, (2, 1, 4)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 2), dim=1), plainly, (2, 2, 3)),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), plainly, (2, 4)),
    "orthogonal by exp": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="matrix_exp"),
        plainly,
        (2, 3),
    ),
    "orthogonal by Cayley": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="cayley"),
        plainly,
        (2, 3),
    ),
    "Bilinear": (lambda: nn.Bilinear(4, 3, 2), plainly, (2, 4), (2, 3)),
}


def made_of_parts(function):
    def run(*inputs):
        with exact_kernels():
            return function(*inputs)

    return run


def random(shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("case", FUNCTIONS)
def test_attention(case):
    function, *shapes = FUNCTIONS[case]
    check(made_of_parts(function), *random(shapes))


def made(make):
    """In float64, ready for use."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module = make()
    finally:
        torch.set_default_dtype(default)
    return module.eval().requires_grad_(False) if isinstance(module, nn.Module) else module


@pytest.mark.parametrize("case", MODULES)
def test_module(case):
    make, call, *shapes = MODULES[case]
    module = made(make)
    check(made_of_parts(lambda *inputs: call(module, *inputs)), *random(shapes))


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(case):
    make, call, *shapes = PARAMETERS[case]
    module, inputs = made(make), random(shapes)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def function(*values):
        return call(Called(module, dict(zip(parameters, values, strict=True))), *inputs)

    check(made_of_parts(function), *parameters.values(), count=2)


class Called:
    """A module with parameters of its own."""

    def __init__(self, module, parameters):
        self.module, self.parameters = module, parameters

    def __call__(self, *inputs, **options):
        return torch.func.functional_call(self.module, self.parameters, inputs, options)
