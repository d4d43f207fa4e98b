"""Rules for functions of one element and for arithmetic of two or three."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jets import by_jets, check, differences

from jacfn import JacfnError
from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

special = torch.special

# Where a function is smooth enough for differences.
UNARY = {
    "exp": (torch.exp, -2, 2),
    "exp2": (torch.exp2, -2, 2),
    "expm1": (torch.expm1, -2, 2),
    "log": (torch.log, 1, 3),
    "log2": (torch.log2, 1, 3),
    "log10": (torch.log10, 1, 3),
    "log1p": (torch.log1p, 0, 2),
    "sqrt": (torch.sqrt, 1, 3),
    "rsqrt": (torch.rsqrt, 1, 3),
    "reciprocal": (torch.reciprocal, -3, -1),
    "square": (torch.square, -2, 2),
    "abs": (torch.abs, -3, -1),
    "neg": (torch.neg, -2, 2),
    "positive": (torch.positive, -2, 2),
    "sin": (torch.sin, -2, 2),
    "cos": (torch.cos, -2, 2),
    "tan": (torch.tan, -0.7, 0.7),
    "asin": (torch.asin, -0.4, 0.4),
    "acos": (torch.acos, -0.4, 0.4),
    "atan": (torch.atan, -2, 2),
    "sinh": (torch.sinh, -2, 2),
    "cosh": (torch.cosh, -2, 2),
    "tanh": (torch.tanh, -2, 2),
    "asinh": (torch.asinh, -2, 2),
    "acosh": (torch.acosh, 2, 4),
    "atanh": (torch.atanh, -0.4, 0.4),
    "sigmoid": (torch.sigmoid, -3, 3),
    "deg2rad": (torch.deg2rad, -90, 90),
    "rad2deg": (torch.rad2deg, -1, 1),
    "erf": (torch.erf, -2, 2),
    "erfc": (torch.erfc, -2, 2),
    "erfinv": (torch.erfinv, -0.4, 0.4),
    "erfcx": (special.erfcx, -1, 2),
    "ndtr": (special.ndtr, -2, 2),
    "ndtri": (special.ndtri, 0.35, 0.65),
    "log_ndtr": (special.log_ndtr, -2, 2),
    "log_ndtr far": (special.log_ndtr, -30, -20),
    "entr": (special.entr, 1, 3),
    "lgamma": (torch.lgamma, 1.5, 3),
    "digamma": (torch.digamma, 2, 3),
    "polygamma": (lambda x: torch.polygamma(2, x), 2, 4),
    "mvlgamma": (lambda x: torch.mvlgamma(x, 2), 3, 4),
    "sinc": (torch.sinc, -0.5, 0.5),
    "sinc at zero": (torch.sinc, 0, 0),
    "sinc further out": (torch.sinc, 1, 2),
    "spherical_bessel_j0": (special.spherical_bessel_j0, -2, 2),
    "bessel_j0": (special.bessel_j0, -3, 3),
    "bessel_j1": (special.bessel_j1, -3, 3),
    "bessel_j0 at zero": (special.bessel_j0, 0, 0),
    "bessel_j1 at zero": (special.bessel_j1, 0, 0),
    "bessel_y0": (special.bessel_y0, 2, 4),
    "bessel_y1": (special.bessel_y1, 2, 4),
    "i0": (special.i0, -2, 2),
    "i1": (special.i1, -2, 2),
    "i1 at zero": (special.i1, 0, 0),
    "i0e": (special.i0e, 1, 3),
    "i1e": (special.i1e, -3, -1),
    "modified_bessel_i0": (special.modified_bessel_i0, -2, 2),
    "modified_bessel_i1": (special.modified_bessel_i1, -2, 2),
    "modified_bessel_k0": (special.modified_bessel_k0, 2, 4),
    "modified_bessel_k1": (special.modified_bessel_k1, 2, 4),
    "scaled_modified_bessel_k0": (special.scaled_modified_bessel_k0, 2, 4),
    "scaled_modified_bessel_k1": (special.scaled_modified_bessel_k1, 2, 4),
    "logit": (torch.logit, 0.35, 0.65),
    "logit with eps": (lambda x: torch.logit(x, 1e-3), 0.35, 0.65),
    "logit outside": (lambda x: torch.logit(x, 0.3), -1, 0),
    "frac": (torch.frac, 0.3, 0.6),
    "floor": (lambda x: torch.floor(x) * x, 0.3, 0.6),
    "round": (lambda x: (torch.round(x) + torch.ceil(x) + torch.trunc(x) + torch.sign(x)) * x, 0.7, 0.8),
    "round to decimals": (lambda x: torch.round(x, decimals=-1) * x, 12, 13),
    "angle": (lambda x: torch.angle(x) * x, -3, -1),
    "isfinite": (lambda x: torch.isfinite(x) * x, -3, -1),
    "nan_to_num": (lambda x: torch.nan_to_num(x, 1.0) * x, -3, -1),
    "x⁰": (lambda x: x**0, -1, 1),
    "x¹": (lambda x: x**1, -1, 1),
    "x²": (lambda x: x**2, -1, 1),
    "x³": (lambda x: x**3, -1, 1),
    "0⁰": (lambda x: x**0, 0, 0),
    "0¹": (lambda x: x**1, 0, 0),
    "0²": (lambda x: x**2.0, 0, 0),
    "0³": (lambda x: x**3, 0, 0),
    "power": (lambda x: x**2.5, 1, 2),
    "root": (lambda x: x**0.5, 1, 2),
    "inverse square": (lambda x: x**-2, 1, 2),
    "exponential": (lambda x: 2.5**x, -1, 1),
    "exponential of zero": (lambda x: torch.pow(0.0, x), 1, 2),
    "float_power": (lambda x: torch.float_power(x, 3), -1, 1),
    "clamp inside": (lambda x: x.clamp(-3, 3) * x, -2, 2),
    "clamp below": (lambda x: x.clamp(1, 3) * x, -2, 0),
    "clamp above": (lambda x: x.clamp(max=-3) * x, -2, 0),
    "clamp_min": (lambda x: x.clamp_min(-3) * x.clamp_min(1), -2, 0),
    "clamp_max": (lambda x: x.clamp_max(3) * x.clamp_max(-3), -2, 0),
    "fmod": (lambda x: torch.fmod(x, 0.8) * x, -1.5, -1.1),
    "remainder": (lambda x: torch.remainder(x, 0.8) * x, -1.5, -1.1),
    "remainder of a number": (lambda x: torch.remainder(3.0, x) * x, 1.7, 2.3),
    "by a number": (lambda x: (x / 2 + 3) * 2 - (1 - x) / 3, -1, 1),
    "of a number": (lambda x: 2 / x, 1, 2),
    "div to whole numbers": (lambda x: torch.div(x, 3.0, rounding_mode="floor") * x, 4, 5),
    "copysign": (lambda x: torch.copysign(x, -2.0) * x, 1, 2),
    "xlogy of a number": (lambda x: torch.xlogy(2.0, x), 1, 2),
    "xlogy with a number": (lambda x: torch.xlogy(x, 2.0), 1, 2),
    "xlog1py of a number": (lambda x: special.xlog1py(2.0, x), 1, 2),
    "xlog1py with a number": (lambda x: special.xlog1py(x, 2.0), 1, 2),
    "zeta": (lambda x: special.zeta(2.5, x), 2, 3),
    "zeta of a tensor": (lambda x: special.zeta(torch.tensor(2.5, dtype=torch.float64), x), 2, 3),
    "gammainc": (lambda x: special.gammainc(torch.tensor(2.5, dtype=torch.float64), x), 2, 3),
    "gammaincc": (lambda x: special.gammaincc(torch.tensor(2.5, dtype=torch.float64), x), 2, 3),
}


def _between(low, high, *shape):
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


@pytest.mark.parametrize("case", UNARY)
def test_unary(case):
    function, low, high = UNARY[case]
    check(function, _between(low, high, 2, 3))


@pytest.mark.parametrize("case", ["exp", "sinc", "x²", "clamp inside", "bessel_j0", "logit with eps"])
def test_unary_of_a_tensor_without_axes(case):
    function, low, high = UNARY[case]
    check(function, _between(low, high))


# Of two or three arguments; either may be constant.
BINARY = {
    "add": (lambda a, b: torch.add(a, b, alpha=3), (-1, 1), (-1, 1)),
    "sub": (lambda a, b: torch.sub(a, b, alpha=3), (-1, 1), (-1, 1)),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=3), (-1, 1), (-1, 1)),
    "mul": (torch.mul, (-1, 1), (-1, 1)),
    "div": (torch.div, (-1, 1), (1, 2)),
    "div to whole numbers": (lambda a, b: torch.div(a, b, rounding_mode="trunc") * a * b, (-2.7, -2.3), (0.98, 1.02)),
    "floor_divide": (lambda a, b: torch.floor_divide(a, b) * a * b, (-2.7, -2.3), (0.98, 1.02)),
    "pow": (torch.pow, (1, 2), (-1, 1)),
    "pow of numbers below zero": (lambda a, b: torch.pow(-b, torch.tensor(3.0)) * a, (1, 2), (1, 2)),
    "float_power": (torch.float_power, (1, 2), (-1, 1)),
    "atan2": (torch.atan2, (1, 2), (-2, -1)),
    "hypot": (torch.hypot, (1, 2), (-2, -1)),
    "maximum": (lambda a, b: torch.maximum(a, b) * a, (1, 2), (-2, 0)),
    "minimum": (lambda a, b: torch.minimum(a, b) * a, (1, 2), (-2, 0)),
    "fmax": (lambda a, b: torch.fmax(a, b) * a, (1, 2), (-2, 0)),
    "fmin": (lambda a, b: torch.fmin(a, b) * a, (1, 2), (-2, 0)),
    "clamp by tensors": (lambda a, b: a.clamp(b, b + 2.0) * a, (2, 3), (-2, -1)),
    "clamp_min by a tensor": (lambda a, b: a.clamp_min(b) * a, (2, 3), (-2, -1)),
    "clamp_max by a tensor": (lambda a, b: a.clamp_max(b) * a, (2, 3), (-2, -1)),
    "copysign": (lambda a, b: torch.copysign(a, b) * a, (1, 2), (-2, -1)),
    "xlogy": (torch.xlogy, (-1, 1), (1, 2)),
    "xlog1py": (special.xlog1py, (-1, 1), (1, 2)),
    "logaddexp": (torch.logaddexp, (-1, 1), (-1, 1)),
    "logaddexp2": (torch.logaddexp2, (-1, 1), (-1, 1)),
    "ldexp": (torch.ldexp, (-1, 1), (-1, 1)),
    "fmod": (lambda a, b: torch.fmod(a, b) * a, (-2.7, -2.3), (0.98, 1.02)),
    "remainder": (lambda a, b: torch.remainder(a, b) * a, (-2.7, -2.3), (0.98, 1.02)),
    "lerp by a number": (lambda a, b: torch.lerp(a, b, 0.3), (-1, 1), (-1, 1)),
    "lerp": (torch.lerp, (-1, 1), (-1, 1), (-1, 1)),
    "addcmul": (lambda a, b, c: torch.addcmul(a, b, c, value=3), (-1, 1), (-1, 1), (-1, 1)),
    "addcdiv": (lambda a, b, c: torch.addcdiv(a, b, c, value=3), (-1, 1), (-1, 1), (1, 2)),
    "heaviside": (lambda a, b: torch.heaviside(a, b) * a * b, (1, 2), (1, 2)),
}


@pytest.mark.parametrize("case", BINARY)
def test_binary(case):
    function, *ranges = BINARY[case]
    check(function, *(_between(low, high, 2, 3) for low, high in ranges))


@pytest.mark.parametrize("case", BINARY)
def test_binary_with_constants(case):
    """Broadcast, both ways."""
    function, *ranges = BINARY[case]
    for i, (low, high) in enumerate(ranges):
        for shape, other in (((3,), (2, 3)), ((2, 1), (1, 3)), ((2, 3), ()), ((), (2, 3))):
            constants = [_between(*limits, *other) for limits in ranges]

            def alone(x, i=i, constants=constants):
                return function(*constants[:i], x, *constants[i + 1 :])

            check(alone, _between(low, high, *shape), count=2)


@pytest.mark.parametrize("case", BINARY)
def test_binary_broadcast(case):
    function, *ranges = BINARY[case]
    shapes = [(2, 1), (3,), (1, 3)]
    check(function, *(_between(low, high, *shape) for (low, high), shape in zip(ranges, shapes, strict=False)), count=2)


def _second(function, *inputs):
    """The second derivatives summed over the unit directions of inputs without axes, and the first."""
    count = len(inputs)
    units = torch.eye(count, dtype=torch.float64).unbind(1)
    value, first, second = by_jets(function, inputs, units, Sum(), Engine(recording=False, depth=0))
    return value.item(), first.tolist(), second.item()


def _number(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "inputs", "first", "second"),
    [
        (torch.pow, (0.0, 2.0), [0, 0], 2),  # of 0², with respect to base and exponent
        (torch.pow, (0.0, 3.0), [0, 0], 0),
        (torch.xlogy, (0.0, 0.0), [0, 0], 0),
        (torch.atan2, (0.0, 0.0), [0, 0], 0),
        (torch.logaddexp, (-math.inf, 1.0), [0, 1], 0),
        (torch.logaddexp, (1.0, -math.inf), [1, 0], 0),
        (torch.maximum, (1.0, 1.0), [0.5, 0.5], 0),
        (torch.fmax, (1.0, math.nan), [1, 0], 0),
        (torch.fmin, (math.nan, 1.0), [0, 1], 0),
        (torch.abs, (0.0,), [0], 0),
        (lambda x: x.clamp(0, 1), (0.0,), [1], 0),
        (torch.nan_to_num, (math.nan,), [0], 0),
        (torch.nan_to_num, (math.inf,), [0], 0),
        (torch.sinc, (0.0,), [0], -(math.pi**2) / 3),
        (special.bessel_j1, (0.0,), [0.5], 0),
        (special.log_ndtr, (-1e3,), [1000.000999998], -1 + 1e-6),
        (special.log_ndtr, (1e6,), [0], 0),
        (torch.erf, (1e200,), [0], 0),
        (torch.sigmoid, (-1e6,), [0], 0),
        (torch.tanh, (1e6,), [0], 0),
    ],
)
def test_at_the_edge(function, inputs, first, second):
    _, got_first, got = _second(function, *map(_number, inputs))
    assert got_first == pytest.approx(first, rel=1e-11, abs=1e-11)
    assert got == pytest.approx(second, abs=1e-8)


@pytest.mark.parametrize(
    "name", ["bessel_j0", "bessel_j1", "bessel_y1", "modified_bessel_k1", "i1e", "sinc", "log_ndtr"]
)
def test_third_derivatives(name):
    """By the gradient of a second derivative."""
    function = getattr(special, name)

    def second(x):
        engine = Engine(recording=True, depth=0)
        return by_jets(function, (x,), (torch.ones(1, dtype=x.dtype),), Sum(), engine)[2]

    for x in (_number(1.3), _number(0.3)):
        wanted, _ = differences(second, (x,), (torch.ones_like(x),))
        assert torch.func.grad(second)(x).item() == pytest.approx(wanted.item(), rel=1e-7)


def test_functions_that_pytorch_takes_for_constant_are_refused():
    with pytest.raises(JacfnError, match=r"torch.special.legendre_polynomial_p has no derivatives in PyTorch"):
        _second(lambda x: special.legendre_polynomial_p(x, 3), _number(0.5))
    with pytest.raises(JacfnError, match=r"torch.special.airy_ai has no derivatives"):
        _second(special.airy_ai, _number(0.5))


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    cut=st.integers(0, 3),
    case=st.sampled_from(["mul", "div", "atan2", "pow", "maximum", "lerp"]),
)
def test_any_shapes(shape, cut, case):
    """One argument has fewer axes, or axes of length one."""
    function, *ranges = BINARY[case]
    other = [1 if i % 2 else n for i, n in enumerate(shape)][cut:]
    shapes = [shape, other, shape]
    check(function, *(_between(low, high, *s) for (low, high), s in zip(ranges, shapes, strict=False)), count=1)
