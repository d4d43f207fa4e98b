"""Parameters that scale or shift data element by element, with broadcasting (L2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.quasilinear.factors import Scale, Shift
from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._registry import Use, expansion, rule


def shift(parameter: Any, factor: float = 1) -> Use:
    """``factor`` times an addend; what is no tensor is claimed by nobody."""
    shape = tuple(parameter.shape) if isinstance(parameter, Tensor) else ()
    if factor == 1:
        return Use(Shift(shape), None)
    return Use(Scale(shape), lambda: parameter.new_full((), factor))


def in_old_order(*numbers: Any) -> bool:
    """Whether tensors stand where numbers should: PyTorch still takes the arguments as it did long ago."""
    return any(isinstance(number, Tensor) for number in numbers)


def _scale(parameter: Any, by: Any) -> Use:
    shape = tuple(parameter.shape) if isinstance(parameter, Tensor) else ()
    return Use(Scale(shape), by if isinstance(by, Tensor) or callable(by) else lambda: parameter.new_full((), by))


@rule(
    torch.add,
    Tensor.add,
    Tensor.__add__,
    Tensor.__radd__,
    cases=lambda rand: [
        call(rand(2, 3), rand(3)),
        call(rand(2, 1), rand(4, 1, 3)),
        call(rand(), rand(2)),
        call(rand(2), 0.5),
        call(rand(2), rand(2), alpha=-2.0),
    ],
)
def add(input: Any, other: Any, alpha: float = 1) -> dict[str, Use]:
    """``x + b``."""
    return {} if in_old_order(alpha) else {"input": shift(input), "other": shift(other, alpha)}


@rule(
    torch.sub,
    Tensor.sub,
    Tensor.__sub__,
    torch.subtract,
    Tensor.subtract,
    cases=lambda rand: [
        call(rand(2, 3), rand(3)),
        call(rand(1, 3), rand(2, 1)),
        call(rand(2), rand(2), alpha=0.5),
    ],
)
def sub(input: Any, other: Any, alpha: float = 1) -> dict[str, Use]:
    """``x - b``."""
    return {} if in_old_order(alpha) else {"input": shift(input), "other": shift(other, -alpha)}


@rule(torch.rsub, cases=lambda rand: [call(rand(2, 3), rand(3)), call(rand(2), rand(3, 2), alpha=0.5)])
@rule(Tensor.__rsub__, cases=lambda rand: [call(rand(2, 3), rand(3)), call(rand(2), rand(3, 2))])
def rsub(input: Any, other: Any, alpha: float = 1) -> dict[str, Use]:
    """``b - x``."""
    return {"input": shift(input, -alpha), "other": shift(other)}


@rule(
    torch.mul,
    Tensor.mul,
    Tensor.__mul__,
    Tensor.__rmul__,
    torch.multiply,
    Tensor.multiply,
    cases=lambda rand: [
        call(rand(2, 3), rand(3)),
        call(rand(2, 1), rand(4, 1, 3)),
        call(rand(), rand(2)),
        call(rand(2), 0.5),
        call(rand(3), rand.below(3, 2, 1)),
    ],
)
def mul(input: Any, other: Any) -> dict[str, Use]:
    """``x W``."""
    return {"input": _scale(input, other), "other": _scale(other, input)}


@rule(
    torch.div,
    Tensor.div,
    Tensor.__truediv__,
    torch.true_divide,
    Tensor.true_divide,
    cases=lambda rand: [
        call(rand(2, 3), rand(3)),
        call(rand(2, 1), rand(4, 1, 3)),
        call(rand(2), 0.5),
    ],
)
def div(input: Any, other: Any, rounding_mode: str | None = None) -> dict[str, Use]:
    """``W / x``."""
    return {} if rounding_mode else {"input": _scale(input, lambda: input.new_ones(()) / other)}


@rule(Tensor.__rtruediv__, Tensor.__rdiv__, cases=lambda rand: [call(rand(2, 3), rand(3)), call(rand(3), rand(2, 1))])
def rdiv(self: Any, other: Any) -> dict[str, Use]:
    """``W / x``, called on x."""
    return {"other": _scale(other, lambda: self.reciprocal())}


@rule(
    torch.addcmul,
    Tensor.addcmul,
    cases=lambda rand: [
        call(rand(2, 3), rand(2, 3), rand(3)),
        call(rand(3), rand(2, 1), rand(2, 3), value=-0.5),
    ],
)
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float = 1) -> dict[str, Use]:
    """``b + value x W``."""
    if in_old_order(value):
        return {}
    return {
        "input": shift(input),
        "tensor1": _scale(tensor1, lambda: value * tensor2),
        "tensor2": _scale(tensor2, lambda: value * tensor1),
    }


@rule(
    torch.where,
    cases=lambda rand: [
        call(rand(2, 3) > 0, rand(2, 3), rand(3)),
        call(rand(4, 2, 1) > 0, rand(2, 3), 0.0),
        call(rand(3) > 0, 1.0, rand()),
    ],
)
def where(condition: Tensor, input: Any, other: Any) -> dict[str, Use]:
    """A parameter where the condition holds, or where it does not."""
    return {"input": _scale(input, condition), "other": _scale(other, lambda: ~condition)}


@rule(Tensor.expand_as, cases=lambda rand: [call(rand(1, 3), rand(4, 2, 3)), call(rand(), rand(2))])
def expand_as(self: Tensor, other: Tensor) -> dict[str, Use]:
    """A parameter repeated to the shape of data."""
    return {"self": shift(self)}


@rule(torch.positive, Tensor.positive, Tensor.__pos__, cases=lambda rand: [call(rand(2, 3)), call(rand())])
def positive(input: Tensor) -> dict[str, Use]:
    """``+W``: the parameter itself becomes data; expansions of operations that only move numbers use it."""
    return {"input": shift(input)}


@expansion(
    torch.cat,
    torch.concat,
    torch.concatenate,
    cases=lambda rand: [
        call([rand(1, 3), rand(2, 3)]),
        call((rand(2, 1), rand(2, 3), rand(2, 2)), dim=-1),
        call([rand(2, 1), rand(2, 2)], 1),
    ],
)
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """A parameter beside data (a class token)."""
    return torch.cat(_as_data(tensors), dim)


@expansion(torch.stack, cases=lambda rand: [call([rand(3), rand(3)]), call((rand(2, 3), rand(2, 3)), dim=1)])
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """A parameter beside data, along a new axis."""
    return torch.stack(_as_data(tensors), dim)


def _as_data(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Truth values have no sign."""
    return [x if x.dtype == torch.bool else torch.positive(x) for x in tensors]
