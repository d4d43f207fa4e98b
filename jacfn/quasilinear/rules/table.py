"""Rows of a parameter table, chosen by data (L2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn._errors import JacfnError
from jacfn.quasilinear.factors import Gather
from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._registry import Use, rule


@rule(
    F.embedding,
    cases=lambda rand: [
        call(rand.below(4, 3), rand(4, 2)),
        call(rand.below(4, 3, 2), rand(4, 2), padding_idx=1),
        call(rand.below(4, 5), rand(4, 2), padding_idx=-1),
        call(rand.below(4), rand(4, 2)),
    ],
)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> dict[str, Use]:
    """``W[input]``; the row ``padding_idx`` gets no derivative, as in PyTorch's reverse mode."""
    if max_norm is not None:
        raise JacfnError(
            "embedding with max_norm changes its weight in place at every call, so it is no function of it: "
            "renormalise the weight outside fn and drop max_norm"
        )
    if scale_grad_by_freq:
        raise JacfnError(
            "embedding with scale_grad_by_freq=True has gradients that are no derivatives: drop scale_grad_by_freq"
        )
    return {"weight": Use(Gather(weight.shape[0], padding_idx), input)}


@rule(
    torch.embedding,
    cases=lambda rand: [call(rand(4, 2), rand.below(4, 3)), call(rand(4, 2), rand.below(4, 2, 2), padding_idx=1)],
)
def raw_embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> dict[str, Use]:
    """The same, in the order of PyTorch's own function, where -1 stands for no padding."""
    if scale_grad_by_freq:
        return {}
    return {"weight": Use(Gather(weight.shape[0], None if padding_idx < 0 else padding_idx), indices)}


@rule(
    Tensor.__getitem__,
    cases=lambda rand: [
        call(rand(4, 2), rand.below(4, 3)),
        call(rand(4, 2, 2), rand.below(4, 2, 3) - 4),
        call(rand(4), rand.below(4, 1)),
    ],
)
def getitem(self: Tensor, index: Any) -> dict[str, Use]:
    """``W[index]`` with a tensor of integers."""
    if not isinstance(index, Tensor) or index.dtype in (torch.bool, torch.uint8):
        return {}
    return {"self": Use(Gather(self.shape[0]), index)}


@rule(torch.index_select, Tensor.index_select, cases=lambda rand: [call(rand(4, 2), 0, rand.below(4, 3))])
def index_select(input: Tensor, dim: int, index: Tensor) -> dict[str, Use]:
    """``W[index]`` along the first axis."""
    return {"input": Use(Gather(input.shape[0]), index)} if dim == 0 else {}
