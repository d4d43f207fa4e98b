"""Operations that are linear in their tensors, and the axes that they work along (L3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.table import RULES, rule

aten = torch.ops.aten


def behind(dim: int, rank: int) -> int:
    """An axis counted from behind, where derivatives have no further ones."""
    return dim if dim < 0 else dim - rank


def jointly(operation: Callable[..., Tensor], *arguments: Any) -> Jet:
    """``operation(*tensors, lead)`` is linear in all of its tensors together, jets or constants.

    It gets their derivatives with ``lead`` axes in front: of those that have none, zeros without memory of their own.
    """
    jets = [x for x in arguments if isinstance(x, Jet)]
    like, seconds = jets[0], [x.second for x in jets if x.second is not None]
    second = None
    if seconds:
        front = seconds[0].shape[: like.lead]
        second = operation(*(_second(x, front) for x in arguments), like.lead)

    def first() -> Tensor:
        return operation(*(x.first if isinstance(x, Jet) else zeros(x, (like.directions,)) for x in arguments), 1)

    return like.new(operation(*map(plain, arguments), 0), first, second)


def zeros(x: Tensor, front: Sequence[int]) -> Tensor:
    """In the shape of ``x``, with further axes in front."""
    return x.new_zeros(()).expand([*front, *x.shape])


def _second(x: Any, front: Sequence[int]) -> Tensor:
    second = x.second if isinstance(x, Jet) else None
    return zeros(plain(x), front) if second is None else second


def split_axis(t: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """``unflatten``."""
    result: Tensor = t.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return result


def by_rule(operation: Any, *args: Any) -> Any:
    """An operation of tensors, some of them jets or none: rules are made of rules by it."""
    return RULES[operation](*args) if any(isinstance(x, Jet) for x in args) else operation(*args)


def along(operation: Callable[..., Tensor], *positions: int, defaults: tuple[Any, ...] = (), more: int = 0) -> Any:
    """A rule for an operation whose arguments at these positions are axes, of a result with ``more`` axes or fewer."""

    def apply(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        rank = x.value.ndim + more
        if not rank:
            return x.mapped(lambda t: operation(t, *args, **kwargs))
        full = [*args, *defaults[len(args) :]]
        for i in positions:
            full[i] = behind(full[i], rank) if isinstance(full[i], int) else [behind(d, rank) for d in full[i]]
        return x.linear(lambda t, lead: operation(t, *full, **kwargs))

    return apply


def from_behind(operation: Callable[..., Tensor]) -> Callable[..., Jet]:
    """A rule for an operation along the last axes, whatever stands in front."""
    return lambda x, *args, **kwargs: x.linear(lambda t, lead: operation(t, *args, **kwargs))


_OF_AXES = {
    aten.transpose.int: (0, 1),
    aten.transpose_.default: (0, 1),  # of temporaries
    aten.select.int: (0,),
    aten.cumsum.default: (0,),
    aten.flip.default: (0,),
    aten.unfold.default: (0,),
    aten.index_select.default: (0,),
}
RULES.update({operation: along(operation, *positions) for operation, positions in _OF_AXES.items()})
RULES[aten.slice.Tensor] = along(aten.slice.Tensor, 0, defaults=(0,))
RULES[aten.diagonal.default] = along(aten.diagonal.default, 1, 2, defaults=(0, 0, 1))
RULES[aten.diagonal_copy.default] = RULES[aten.diagonal.default]
RULES[aten.diag_embed.default] = along(aten.diag_embed.default, 1, 2, defaults=(0, -2, -1), more=1)
RULES[aten.unsqueeze.default] = along(aten.unsqueeze.default, 0, more=1)

_FROM_BEHIND = (
    aten.neg.default,
    aten.tril.default,
    aten.triu.default,
    aten.view_as_real.default,
)
RULES.update({operation: from_behind(operation) for operation in _FROM_BEHIND})


@rule(*(getattr(aten, name).default for name in ("_conj", "_conj_physical")))
def _conj(x: Jet) -> Jet:
    """At once, for view_as_real refuses conjugates that are put off."""
    return x.linear(lambda t, lead: t.conj().resolve_conj())


def _fourier(operation: Callable[..., Tensor]) -> Callable[..., Jet]:
    """These know no axes from behind."""

    def apply(x: Jet, dim: Sequence[int], *args: Any) -> Jet:
        rank = x.value.ndim
        return x.linear(lambda t, lead: operation(t, [d % rank + lead for d in dim], *args))

    return apply


RULES.update({f: _fourier(f) for f in (aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default)})


@rule(aten.view_as_complex.default)
def _view_as_complex(x: Jet) -> Jet:
    """Of pairs that lie side by side."""
    return x.linear(lambda t, lead: torch.view_as_complex(t.contiguous()))


@rule(aten.complex.default)
def _complex(real: Any, imag: Any) -> Jet:
    return jointly(lambda a, b, lead: torch.complex(*_of_one_rank(a, b, lead)), real, imag)


def _of_one_rank(a: Tensor, b: Tensor, lead: int) -> tuple[Tensor, Tensor]:
    """For broadcasting behind the axes in front."""
    rank = max(a.ndim, b.ndim)
    first, second = (t.reshape(*t.shape[:lead], *(1,) * (rank - t.ndim), *t.shape[lead:]) for t in (a, b))
    return first, second


@rule(aten.constant_pad_nd.default)
def _pad(x: Jet, pad: Sequence[int], value: Any = 0) -> Jet:
    """What is put in has no derivatives."""
    second = None if x.second is None else aten.constant_pad_nd(x.second, pad)
    return x.new(aten.constant_pad_nd(x.value, pad, value), lambda: aten.constant_pad_nd(x.first, pad), second)


@rule(aten.roll.default)
def _roll(x: Jet, shifts: Sequence[int], dims: Sequence[int] = ()) -> Jet:
    """Without axes, of the elements in their order."""
    rank = x.value.ndim
    if dims:
        return x.linear(lambda t, lead: t.roll(shifts, [behind(d, rank) for d in dims]))
    return x.linear(lambda t, lead: t.reshape(*t.shape[:lead], -1).roll(shifts, -1).reshape(t.shape))


@rule(aten.repeat.default)
def _repeat(x: Jet, repeats: Sequence[int]) -> Jet:
    return x.to_rank(len(repeats)).linear(lambda t, lead: t.repeat(*(1,) * lead, *repeats))


@rule(aten.as_strided.default)
def _as_strided(x: Jet, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Any:
    """Of elements that lie in memory in their order, and nothing else there."""
    last = (storage_offset or 0) + sum(step * (length - 1) for length, step in zip(size, stride, strict=True))
    elsewhere = storage_offset is not None and (storage_offset or x.value.storage_offset())
    if elsewhere or last >= x.value.numel() or not x.value.is_contiguous():
        return NotImplemented
    places = torch.zeros((), dtype=torch.long, device=x.value.device)
    for length, step in zip(size, stride, strict=True):
        places = places.unsqueeze(-1) + step * torch.arange(length, device=x.value.device)
    return x.linear(lambda t, lead: t.reshape(*t.shape[:lead], -1)[..., places])


@rule(aten.sum.default, aten.sum.dim_IntList)
def _sum(x: Jet, dim: Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any) -> Jet:
    axes = all_axes(x, dim)
    return x.linear(lambda t, lead: t.sum(axes, keepdim, **kwargs) if axes else t.to(**kwargs))


@rule(aten.mean.default, aten.mean.dim)
def _mean(x: Jet, dim: Sequence[int] | None = None, keepdim: bool = False, **kwargs: Any) -> Jet:
    axes = all_axes(x, dim)
    return x.linear(lambda t, lead: t.mean(axes, keepdim, **kwargs) if axes else t.to(**kwargs))


def all_axes(x: Jet, dim: Sequence[int] | int | None) -> list[int]:
    """The axes of a reduction, from behind: none given are all."""
    rank = x.value.ndim
    if isinstance(dim, int):
        dim = [dim]
    return [behind(d, rank) for d in dim] if dim and rank else list(range(-rank, 0))
