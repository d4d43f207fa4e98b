"""Arithmetic of two elements (L3), either of which may be a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, added, constant, scaled
from jacfn.second_order.rules.table import RULES, Rule, rule

aten = torch.ops.aten


@rule(aten.add.Tensor, aten.add.Scalar)
def _add(a: Any, b: Any, alpha: Any = 1) -> Jet:
    return combined(a, b, 1, alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(a: Any, b: Any, alpha: Any = 1) -> Jet:
    return combined(a, b, 1, -alpha)


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(a: Any, b: Any, alpha: Any = 1) -> Jet:
    return combined(b, a, 1, -alpha)


def combined(a: Any, b: Any, p: Any, q: Any) -> Jet:
    """``p a + q b``."""
    value = times(p, plain(a)) + times(q, plain(b))

    def spread(x: Jet, factor: Any) -> Jet:
        return x.linear(lambda t, lead: times(factor, t)).to_shape(value.shape)

    if not isinstance(a, Jet) or not isinstance(b, Jet):
        jet = spread(a, p) if isinstance(a, Jet) else spread(b, q)
        return jet.new(value, lambda: jet.first, jet.second)
    x, y = a.to_rank(value.ndim), b.to_rank(value.ndim)
    second = added(spread(x, p).second, spread(y, q).second)
    return x.new(value, lambda: torch.add(times(p, x.first), y.first, alpha=q), second)


def plain(x: Any) -> Any:
    """Its value."""
    return x.value if isinstance(x, Jet) else x


def times(factor: Any, x: Any) -> Any:
    """One time it is itself."""
    return x if isinstance(factor, int) and factor == 1 else factor * x


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(a: Any, b: Any) -> Jet:
    value = plain(a) * plain(b)
    if not isinstance(a, Jet) or not isinstance(b, Jet):
        jet, factor = (a, b) if isinstance(a, Jet) else (b, a)
        return multiple(jet, factor, value)
    return product(a, b, value)


def multiple(x: Jet, factor: Any, value: Tensor) -> Jet:
    """By a constant, which may have more axes."""
    x = x.to_rank(value.ndim)
    second = None if x.second is None else x.second * factor
    return x.new(value, lambda: x.first * factor, second)


def product(a: Jet, b: Jet, value: Tensor) -> Jet:
    """``ab``, ``a Jb + b Ja``, ``a Lb + b La + 2 Σ Ja Jb``."""
    a, b = a.to_rank(value.ndim), b.to_rank(value.ndim)
    second = added(scaled(b.value, a.second), scaled(a.value, b.second))
    second = added(second, 2 * a.sum.product(a.first, b.first))
    return a.new(value, lambda: torch.addcmul(a.value * b.first, b.value, a.first), second)


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(a: Any, b: Any) -> Jet:
    """Of ``q = a/b``: ``(Ja - q Jb)/b`` and ``(La - q Lb - 2 Σ Jq Jb)/b``."""
    value = plain(a) / plain(b)
    if not isinstance(b, Jet):
        x: Jet = a.to_rank(value.ndim)
        return x.new(value, lambda: x.first / b, None if x.second is None else x.second / b)
    below = b.to_rank(value.ndim)
    if not isinstance(a, Jet):
        slope = -value / below.value
        return below.curved(value, slope, -2 * slope / below.value)
    above, inverse = a.to_rank(value.ndim), below.value.reciprocal()
    first = inverse * torch.addcmul(above.first, value, below.first, value=-1)
    second = added(scaled(inverse, above.second), scaled(-inverse * value, below.second))
    return above.new(value, first, added(second, -2 * inverse * above.sum.product(first, below.first)))


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(a: Any, b: Any, *, rounding_mode: str | None) -> Jet:
    if rounding_mode is None:
        return _div(a, b)
    like = a if isinstance(a, Jet) else b
    return constant(torch.div(plain(a), plain(b), rounding_mode=rounding_mode), like)


Partials = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]  # fa, fb, faa, fab, fbb; None is zero


def surface(operation: Callable[..., Tensor], partials: Callable[[Tensor, Tensor, Tensor], Partials]) -> Rule:
    """The rule of ``f(a, b)`` with these derivatives of ``(a, b, f(a, b))``, which have the shape of ``f(a, b)``."""

    def apply(a: Any, b: Any) -> Jet:
        value = operation(plain(a), plain(b))
        x, y = (t if isinstance(t, Tensor) else value.new_full((), t) for t in (plain(a), plain(b)))
        fa, fb, faa, fab, fbb = partials(x, y, value)
        a, b = (t.to_rank(value.ndim) if isinstance(t, Jet) else t for t in (a, b))
        if not isinstance(b, Jet):
            curved: Jet = a.curved(value, fa, faa)
            return curved
        if not isinstance(a, Jet):
            return b.curved(value, fb, fbb)
        second = added(scaled(fa, a.second), scaled(fb, b.second))
        for factor, u, v in ((faa, a, a), (None if fab is None else 2 * fab, a, b), (fbb, b, b)):
            second = added(second, None if factor is None else factor * a.sum.product(u.first, v.first))
        return a.new(value, lambda: torch.addcmul(fa * a.first, fb, b.first), second)

    return apply


def _pow(a: Tensor, b: Tensor, y: Tensor) -> Partials:
    """A factor that is zero goes before the power of zero that it stands at; ``0 log 0`` is zero."""

    def falling(factor: Tensor, k: int) -> Tensor:
        return factor * a ** torch.where(factor == 0, 1.0, b - k)

    log = torch.log(torch.where(a == 0, 1.0, a))
    mixed = a ** (b - 1) * (1 + b * log)
    return falling(b, 1), y * log, falling(b * (b - 1), 2), mixed, y * log * log


def _atan2(a: Tensor, b: Tensor, y: Tensor) -> Partials:
    """Zero at the origin, as PyTorch has it."""
    square = a * a + b * b
    inverse = (square != 0) / torch.where(square == 0, 1.0, square)
    fa, fb = b * inverse, -a * inverse
    return fa, fb, 2 * fa * fb, fb * fb - fa * fa, -2 * fa * fb


def _hypot(a: Tensor, b: Tensor, y: Tensor) -> Partials:
    fa, fb = a / y, b / y
    return fa, fb, fb * fb / y, -fa * fb / y, fa * fa / y


def _log_sum(base: float) -> Callable[[Tensor, Tensor, Tensor], Partials]:
    def partials(a: Tensor, b: Tensor, y: Tensor) -> Partials:
        scale = math.log(base)
        apart = torch.where((a == b) & a.isinf(), 0.0, a - b) * scale
        fa, fb = torch.sigmoid(apart), torch.sigmoid(-apart)
        bend = scale * fa * fb
        return fa, fb, bend, -bend, bend

    return partials


def _times_log(shift: int) -> Callable[[Tensor, Tensor, Tensor], Partials]:
    """``a log(shift + b)``, where zero times anything is zero."""

    def partials(a: Tensor, b: Tensor, y: Tensor) -> Partials:
        b = torch.where((a == 0) & (b + shift <= 0), 1.0 - shift, b)
        log, inverse = torch.log1p(b) if shift else torch.log(b), 1 / (b + shift)
        return log + torch.zeros_like(y), a * inverse, None, inverse + torch.zeros_like(y), -a * inverse * inverse

    return partials


def _modulo(rounding_mode: str) -> Callable[[Tensor, Tensor, Tensor], Partials]:
    """``a - b q`` with a whole number q."""
    return lambda a, b, y: (torch.ones_like(y), -torch.div(a, b, rounding_mode=rounding_mode), None, None, None)


def _weights(first: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Partials]:
    """Either of both; a weight of the first."""

    def partials(a: Tensor, b: Tensor, y: Tensor) -> Partials:
        weight = first(a, b).to(y.dtype)
        return weight, 1 - weight, None, None, None

    return partials


def _half_where_equal(wins: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: torch.where(a == b, 0.5, wins(a, b).to(a.dtype))


for _partials, *_operations in (
    (_pow, aten.pow.Tensor_Tensor),
    (_atan2, aten.atan2.default),
    (_hypot, aten.hypot.default),
    (_log_sum(math.e), aten.logaddexp.default),
    (_log_sum(2.0), aten.logaddexp2.default),
    (_times_log(0), aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other),
    (_times_log(1), *(getattr(aten.special_xlog1py, name) for name in ("default", "self_scalar", "other_scalar"))),
    (_modulo("trunc"), aten.fmod.Tensor),
    (_modulo("floor"), aten.remainder.Tensor, aten.remainder.Scalar_Tensor),
    (_weights(_half_where_equal(torch.gt)), aten.maximum.default),
    (_weights(_half_where_equal(torch.lt)), aten.minimum.default),
    (_weights(lambda a, b: (a >= b) | b.isnan()), aten.fmax.default),
    (_weights(lambda a, b: (a <= b) | b.isnan()), aten.fmin.default),
):
    RULES.update({operation: surface(operation, _partials) for operation in _operations})


def either(use: Rule, operation: Callable[..., Tensor]) -> Callable[..., Any]:
    """A rule that takes constants alone too."""
    return lambda *args: (use if any(isinstance(x, Jet) for x in args) else operation)(*args)


_at_least = either(surface(torch.maximum, _weights(torch.ge)), torch.maximum)
_at_most = either(surface(torch.minimum, _weights(torch.le)), torch.minimum)


@rule(aten.clamp.Tensor)
def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    x = x if min is None else _at_least(x, min)
    return x if max is None else _at_most(x, max)


@rule(aten.clamp_min.Tensor)
def _clamp_min(x: Any, min: Any) -> Any:
    return _at_least(x, min)


@rule(aten.clamp_max.Tensor)
def _clamp_max(x: Any, max: Any) -> Any:
    return _at_most(x, max)


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(a: Any, b: Any, weight: Any) -> Any:
    add, subtract, multiply = either(_add, torch.add), either(_sub, torch.sub), either(_mul, torch.mul)
    return add(a, multiply(subtract(b, a), weight))


@rule(aten.ldexp.Tensor)
def _ldexp(a: Any, b: Any) -> Any:
    return _mul(a, either(RULES[aten.pow.Scalar], torch.pow)(2.0, b))


@rule(aten.copysign.Tensor, aten.copysign.Scalar)
def _copysign(a: Any, b: Any) -> Jet:
    """Of zero it has no slope, as PyTorch has it."""
    value = torch.copysign(plain(a), plain(b))
    if not isinstance(a, Jet):
        return constant(value, b)
    return a.to_rank(value.ndim).curved(value, torch.sign(a.value) * torch.sign(value), None)


@rule(aten.special_zeta.default, aten.special_zeta.self_scalar, aten.special_zeta.other_scalar)
def _zeta(s: Any, q: Any) -> Any:
    """``ζ' = -s ζ(s + 1, q)`` of ``Σ (n + q)⁻ˢ``; of no use where s varies."""
    if isinstance(s, Jet):
        return NotImplemented
    value, once, twice = (torch.special.zeta(s + i, q.value) for i in range(3))
    return q.to_rank(value.ndim).curved(value, -s * once, s * (s + 1) * twice)


def _incomplete_gamma(operation: Callable[..., Tensor], sign: int) -> Rule:
    """``± xᵃ⁻¹ exp(-x)/Γ(a)`` is the slope (DLMF 8.8); of no use where a varies."""

    def apply(a: Any, x: Any) -> Any:
        if isinstance(a, Jet):
            return NotImplemented
        slope = sign * torch.exp(torch.xlogy(a - 1, x.value) - x.value - torch.lgamma(a))
        value = operation(a, x.value)
        return x.to_rank(value.ndim).curved(value, slope, slope * ((a - 1) / x.value - 1))

    return apply


RULES[aten.igamma.default] = _incomplete_gamma(torch.special.gammainc, 1)
RULES[aten.igammac.default] = _incomplete_gamma(torch.special.gammaincc, -1)
