"""Values that ``fn`` computes from parameters alone (L2): which operations may lead there, and how to pull back.

A transposed weight, ``W + B A``, a weight normalised by its norm: such a value enters its operation linearly like any
weight, so its Jacobian is a closed form; that of the parameters behind it follows by the vjp of the few operations
that led to it, which are recorded and run again. Only pure operations may be run again: they are listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn import _torch
from jacfn._exact import exact_kernels
from jacfn._tree import tensors_in
from jacfn.quasilinear.autocast import autocast_to
from jacfn.quasilinear.records import Derivation, Record, Slot
from jacfn.quasilinear.rules import find

_VIEWS = """
    t transpose permute movedim moveaxis swapaxes swapdims view view_as unflatten unsqueeze squeeze expand expand_as
    broadcast_to broadcast_tensors chunk split tensor_split unbind narrow select diagonal adjoint atleast_2d
"""
_STRUCTURE = """
    reshape reshape_as flatten ravel index_select take_along_dim gather take cat concat concatenate stack hstack vstack
    repeat repeat_interleave tile flip roll rot90 diag diag_embed diagflat tril triu clone contiguous to float double
    half bfloat16 type_as __getitem__ block_diag
"""
_ELEMENTWISE = """
    add __add__ __radd__ sub subtract __sub__ __rsub__ rsub mul multiply __mul__ __rmul__ div divide true_divide
    __truediv__ __rtruediv__ __rdiv__ neg negative __neg__ pow __pow__ __rpow__ square sqrt rsqrt reciprocal exp exp2
    expm1 log log1p log2 abs absolute __abs__ sin cos tan tanh sinh cosh atan asin acos arctan sigmoid logit
    logsigmoid relu leaky_relu elu selu gelu silu softplus softsign hardtanh hardsigmoid hardswish clamp clip clamp_min
    clamp_max maximum minimum where addcmul addcdiv lerp erf erfc
"""
_OTHERS = """
    sum mean prod norm amax amin max min logsumexp cumsum cumprod softmax log_softmax normalize var std
    matmul __matmul__ __rmatmul__ mm bmm mv dot vdot inner outer ger addmm addmv addr baddbmm chain_matmul einsum
    tensordot kron linear bilinear matrix_exp matrix_power cross trace inverse vander cosine_similarity pad interpolate
"""
_LINALG = """
    norm vector_norm matrix_norm inv solve solve_triangular qr cholesky matrix_exp matrix_power multi_dot
    householder_product vecdot svdvals eigvalsh det cross
"""
Table = dict[Callable[..., Any], bool]


def _table(names: str, *places: Any) -> Table:
    found = (getattr(place, name, None) for place in places for name in names.split())
    return {function: True for function in found if callable(function)}


ELEMENTWISE: Table = _table(_ELEMENTWISE, torch, Tensor, F)
VIEWS: Table = {  # in the memory of their argument
    **_table(_VIEWS, torch, Tensor, F),
    **{getattr(Tensor, name).__get__: True for name in ("T", "mT", "H", "mH")},
}
STRUCTURE: Table = {**VIEWS, **_table(_STRUCTURE, torch, Tensor, F)}
PURE: Table = {
    **STRUCTURE,
    **ELEMENTWISE,
    **_table(_OTHERS, torch, Tensor, F),
    **_table(_LINALG, torch.linalg),
    _torch.weight_norm: True,
}


def is_view(function: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether the call gives a view of its argument, whatever that is."""
    if function is Tensor.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(place is None or place is ... or isinstance(place, (int, slice)) for place in index)
    return find(VIEWS, function) is not None


def slotted(values: Any, record: Record) -> Any:
    """``values`` with slots in the place of sources and constants; new constants are added to the record."""
    if isinstance(values, (tuple, list)):
        slots = [slotted(value, record) for value in values]
        return tuple(slots) if isinstance(values, tuple) else slots
    if isinstance(values, dict):
        return {name: slotted(value, record) for name, value in values.items()}
    if not isinstance(values, Tensor):
        return values
    source = record.source(values)
    if source is not None:
        return Slot(source, constant=False)
    record.constants.append(values)
    return Slot(len(record.constants) - 1, constant=True)


def fill(slots: Any, sources: Sequence[Tensor], constants: Sequence[Tensor]) -> Any:
    """The inverse of :func:`slotted`, with other tensors."""
    if isinstance(slots, (tuple, list)):
        values = [fill(slot, sources, constants) for slot in slots]
        return tuple(values) if isinstance(slots, tuple) else values
    if isinstance(slots, dict):
        return {name: fill(slot, sources, constants) for name, slot in slots.items()}
    if isinstance(slots, Slot):
        return (constants if slots.constant else sources)[slots.number]
    return slots


def replay(derivations: Sequence[Derivation], leaves: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
    """All sources, from the leaves among them."""
    sources = list(leaves)
    with exact_kernels():
        for derivation in derivations:
            args, kwargs = fill((derivation.args, derivation.kwargs), sources, constants)
            with autocast_to(derivation.autocast, leaves):
                sources += tensors_in(derivation.function(*args, **kwargs))
    return sources


def leaves_behind(derivations: Sequence[Derivation], sources: set[int], leaves: int) -> set[int]:
    """The leaves from which these sources are made."""
    behind = set(sources)
    for derivation in reversed(derivations):
        made = range(derivation.first, derivation.first + len(derivation.shapes))
        if behind.intersection(made):
            behind |= _slots(derivation.args) | _slots(derivation.kwargs)
    return {source for source in behind if source < leaves}


def _slots(values: Any) -> set[int]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (tuple, list)):
        return {number for value in values for number in _slots(value)}
    return {values.number} if isinstance(values, Slot) and not values.constant else set()
