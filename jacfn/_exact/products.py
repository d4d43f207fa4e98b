"""Products of runs and of groups of elements: their jvps divide by the elements, or are another operation's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacfn._exact.tables import ALWAYS, NESTED, in_place, replaces


@replaces(NESTED, torch.cumprod, Tensor.cumprod)
def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Its jvp is not differentiable at zeros."""
    x = input.to(dtype) if dtype is not None else input
    return running_products(x.movedim(dim, -1)).movedim(-1, dim) if x.ndim else x


@replaces(ALWAYS, torch.scatter_reduce, Tensor.scatter_reduce)
def _scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True, **kwargs: Any
) -> Tensor:
    """For products its jvp is wrong everywhere, and its backward has no batching rule."""
    if reduce != "prod" or not index.ndim:
        return torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self, **kwargs)
    order = torch.argsort(index, dim=dim, stable=True)
    target = index.gather(dim, order).movedim(dim, -1)  # groups side by side, the last one of each has its product
    products = running_products(src.gather(dim, order).movedim(dim, -1), target)
    last = target != torch.cat([target[..., 1:], torch.full_like(target[..., :1], -1)], -1)
    zeros = torch.zeros_like(input)
    whole = zeros.scatter_add(dim, target.movedim(-1, dim), torch.where(last, products, 0).movedim(-1, dim))
    met = zeros.scatter_add(dim, index, torch.ones_like(index, dtype=input.dtype)) > 0
    start = input if include_self else torch.where(met, 1, input)
    return start * torch.where(met, whole, 1)


ALWAYS[Tensor.scatter_reduce_] = in_place(_scatter_reduce)
NESTED[Tensor.cumprod_] = in_place(_cumprod)


def running_products(x: Tensor, groups: Tensor | None = None) -> Tensor:
    """Along the last axis, each within its group (equal neighbours): log2(n) steps, without a division.

    After the step of width w every element holds the product of the 2w elements that end there (Hillis and Steele,
    Data parallel algorithms, 1986).
    """
    width, length = 1, x.shape[-1]
    while width < length:
        before = x[..., :-width]
        if groups is not None:
            before = torch.where(groups[..., width:] == groups[..., :-width], before, 1)
        x = torch.cat([x[..., :width], x[..., width:] * before], -1)
        width *= 2
    return x
