"""Views, permutations, joins and choices: linear in what they move (L3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, constant
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.linear import behind, jointly
from jacfn.second_order.rules.table import CONSTANT, rule

aten = torch.ops.aten

CONSTANT.update(
    {
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.empty_like.default,
        aten.rand_like.default,
        aten.randn_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
        aten.detach.default,
        aten.bernoulli.p,
        aten.bernoulli.default,
    }
)


@rule(aten.view.default, aten._unsafe_view.default, aten.view_copy.default, aten.reshape.default)
def _view(x: Jet, size: Sequence[int]) -> Jet:
    """The elements stay in order, and so do their derivatives, however they lie in memory."""
    return x.linear(lambda t, lead: t.reshape([*t.shape[:lead], *size]))


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(x: Jet, dims: Sequence[int] | int | None = None) -> Jet:
    shape, rank = x.value.shape, x.value.ndim
    dims = range(-rank, 0) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [behind(d, rank) for d in dims if rank and shape[d] == 1]
    return x.linear(lambda t, lead: t.squeeze(axes)) if axes else x


@rule(aten.clone.default, aten.lift_fresh_copy.default, aten.alias.default)
def _same(x: Jet, **kwargs: Any) -> Jet:
    """Rules write into nothing, so a copy is not needed."""
    return x


@rule(aten.view.dtype)
def _view_as(x: Jet, dtype: torch.dtype) -> Any:
    return x if dtype == x.value.dtype else NotImplemented


@rule(aten._to_copy.default)
def _converted(x: Jet, *, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Jet:
    return x.linear(lambda t, lead: t.to(device=device or t.device, dtype=dtype or t.dtype))


@rule(aten.expand.default)
def _expand(x: Jet, sizes: Sequence[int], **kwargs: Any) -> Jet:
    return x.to_shape(x.value.expand(list(sizes)).shape)


@rule(aten.permute.default)
def _permute(x: Jet, dims: Sequence[int]) -> Jet:
    rank = x.value.ndim
    return x.linear(lambda t, lead: t.permute(*range(lead), *(d % rank + lead for d in dims)))


@rule(aten.t.default, aten.t_.default)
def _t(x: Jet) -> Jet:
    return x if x.value.ndim < 2 else x.linear(lambda t, lead: t.mT)


@rule(aten.cat.default)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    rank = max(plain(x).ndim for x in tensors)
    kept = [x for x in tensors if rank == 1 or tuple(plain(x).shape) != (0,)]  # which cat takes for nothing
    axis = behind(dim, rank)
    return jointly(lambda *parts: torch.cat(parts[:-1], axis), *kept)


@rule(aten.stack.default)
def _stack(tensors: Sequence[Any], dim: int = 0) -> Jet:
    axis = behind(dim, plain(tensors[0]).ndim + 1)
    return jointly(lambda *parts: torch.stack(parts[:-1], axis), *tensors)


@rule(aten.split.Tensor)
def _split(x: Jet, size: int, dim: int = 0) -> list[Jet]:
    length, axis = x.value.shape[dim], behind(dim, x.value.ndim)
    return [_narrowed(x, axis, low, min(size, length - low)) for low in range(0, max(length, 1), max(size, 1))]


@rule(aten.split_with_sizes.default)
def _split_with_sizes(x: Jet, sizes: Sequence[int], dim: int = 0) -> list[Jet]:
    axis, parts, low = behind(dim, x.value.ndim), [], 0
    for size in sizes:
        parts.append(_narrowed(x, axis, low, size))
        low += size
    return parts


def _narrowed(x: Jet, axis: int, low: int, size: int) -> Jet:
    return x.linear(lambda t, lead: t.narrow(axis, low, size))


@rule(aten.unbind.int)
def _unbind(x: Jet, dim: int = 0) -> list[Jet]:
    axis = behind(dim, x.value.ndim)
    return [_selected(x, axis, i) for i in range(x.value.shape[dim])]


def _selected(x: Jet, axis: int, i: int) -> Jet:
    return x.linear(lambda t, lead: t.select(axis, i))


@rule(aten.where.self)
def _where(condition: Any, x: Any, y: Any) -> Jet:
    return chosen(plain(condition), x, y)


def chosen(condition: Tensor, x: Any, y: Any) -> Jet:
    """``x`` where the condition holds, else ``y``; either may be a constant."""
    value = torch.where(condition, plain(x), plain(y))
    a, b = (t.to_shape(value.shape) if isinstance(t, Jet) else None for t in (x, y))
    pieces = [t for t in (a, b) if t is not None]

    def choose(p: Tensor | None, q: Tensor | None) -> Tensor:
        return torch.where(condition, 0.0 if p is None else p, 0.0 if q is None else q)

    second = None
    if any(t.second is not None for t in pieces):
        second = choose(*(None if t is None else t.second for t in (a, b)))
    return pieces[0].new(value, lambda: choose(*(None if t is None else t.first for t in (a, b))), second)


@rule(aten.copy.default)
def _copied(target: Any, source: Any, non_blocking: bool = False) -> Jet:
    """The second in the shape and the dtype of the first."""
    into = plain(target)
    if isinstance(source, Jet):
        return source.to_shape(into.shape).linear(lambda t, lead: t.to(into))
    return constant(source.to(into).expand(into.shape), target)


@rule(aten.slice_scatter.default)
def _slice_scatter(x: Any, source: Any, dim: int = 0, *place: Any) -> Jet:
    axis = behind(dim, plain(x).ndim)
    return jointly(lambda a, b, lead: aten.slice_scatter(a, b, axis, *place), x, source)


@rule(aten.select_scatter.default)
def _select_scatter(x: Any, source: Any, dim: int, index: int) -> Jet:
    """As a slice: PyTorch's own has wrong gradients where it is mapped."""
    axis, at = behind(dim, plain(x).ndim), index % plain(x).shape[dim]
    return jointly(lambda a, b, lead: aten.slice_scatter(a, b.unsqueeze(axis), axis, at, at + 1), x, source)


@rule(aten.diagonal_scatter.default)
def _diagonal_scatter(x: Any, source: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Jet:
    axes = [behind(d, plain(x).ndim) for d in (dim1, dim2)]
    return jointly(lambda a, b, lead: aten.diagonal_scatter(a, b, offset, *axes), x, source)
