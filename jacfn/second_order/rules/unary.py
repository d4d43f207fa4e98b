"""Functions of one element (L3): their first two derivatives."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._exact.bessel import BESSEL, Bessel
from jacfn._exact.underived import UNDERIVED
from jacfn.second_order.jet import Jet, constant
from jacfn.second_order.rules.table import CONSTANT, RULES, Rule, rule

aten = torch.ops.aten
LN2, LN10 = math.log(2), math.log(10)

CONSTANT.update(
    {
        aten.sign.default,
        aten.floor.default,
        aten.ceil.default,
        aten.trunc.default,
        aten.round.default,
        aten.round.decimals,
        aten.histc.default,
    }
)

Slope = Callable[[Tensor, Tensor], Tensor]  # f' of (x, f(x))
Curvature = Callable[[Tensor, Tensor, Tensor], Tensor]  # f'' of (x, f(x), f'(x))


def elementwise(operation: Callable[..., Tensor], slope: Slope, curvature: Curvature | None) -> Callable[..., Jet]:
    """The rule of a function with these derivatives; no curvature is zero."""

    def apply(x: Jet) -> Jet:
        value = operation(x.value)
        first = slope(x.value, value)
        return x.curved(value, first, None if curvature is None else curvature(x.value, value, first))

    return apply


def _ball(z: Tensor) -> Tensor:
    """``(sin z - z cos z)/z³``, which is ``-j0'(z)/z`` of the spherical Bessel function: near zero by its series."""
    near = z.abs() < 1
    square, series = torch.where(near, z, 0.0).square(), torch.zeros_like(z)
    for k in reversed(range(10)):
        series = series * square + (-1) ** k * 2 * (k + 1) / math.factorial(2 * k + 3)
    far = torch.where(near, 1.0, z)
    return torch.where(near, series, (far.sin() - far * far.cos()) / far**3)


