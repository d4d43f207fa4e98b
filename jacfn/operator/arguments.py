"""Checks of what operators are given (L3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import check_positive
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._memory import repeats
from jacfn._selection import frozen, select
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.operator.source import Source
from jacfn.operator.vectors import Vectors


class Operator(Protocol):
    """What the checks need to know of an operator."""

    @property
    def source(self) -> Source:
        """Of its rows."""

    @property
    def rows(self) -> Vectors:
        """The side of the outputs."""

    @property
    def columns(self) -> Vectors:
        """The side of the arguments."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the leaves."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, P)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every element."""

    @property
    def device(self) -> torch.device:
        """Where it is."""


def check_matrix(v: Any, size: int, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """A flat vector or matrix with ``size`` rows, of the operator's dtype."""
    if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != size:
        got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise JacfnValueError(
            f"{what}: the right side must be a tensor of shape ({size},) or ({size}, S), got {got}; mv and rmv take "
            "pytrees"
        )
    if v.dtype != dtype or v.device != device:
        raise JacfnTypeError(f"{what}: the right side must be {dtype} on {device}, got {v.dtype} on {v.device}")


def check_columns(a: Operator, b: Any, what: str) -> None:
    """Two operators over the same columns."""
    if not isinstance(b, type(a)):
        raise JacfnTypeError(f"{what}: the other side must be a JacobianOperator, got {type(b).__name__}")
    mine, its = ([kind.shape for kind in operator.columns.kinds] for operator in (a, b))
    if mine != its:
        raise JacfnValueError(f"{what}: columns differ, leaves of shapes {mine} and {its}")
    if a.names != b.names and sorted(a.names) == sorted(b.names):
        raise JacfnValueError(
            f"{what}: the same leaves in another order, {', '.join(a.names)} and {', '.join(b.names)}; "
            "restrict(leaves=...) of one of them to the other's names"
        )
    if a.dtype != b.dtype or a.device != b.device:
        raise JacfnTypeError(f"{what}: {a.dtype} on {a.device} and {b.dtype} on {b.device}; convert one of them")


def check_out(out: Any, operator: Operator) -> None:
    """A buffer for the whole."""
    if not isinstance(out, Tensor) or tuple(out.shape) != operator.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise JacfnValueError(f"out must be a tensor of shape {operator.shape}, got {got}")
    if out.requires_grad or repeats(out):
        raise JacfnValueError("out must be memory that can be written: no grad required, and no element twice in it")
    if out.dtype != operator.dtype or out.device != operator.device:
        raise JacfnTypeError(
            f"out must be {operator.dtype} on {operator.device}, got {out.dtype} on {out.device}; convert the operator"
        )


def weights(given: Any, operator: Operator) -> Tensor:
    """``(M,)`` or ``(N, K, K)``."""
    m = operator.shape[0]
    n = 1 if operator.rows.samples is None else operator.rows.samples
    k = operator.rows.width
    wanted = f"({m},), ({n}, {k}) or ({n}, {k}, {k})"
    if not isinstance(given, Tensor):
        raise JacfnTypeError(f"weights must be a tensor of shape {wanted}, got {type(given).__name__}")
    if given.dtype != operator.dtype or given.device != operator.device:
        raise JacfnTypeError(
            f"weights must be {operator.dtype} on {operator.device}, got {given.dtype} on {given.device}"
        )
    shape = tuple(given.shape)
    if shape in ((m,), (n, k)):
        return given.reshape(-1)
    if shape == (n, k, k) or (operator.rows.samples is None and shape == (k, k)):
        return given.reshape(n, k, k)
    raise JacfnValueError(f"weights must have shape {wanted}, got {shape}")


def own(given: Tensor) -> Tensor:
    """A copy, which nobody else can change; what carries derivatives stays as it is."""
    return given if given.requires_grad or inside_transform() else given.clone()


def places(given: Any, operator: Operator) -> Tensor:
    """Rows as a LongTensor."""
    given = torch.tensor(given, dtype=torch.int64) if isinstance(given, list | tuple) and not given else given
    given = torch.tensor(given) if isinstance(given, list | tuple) else given
    side = LeafType((operator.shape[0],), operator.dtype, operator.device)
    chosen = select([side], _tree.flatten(0)[1], frozen(given), "rows")
    assert chosen.index is not None
    return torch.as_tensor(chosen.index, device=operator.device)


def leaves(given: Any, names: Sequence[str]) -> list[int]:
    """Numbers of the leaves that are named, or for which a function says yes."""
    if callable(given):
        return _some([i for i, name in enumerate(names) if given(name)], names)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise JacfnTypeError(f"leaves must be names or a function of a name, got {given!r}")
    wanted = list(given)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise JacfnValueError(f"leaves: there is no leaf {unknown[0]!r}; there are {', '.join(names)}")
    if len(set(wanted)) < len(wanted):
        raise JacfnValueError(f"leaves: each one at most once, got {', '.join(wanted)}")
    return _some([names.index(name) for name in wanted], names)


def _some(kept: list[int], names: Sequence[str]) -> list[int]:
    if not kept:
        raise JacfnValueError(f"leaves: none is left of {', '.join(names)}")
    return kept


def masks(given: Any, columns: Vectors) -> list[Tensor]:
    """One of booleans for each leaf, of its shape."""
    like = Vectors(tuple(kind._replace(dtype=torch.bool) for kind in columns.kinds), columns.spec)
    flat, form = like.parse(given, "mask")
    if form.stacked:
        raise JacfnValueError("mask must be one mask, not a stack of them")
    return [stack[0] for stack in like.stacks(flat)]


def check_factor(factor: Any) -> None:
    """A real number."""
    if isinstance(factor, Tensor):
        if not factor.ndim and not factor.is_complex():
            return
        got = f"a tensor of shape {tuple(factor.shape)}" if factor.ndim else f"one of {factor.dtype}"
    elif isinstance(factor, Real):
        return
    else:
        got = type(factor).__name__
    raise JacfnTypeError(
        f"J * c: c must be a real number, got {got}; weighted() scales rows, column_weighted() columns"
    )


def check_count(k: Any, most: int) -> None:
    """A number of singular values."""
    check_positive("k", k)
    if k is None or k > most:
        raise JacfnValueError(f"k must be at most min(M, P) = {most}, got {k}")


def rows_at_once(operator: Operator, chunk_size: int | None, budget: int | None) -> int:
    """How many rows a dense block may have."""
    check_positive("chunk_size", chunk_size)
    if chunk_size is not None and budget is not None:
        raise JacfnValueError("chunk_size and memory both set the blocks: give one of them")
    if chunk_size is not None:
        return chunk_size
    width = operator.shape[1] * operator.dtype.itemsize
    most = (operator.source.room if budget is None else budget) // max(width, 1)
    if budget is not None and not most:
        raise JacfnValueError(f"memory={budget} bytes is too small: one row has {width}; give at least that much")
    return max(most, 1)
