"""Elements taken from places and put into places (L3): linear in what is moved, the places are constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.linear import behind, jointly
from jacfn.second_order.rules.structure import chosen
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten

Places = Sequence[Tensor | None]


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(x: Jet, indices: Places) -> Jet:
    jump = _jump(indices)

    def take(t: Tensor, lead: int) -> Tensor:
        taken: Tensor = aten.index(t, [*[None] * lead, *indices])
        return taken.movedim(jump, 0) if lead and jump else taken

    return x.linear(take)


def _jump(indices: Places) -> int:
    """How many axes of the places stand in front of all others, which they do where they are not side by side."""
    used = [i for i, index in enumerate(indices) if index is not None]
    if used[-1] - used[0] + 1 == len(used):
        return 0
    return max(1 if _is_mask(index) else index.ndim for index in indices if index is not None)


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(x: Any, indices: Places, values: Any, accumulate: bool = False) -> Jet:
    jump, rank = _jump(indices), aten.index(plain(x), indices).ndim

    def put(a: Tensor, b: Tensor, lead: int) -> Tensor:
        b = b.reshape([*b.shape[:lead], *(1,) * (rank + lead - b.ndim), *b.shape[lead:]])
        if lead and jump:
            b = b.movedim(0, jump)
        written: Tensor = aten.index_put(a, [*[None] * lead, *indices], b, accumulate)
        return written

    return jointly(put, x, values)


@rule(aten.gather.default)
def _gather(x: Jet, dim: int, index: Tensor, **kwargs: Any) -> Any:
    return taken_along(x, index, dim) if x.value.ndim else NotImplemented


def taken_along(x: Jet, index: Tensor, dim: int) -> Jet:
    """``gather``."""
    axis = behind(dim, x.value.ndim)
    return x.linear(lambda t, lead: t.gather(axis, index.expand(*t.shape[:lead], *index.shape)))


@rule(aten.scatter.src)
def _scatter(x: Any, dim: int, index: Tensor, source: Any) -> Any:
    return _scattered(torch.scatter, x, dim, index, source)


@rule(aten.scatter_add.default)
def _scatter_add(x: Any, dim: int, index: Tensor, source: Any) -> Any:
    return _scattered(torch.scatter_add, x, dim, index, source)


def _used(source: Any, index: Tensor) -> Any:
    """What is behind the last of the places is not needed, and in the way of gradients."""
    if plain(source).shape == index.shape:
        return source
    used: Any = tuple(slice(length) for length in index.shape)
    return source.linear(lambda t, lead: t[..., *used]) if isinstance(source, Jet) else source[used]


def _scattered(operation: Callable[..., Tensor], x: Any, dim: int, index: Tensor, source: Any) -> Any:
    if not plain(x).ndim:
        return NotImplemented
    axis, source = behind(dim, plain(x).ndim), _used(source, index)
    return jointly(lambda a, b, lead: operation(a, axis, index.expand(*a.shape[:lead], *index.shape), b), x, source)


@rule(aten.scatter.value)
def _scatter_value(x: Jet, dim: int, index: Tensor, value: Any) -> Any:
    source = torch.full((), value, dtype=x.value.dtype, device=x.value.device)
    return _scatter(x, dim, index, source.expand(index.shape))


@rule(aten.scatter_reduce.two)
def _scatter_reduce(x: Any, dim: int, index: Tensor, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """Means divide by counts; the largest are their sources, whose ties share alike, as PyTorch has it."""
    if reduce == "prod" or not plain(x).ndim:
        return NotImplemented
    source = _used(source, index)
    target, into = plain(x), torch.zeros_like(plain(x))
    best = torch.ones_like(index, dtype=torch.bool)  # of the sources
    counted = (into.scatter_add(dim, index, best.to(into.dtype)) == 0) | include_self  # of the targets
    if reduce in ("amax", "amin"):
        value = torch.scatter_reduce(target, dim, index, plain(source), reduce, include_self=include_self)
        best = plain(source) == value.gather(dim, index)
        counted = counted & (target == value)
    total = _scatter_add(_kept(counted, x), dim, index, _kept(best, source))
    if reduce == "sum":
        return total
    count = into.scatter_add(dim, index, best.to(into.dtype)) + counted
    return total.linear(lambda t, lead: t / count)


def _kept(mask: Tensor, x: Any) -> Any:
    """Zero elsewhere."""
    zero = torch.zeros((), dtype=plain(x).dtype, device=mask.device)
    return chosen(mask, x, zero) if isinstance(x, Jet) else torch.where(mask, x, zero)


@rule(aten.index_reduce.default)
def _index_reduce(x: Any, dim: int, index: Tensor, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """``scatter_reduce`` of whole slices."""
    if not plain(x).ndim:
        return NotImplemented
    places = index.reshape([-1 if d == dim % plain(x).ndim else 1 for d in range(plain(x).ndim)])
    return _scatter_reduce(x, dim, places.expand(plain(source).shape), source, reduce, include_self=include_self)


@rule(aten.put.default)
def _put(x: Any, index: Tensor, source: Any, accumulate: bool = False) -> Any:
    """Into the elements in their order."""

    def put(a: Tensor, b: Tensor, lead: int) -> Tensor:
        flat = a.reshape(*a.shape[:lead], -1)
        into: Tensor = aten.index_put(
            flat, [*[None] * lead, index.flatten()], b.reshape(*b.shape[:lead], -1), accumulate
        )
        return into.reshape(a.shape)

    return jointly(put, x, source)


@rule(aten.masked_scatter.default)
def _masked_scatter(x: Any, mask: Tensor, source: Any) -> Any:
    """The sources in their order, to where the mask holds: each place knows how many are before it."""
    mask = mask.expand(plain(x).shape)
    places = (mask.flatten().cumsum(0) - 1).clamp(min=0).reshape(mask.shape)
    if isinstance(source, Jet):
        return chosen(mask, source.linear(lambda t, lead: t.reshape(*t.shape[:lead], -1)[..., places]), x)
    return chosen(mask, source.flatten()[places], x)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(-2, index.flatten()).reshape([*table.shape[:-2], *index.shape, table.shape[-1]])


@rule(aten.embedding.default)
def _embedding(
    table: Jet, index: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Jet:
    """Rows of a table; those of the padding have no derivatives."""
    rows = table.linear(lambda t, lead: _rows(t, index))
    if padding_idx < 0:
        return rows
    return chosen((index == padding_idx).unsqueeze(-1), rows.value, rows)


# --- calls of which the shape of the result depends on numbers ---------------------------------------


@rule(torch.repeat_interleave, Tensor.repeat_interleave)
def _repeat_interleave(input: Any, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """By numbers of its own for each."""
    if not isinstance(input, Jet) or not isinstance(repeats, Tensor):
        return NotImplemented
    shape = input.value.shape if dim is not None else (input.value.numel(),)
    axis = behind(dim or 0, len(shape))
    which = torch.arange(shape[axis], device=repeats.device).repeat_interleave(repeats, output_size=output_size)
    return input.linear(lambda t, lead: t.reshape([*t.shape[:lead], *shape]).index_select(axis, which))


@rule(torch.combinations)
def _combinations(input: Jet, r: int = 2, with_replacement: bool = False) -> Jet:
    places = torch.combinations(torch.arange(len(input.value), device=input.value.device), r, with_replacement)
    return input.linear(lambda t, lead: t[..., places])