FUNCTIONS: dict[Any, tuple[Slope, Curvature | None]] = {
    # Powers and exponentials.
    aten.exp.default: (lambda x, y: y, lambda x, y, s: y),
    aten.exp2.default: (lambda x, y: LN2 * y, lambda x, y, s: LN2 * s),
    aten.expm1.default: (lambda x, y: torch.exp(x), lambda x, y, s: s),
    aten.log.default: (lambda x, y: x.reciprocal(), lambda x, y, s: -s * s),
    aten.log2.default: (lambda x, y: 1 / (LN2 * x), lambda x, y, s: -s / x),
    aten.log10.default: (lambda x, y: 1 / (LN10 * x), lambda x, y, s: -s / x),
    aten.log1p.default: (lambda x, y: 1 / (1 + x), lambda x, y, s: -s * s),
    aten.sqrt.default: (lambda x, y: 0.5 / y, lambda x, y, s: -0.5 * s / x),
    aten.rsqrt.default: (lambda x, y: -0.5 * y / x, lambda x, y, s: -1.5 * s / x),
    aten.reciprocal.default: (lambda x, y: -y * y, lambda x, y, s: -2 * s * y),
    # Circular and hyperbolic.
    aten.sin.default: (lambda x, y: torch.cos(x), lambda x, y, s: -y),
    aten.cos.default: (lambda x, y: -torch.sin(x), lambda x, y, s: -y),
    aten.tan.default: (lambda x, y: 1 + y * y, lambda x, y, s: 2 * y * s),
    aten.asin.default: (lambda x, y: torch.rsqrt((1 - x) * (1 + x)), lambda x, y, s: x * s * s * s),
    aten.acos.default: (lambda x, y: -torch.rsqrt((1 - x) * (1 + x)), lambda x, y, s: x * s * s * s),
    aten.atan.default: (lambda x, y: 1 / (1 + x * x), lambda x, y, s: -2 * x * s * s),
    aten.sinh.default: (lambda x, y: torch.cosh(x), lambda x, y, s: y),
    aten.cosh.default: (lambda x, y: torch.sinh(x), lambda x, y, s: y),
    aten.tanh.default: (lambda x, y: 1 - y * y, lambda x, y, s: -2 * y * s),
    aten.asinh.default: (lambda x, y: torch.rsqrt(1 + x * x), lambda x, y, s: -x * s * s * s),
    aten.acosh.default: (lambda x, y: torch.rsqrt((x - 1) * (x + 1)), lambda x, y, s: -x * s * s * s),
    aten.atanh.default: (lambda x, y: 1 / ((1 - x) * (1 + x)), lambda x, y, s: 2 * x * s * s),
    aten.sigmoid.default: (lambda x, y: y * (1 - y), lambda x, y, s: s * (1 - 2 * y)),
    # Special functions (DLMF 5.15, 7.10, 10.49; the quantiles as inverse functions).
    aten.erf.default: (lambda x, y: 2 / math.sqrt(math.pi) * torch.exp(-x * x), lambda x, y, s: -2 * x * s),
    aten.erfc.default: (lambda x, y: -2 / math.sqrt(math.pi) * torch.exp(-x * x), lambda x, y, s: -2 * x * s),
    aten.erfinv.default: (lambda x, y: math.sqrt(math.pi) / 2 * torch.exp(y * y), lambda x, y, s: 2 * y * s * s),
    aten.special_erfcx.default: (lambda x, y: 2 * x * y - 2 / math.sqrt(math.pi), lambda x, y, s: 2 * (y + x * s)),
    aten.special_ndtri.default: (
        lambda x, y: math.sqrt(2 * math.pi) * torch.exp(0.5 * y * y),
        lambda x, y, s: y * s * s,
    ),
    aten.special_entr.default: (lambda x, y: -torch.log(x) - 1, lambda x, y, s: -1 / x),
    aten.lgamma.default: (lambda x, y: torch.digamma(x), lambda x, y, s: torch.polygamma(1, x)),
    aten.digamma.default: (lambda x, y: torch.polygamma(1, x), lambda x, y, s: torch.polygamma(2, x)),
    aten.sinc.default: (
        lambda x, y: -(math.pi**2) * x * _ball(math.pi * x),
        lambda x, y, s: math.pi**2 * (2 * _ball(math.pi * x) - y),
    ),
}

RULES.update({operation: elementwise(operation, *derivatives) for operation, derivatives in FUNCTIONS.items()})


def _bessel(function: Bessel) -> Rule:
    return lambda x: x.curved(*function.derivatives(x.value))


RULES.update({operation: _bessel(function) for operation, function in BESSEL.items()})


@rule(aten.special_spherical_bessel_j0.default)
def _spherical_bessel(x: Jet) -> Jet:
    """``sin(x)/x`` of a torch function that has derivatives; those of this one are zero."""
    ball = _ball(x.value)
    value = torch.sinc(x.value / math.pi)
    return x.curved(value, -x.value * ball, 2 * ball - value)


@rule(aten.special_log_ndtr.default)
def _log_ndtr(x: Jet) -> Jet:
    """``φ/Φ``, ``-(x + φ/Φ) φ/Φ``; on the left, where φ and Φ underflow, by a ratio that does not."""
    left, right, far = x.value.clamp(max=-1.0), x.value.clamp(min=-1.0), x.value < -1
    ratio = torch.special.erfcx(-math.sqrt(0.5) * left)
    log = torch.log1p(-0.5 * torch.erfc(math.sqrt(0.5) * right))
    value = torch.where(far, torch.log(0.5 * ratio) - 0.5 * left * left, log)
    density = torch.exp(-0.5 * right * right - log) / math.sqrt(2 * math.pi)
    slope = torch.where(far, math.sqrt(2 / math.pi) / ratio, density)
    return x.curved(value, slope, -slope * (x.value + slope))


def _refused(name: str) -> Callable[..., Any]:
    def apply(*args: Any, **kwargs: Any) -> Any:
        raise JacfnError(f"torch.special.{name} has no derivatives in PyTorch, which takes them for zero")

    return apply


