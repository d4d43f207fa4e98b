"""Bessel functions of order zero and one with all their derivatives: PyTorch takes those of most of them for zero.

``f0' = s f1`` and ``f1' = a f0 - f1/x`` with ``(s, a)``: ``(-1, 1)`` for J and Y, ``(1, 1)`` for I, ``(-1, -1)`` for K
(DLMF 10.6 and 10.29). The scaled ones are ``exp(-|x|) I`` and ``exp(x) K``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._exact.tables import ALWAYS
from jacfn._torch import forward_levels

aten = torch.ops.aten
_scaled_k0 = aten.special_scaled_modified_bessel_k0.default
_scaled_k1 = aten.special_scaled_modified_bessel_k1.default


@dataclasses.dataclass(frozen=True)
class Bessel:
    """The function of this order in a pair."""

    pair: tuple[Any, Any]
    order: int
    s: int
    a: int
    regular: bool  # at zero, where f1/x tends to 1/2
    scaled: bool

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f``, ``f'``, ``f''``."""
        f0, f1 = (_call(x, BESSEL[operation]) for operation in self.pair)
        zero = x == 0
        below = torch.where(zero, 1.0, x) if self.regular else x
        ratio = torch.where(zero, 0.5, f1 / below) if self.regular else f1 / x
        slope0, slope1 = self.s * f1, self.a * f0 - ratio
        if self.order == 0:
            value, slope, curvature = f0, slope0, self.s * slope1
        else:
            bend = (slope1 - ratio) / below  # (f1/x)', which is zero at zero, as both are 1/2
            value, slope, curvature = f1, slope1, self.a * slope0 - bend
        if self.scaled:
            rate = -torch.sign(x) if self.regular else torch.ones_like(x)
            slope, curvature = slope + rate * value, curvature + 2 * rate * slope + rate * rate * value
        return value, slope, curvature


class _Call(torch.autograd.Function):
    """The function by PyTorch, with its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, function: Bessel) -> Any:
        return function.pair[function.order](x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.function = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (x,) = ctx.saved_tensors
        return cotangents[0] * ctx.function.derivatives(x)[1], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (x,) = ctx.saved_tensors
        return tangents[0] * ctx.function.derivatives(x)[1]


_call: Callable[[Tensor, Bessel], Tensor] = _Call.apply

BESSEL: dict[Any, Bessel] = {
    pair[order]: Bessel(pair, order, s, a, regular, scaled)
    for pair, s, a, regular, scaled in (
        ((aten.special_bessel_j0.default, aten.special_bessel_j1.default), -1, 1, True, False),
        ((aten.special_bessel_y0.default, aten.special_bessel_y1.default), -1, 1, False, False),
        ((aten.i0.default, aten.special_i1.default), 1, 1, True, False),
        ((aten.special_i0e.default, aten.special_i1e.default), 1, 1, True, True),
        ((aten.special_modified_bessel_i0.default, aten.special_modified_bessel_i1.default), 1, 1, True, False),
        ((aten.special_modified_bessel_k0.default, aten.special_modified_bessel_k1.default), -1, -1, False, False),
        ((_scaled_k0, _scaled_k1), -1, -1, False, True),
    )
    for order in (0, 1)
}


def _replacement(name: str, function: Bessel) -> Callable[..., Any]:
    def replace(input: Any, *, out: Tensor | None = None) -> Any:
        if out is not None or not isinstance(input, Tensor):
            return NotImplemented
        if forward_levels() > 1:
            raise JacfnError(
                f"torch.special.{name} has no derivative in PyTorch, and jacfn's own none in forward mode inside "
                "forward mode: use jac_rev for one of the two"
            )
        return _call(input, function)

    return replace


for _operation, _function in BESSEL.items():
    _name = _operation.overloadpacket.__name__.removeprefix("special_")
    if "bessel" in _name:  # PyTorch knows the derivatives of i0, i1 and their like
        ALWAYS[getattr(torch.special, _name)] = _replacement(_name, _function)