for _name in UNDERIVED.split():
    for _overload in ("default", "x_scalar", "n_scalar"):
        if hasattr(getattr(aten, f"special_{_name}"), _overload):
            RULES[getattr(getattr(aten, f"special_{_name}"), _overload)] = _refused(_name)


def bent(x: Jet, value: Tensor, inside: Tensor) -> Jet:
    """A function that has slope one inside and zero outside."""
    return x.curved(value, inside.to(value.dtype), None)


@rule(aten.abs.default)
def _abs(x: Jet) -> Any:
    return NotImplemented if x.value.is_complex() else x.curved(x.value.abs(), torch.sign(x.value), None)


@rule(aten.angle.default)
def _angle(x: Jet) -> Any:
    return NotImplemented if x.value.is_complex() else constant(x.value.angle(), x)


@rule(aten.clamp.default)
def _clamp(x: Jet, min: Any = None, max: Any = None) -> Jet:
    inside = torch.ones_like(x.value, dtype=torch.bool)
    if min is not None:
        inside = inside & (x.value >= min)
    if max is not None:
        inside = inside & (x.value <= max)
    return bent(x, x.value.clamp(min, max), inside)


@rule(aten.clamp_min.default)
def _clamp_min(x: Jet, min: Any) -> Jet:
    return bent(x, x.value.clamp(min=min), x.value >= min)


@rule(aten.clamp_max.default)
def _clamp_max(x: Jet, max: Any) -> Jet:
    return bent(x, x.value.clamp(max=max), x.value <= max)


@rule(aten.nan_to_num.default)
def _nan_to_num(x: Jet, *numbers: Any, **more: Any) -> Jet:
    """By torch.where, not by a product: the derivatives of what is not finite are not either."""
    finite = x.value.isfinite()
    kept = x.linear(lambda t, lead: torch.where(finite, t, 0.0))
    return x.new(x.value.nan_to_num(*numbers, **more), lambda: kept.first, kept.second)


def _sawtooth(operation: Callable[..., Tensor]) -> Callable[..., Jet]:
    """It differs from x by constants."""
    return lambda x, divisor: x.new(operation(x.value, divisor), lambda: x.first, x.second)


RULES.update({operation: _sawtooth(operation) for operation in (aten.fmod.Scalar, aten.remainder.Scalar)})


@rule(aten.logit.default)
def _logit(x: Jet, eps: float | None = None) -> Jet:
    value, inside = torch.logit(x.value, eps), x.value
    if eps is not None:
        inside = inside.clamp(eps, 1 - eps)
    slope = 1 / (inside * (1 - inside))
    curvature = (2 * inside - 1) * slope * slope
    if eps is not None:
        flat = inside != x.value
        slope, curvature = slope.masked_fill(flat, 0), curvature.masked_fill(flat, 0)
    return x.curved(value, slope, curvature)


@rule(aten.polygamma.default)
def _polygamma(n: int, x: Jet) -> Jet:
    return x.curved(*(torch.polygamma(n + i, x.value) for i in range(3)))


@rule(aten.pow.Tensor_Scalar)
def _power(x: Jet, p: Any) -> Jet:
    """Whole powers of zero have derivatives: their factors that are zero go before the power does."""
    value = x.value**p
    if p == 0:
        return constant(value, x)
    if p == 1:
        return x
    if p == 2:
        return x.curved(value, 2 * x.value, torch.full_like(x.value, 2))
    return x.curved(value, p * x.value ** (p - 1), p * (p - 1) * x.value ** (p - 2))


@rule(aten.pow.Scalar)
def _exponential(base: Any, x: Jet) -> Any:
    if not isinstance(base, complex) and base < 0:
        return NotImplemented
    value = torch.pow(base, x.value)
    if base == 0:
        return constant(value, x)
    log = cmath.log(base) if isinstance(base, complex) else math.log(base)
    return x.curved(value, log * value, log**2 * value)
