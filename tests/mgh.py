"""Least-squares problems with published answers.

``PROBLEMS`` holds the 35 functions of Moré, Garbow and Hillstrom, "Testing unconstrained optimization software" (ACM
Transactions on Mathematical Software 7, 1981), among them the 18 of MINPACK's own least-squares tests in the sizes and
from the starts used there. ``NIST`` holds regressions from NIST's Statistical Reference Datasets.

A residual function takes one vector and is pure: ``torch.func`` transforms of it, and ``vmap`` over many starts, work,
in the dtype and on the device of its argument. The numbers in the docstrings are the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

FACTORS = (1, 10, 100)


@dataclass(frozen=True)
class Optimum:
    """A stationary value of the sum of squares, in most cases a minimum: to 16 digits, and as published."""

    cost: float
    published: float | None = None  # mostly cut off after the last digit, not rounded
    digits: int = 6
    x: tuple[float, ...] | None = None  # the only such point; None where there are several, or none but infinity


@dataclass(frozen=True)
class Problem:
    """``m`` residuals of ``n`` unknowns, the standard start and the stationary values, the lowest first."""

    name: str
    residuals: Callable[[Tensor], Tensor]
    m: int
    x0: tuple[float, ...]
    optima: tuple[Optimum, ...]
    starts: tuple[int, ...] = (0, 0, 0)  # from each of FACTORS times x0, the optimum that MINPACK's lmder finds

    @property
    def n(self) -> int:
        return len(self.x0)

    @property
    def costs(self) -> tuple[float, ...]:
        """The sums of squares to end at."""
        return tuple(optimum.cost for optimum in self.optima)

    def start(self, factor: float = 1) -> Tensor:
        """``factor`` times ``x0``; as in MINPACK all entries are ``factor`` where ``x0`` is zero."""
        x0 = torch.tensor(self.x0, dtype=torch.float64)
        return factor * x0 if factor == 1 or x0.any() else torch.full_like(x0, factor)

    def cases(self) -> list[tuple[int, Optimum]]:
        """Pairs of a factor for the start and what MINPACK's lmder finds from there."""
        return [(factor, self.optima[i]) for factor, i in zip(FACTORS, self.starts, strict=False)]


def _like(x: Tensor, values: tuple[float, ...]) -> Tensor:
    """``values`` as a tensor of the dtype and on the device of ``x``."""
    return torch.tensor(values, dtype=x.dtype, device=x.device)


def _to(x: Tensor, last: int, first: int = 1) -> Tensor:
    """``first, first + 1, ..., last``, of the dtype and on the device of ``x``."""
    return torch.arange(first, last + 1, dtype=x.dtype, device=x.device)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The entry before and the entry after each, zero beyond the ends."""
    return F.pad(x, (1, 0))[:-1], F.pad(x, (0, 1))[1:]


# Linear.


def linear_full_rank(x: Tensor, m: int) -> Tensor:
    """32. Linear function, full rank."""
    return F.pad(x, (0, m - len(x))) - 2 / m * x.sum() - 1


def linear_rank_one(x: Tensor, m: int) -> Tensor:
    """33. Linear function, rank 1."""
    return _to(x, m) * (_to(x, len(x)) @ x) - 1


def linear_rank_one_zeros(x: Tensor, m: int) -> Tensor:
    """34. Linear function, rank 1, with zero columns and rows."""
    rows, columns = F.pad(_to(x, m - 2), (1, 1)), F.pad(_to(x, len(x) - 1, 2), (1, 1))
    return rows * (columns @ x) - 1


# Polynomials.


def rosenbrock(x: Tensor) -> Tensor:
    """1 and 21. Rosenbrock's valley, and its extension to any even ``n``."""
    a, b = x.reshape(-1, 2).unbind(-1)
    return torch.stack([10 * (b - a**2), 1 - a], -1).flatten()


def powell_singular(x: Tensor) -> Tensor:
    """13 and 22. Powell's function, whose Jacobian is singular at the minimum, and its extension to ``n = 4 k``."""
    a, b, c, d = x.reshape(-1, 4).unbind(-1)
    rows = [a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return torch.stack(rows, -1).flatten()


def freudenstein_roth(x: Tensor) -> Tensor:
    """2. Freudenstein and Roth: a second minimum waits beside the way to the first."""
    a, b = x.unbind()
    return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def brown_badly_scaled(x: Tensor) -> Tensor:
    """4. Brown's badly scaled function: unknowns of 1e6 and 2e-6."""
    a, b = x.unbind()
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x: Tensor) -> Tensor:
    """5. Beale."""
    a, b = x.unbind()
    return _like(x, (1.5, 2.25, 2.625)) - a * (1 - torch.stack([b, b**2, b**3]))


def wood(x: Tensor) -> Tensor:
    """14. Wood."""
    a, b, c, d = x.unbind()
    root = math.sqrt(10)
    rows = [10 * (b - a**2), 1 - a, 3 * root * (d - c**2), 1 - c, root * (b + d - 2), (b - d) / root]
    return torch.stack(rows)


def penalty_one(x: Tensor) -> Tensor:
    """23. Penalty function I."""
    return torch.cat([math.sqrt(1e-5) * (x - 1), (x @ x - 0.25).reshape(1)])


def variably_dimensioned(x: Tensor) -> Tensor:
    """25. Variably dimensioned function."""
    s = _to(x, len(x)) @ (x - 1)
    return torch.cat([x - 1, torch.stack([s, s**2])])


def brown_almost_linear(x: Tensor) -> Tensor:
    """27. Brown's almost-linear function: all rows linear but the last."""
    return torch.cat([(x + x.sum() - (len(x) + 1))[:-1], (x.prod() - 1).reshape(1)])


def broyden_tridiagonal(x: Tensor) -> Tensor:
    """30. Broyden's tridiagonal function."""
    before, after = _neighbours(x)
    return (3 - 2 * x) * x - before - 2 * after + 1


def broyden_banded(x: Tensor) -> Tensor:
    """31. Broyden's banded function: five neighbours before, one after."""
    ones = x.new_ones(len(x), len(x))
    band = ones.tril(-1).triu(-5) + ones.triu(1).tril(1)
    return x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))


def discrete_boundary_value(x: Tensor) -> Tensor:
    """28. Discrete boundary value problem."""
    h = 1 / (len(x) + 1)
    before, after = _neighbours(x)
    return 2 * x - before - after + h**2 / 2 * (x + h * _to(x, len(x)) + 1) ** 3


def discrete_integral_equation(x: Tensor) -> Tensor:
    """29. Discrete integral equation: the boundary value problem through its Green's function."""
    h = 1 / (len(x) + 1)
    t = h * _to(x, len(x))
    green = torch.minimum(t[:, None], t) * (1 - torch.maximum(t[:, None], t))
    return x + h / 2 * (green @ (x + t + 1) ** 3)


def watson(x: Tensor) -> Tensor:
    """20. Watson: a polynomial of degree ``n - 1`` for y' = y^2 + 1, ever worse conditioned as ``n`` grows."""
    n = len(x)
    powers = (_to(x, 29)[:, None] / 29) ** _to(x, n - 1, 0)
    slope = powers[:, :-1] @ (_to(x, n - 1) * x[1:])
    return torch.cat([slope - (powers @ x) ** 2 - 1, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])


def chebyquad(x: Tensor, m: int) -> Tensor:
    """35. Chebyquad: means of shifted Chebyshev polynomials against their integrals."""
    y = 2 * x - 1
    chebyshev = [torch.ones_like(y), y]
    for _ in range(m - 1):
        chebyshev.append(2 * y * chebyshev[-1] - chebyshev[-2])
    integrals = tuple(-1 / (i**2 - 1) if i % 2 == 0 else 0.0 for i in range(1, m + 1))
    return torch.stack(chebyshev[1:]).mean(1) - _like(x, integrals)


# Rational functions, and the other curves that were fitted to data.

BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)  # and down again
KOWALIK_OSBORNE_X = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
KOWALIK_OSBORNE_Y = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
# fmt: off
MEYER = (
    34780.0, 28610.0, 23650.0, 19630.0, 16370.0, 13720.0, 11540.0, 9744.0, 8261.0, 7030.0, 6005.0, 5147.0, 4427.0,
    3820.0, 3307.0, 2872.0,
)
OSBORNE_ONE = (
    0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685, 0.658, 0.628, 0.603,
    0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411,
    0.406,
)
OSBORNE_TWO = (
    1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608, 0.655, 0.616, 0.606,
    0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423,
    0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668,
    0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098,
    0.054,
)
# fmt: on


def bard(x: Tensor) -> Tensor:
    """8. Bard."""
    a, b, c = x.unbind()
    up = _to(x, 15)
    down = 16 - up
    return _like(x, BARD) - (a + up / (down * b + torch.minimum(up, down) * c))


def kowalik_osborne(x: Tensor) -> Tensor:
    """15. Kowalik and Osborne: linear over quadratic."""
    return _like(x, KOWALIK_OSBORNE_Y) - _linear_over_quadratic(x, _like(x, KOWALIK_OSBORNE_X))


def _linear_over_quadratic(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * x * (x + b[1]) / (x * (x + b[2]) + b[3])


def gaussian(x: Tensor) -> Tensor:
    """9. Gaussian."""
    a, b, c = x.unbind()
    t = (8 - _to(x, 15)) / 2
    return a * torch.exp(-b / 2 * (t - c) ** 2) - _like(x, GAUSSIAN + GAUSSIAN[-2::-1])


def meyer(x: Tensor) -> Tensor:
    """10. Meyer: a thermistor's resistance; the path to the minimum is a long, curved, flat valley."""
    a, b, c = x.unbind()
    return a * torch.exp(b / (45 + 5 * _to(x, 16) + c)) - _like(x, MEYER)


def osborne_one(x: Tensor) -> Tensor:
    """17. Osborne's first function: two exponentials."""
    t = 10 * _to(x, 32, 0)
    return _like(x, OSBORNE_ONE) - (x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4]))


def osborne_two(x: Tensor) -> Tensor:
    """19. Osborne's second function: an exponential and three peaks."""
    t = _to(x, 64, 0) / 10
    exponents = [t * x[4], x[5] * (t - x[8]) ** 2, x[6] * (t - x[9]) ** 2, x[7] * (t - x[10]) ** 2]
    return _like(x, OSBORNE_TWO) - x[:4] @ torch.exp(-torch.stack(exponents))


# Exponentials, sines and the angle.


def powell_badly_scaled(x: Tensor) -> Tensor:
    """3. Powell's badly scaled function."""
    a, b = x.unbind()
    return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001])


def jennrich_sampson(x: Tensor) -> Tensor:
    """6. Jennrich and Sampson: both unknowns equal at the minimum, where the residuals are large."""
    i = _to(x, 10)
    return 2 + 2 * i - torch.exp(i * x[0]) - torch.exp(i * x[1])


def box(x: Tensor) -> Tensor:
    """12. Box's three-dimensional function: a point, its mirror image, and a whole line of minima."""
    a, b, c = x.unbind()
    t = _to(x, 10) / 10
    return torch.exp(-t * a) - torch.exp(-t * b) - c * (torch.exp(-t) - torch.exp(-10 * t))


def biggs_exp6(x: Tensor) -> Tensor:
    """18. Biggs's EXP6 function."""
    t = _to(x, 13) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y


def brown_dennis(x: Tensor) -> Tensor:
    """16. Brown and Dennis: large residuals, on which Gauss-Newton steps are poor."""
    a, b, c, d = x.unbind()
    t = _to(x, 20) / 5
    return (a + t * b - torch.exp(t)) ** 2 + (c + torch.sin(t) * d - torch.cos(t)) ** 2


def penalty_two(x: Tensor) -> Tensor:
    """24. Penalty function II."""
    n = len(x)
    e, y = torch.exp(x / 10), torch.exp(_to(x, n) / 10)
    pairs = (e[1:] + e[:-1]) - (y[1:] + y[:-1])
    small = math.sqrt(1e-5) * torch.cat([pairs, e[1:] - math.exp(-0.1)])
    return torch.cat([x[:1] - 0.2, small, ((n + 1 - _to(x, n)) @ x**2 - 1).reshape(1)])


def trigonometric(x: Tensor) -> Tensor:
    """26. Trigonometric function."""
    n = len(x)
    return n - torch.cos(x).sum() + _to(x, n) * (1 - torch.cos(x)) - torch.sin(x)


def gulf(x: Tensor) -> Tensor:
    """11. Gulf research and development; the paper's ``|y m i x2|`` is a misprint for ``|y - x2|``."""
    a, b, c = x.unbind()
    t = _to(x, 99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-(torch.abs(y - b) ** c) / a) - t


def helical_valley(x: Tensor) -> Tensor:
    """7. Helical valley; the turn lies in [-1/4, 3/4], cut along the negative second axis."""
    a, b, c = x.unbind()
    turn = torch.atan2(b, a) / (2 * math.pi)
    turn = turn + (turn < -0.25)
    return torch.stack([10 * (c - 10 * turn), 10 * (torch.sqrt(a**2 + b**2) - 1), c])


# The answers: minima polished in 60 digits, the data taken as exact decimals, then rounded once.

# fmt: off
KOWALIK_OSBORNE = (0.19280693457903786, 0.19128232873436696, 0.12305650692632066, 0.13606233068379484)
KOWALIK_OSBORNE_BETWEEN_POLES = (
    0.2253564377988867, -0.41475380600553824, -0.02445269621513163, -0.17796965980126556,
)
BROWN_DENNIS = (-11.594439904762165, 13.203630051207204, -0.40343948817685954, 0.2367787744557363)
WATSON_6 = (
    -0.015725086401458456, 1.0124348693691099, -0.2329916259567377, 1.2604300877996084, -1.5137289227222797,
    0.9929964324311346,
)
WATSON_9 = (
    -1.5307036521394342e-05, 0.9997897039319483, 0.014763963693556958, 0.14634232829936222, 1.0008211030047092,
    -2.617731140519015, 4.104403164478857, -3.1436122785564424, 1.0526264080101668,
)
WATSON_12 = (
    -6.638060464520687e-09, 1.000001644117862, -0.0005639322103423058, 0.34782054050404243, -0.15673150409616513,
    1.0528151772071777, -3.2472711534596677, 7.288434897938061, -10.271848241321724, 9.074113647075317,
    -4.541375466692512, 1.0120118885528104,
)
PENALTY_TWO_4 = (0.1999993333503804, 0.19131670099277245, 0.48010148533262315, 0.5188454043902005)
PENALTY_TWO_10 = (
    0.1999836051978236, 0.010350648471292297, 0.019604934480438402, 0.03208906722068565, 0.049932677399641294,
    0.07651399515399361, 0.11862407286950417, 0.19214487233557667, 0.34732058694184365, 0.3691643741593508,
)
BOUNDARY_VALUE = (
    -0.04316498251876487, -0.08157715653538689, -0.11448571438052929, -0.14097357686259668, -0.1599086961819831,
    -0.16987720231277492, -0.16908998378120835, -0.15524953522183182, -0.125355891678935, -0.07541653368589209,
)
BROYDEN_BANDED = (
    -0.4283028635872503, -0.47659642435629024, -0.5196524636468617, -0.5580993248321809, -0.5925061568294574,
    -0.624503682199468, -0.6232394714405911, -0.6213938417965735, -0.6204535966590874, -0.5864692707204351,
)
# fmt: on


def _inner(n: int) -> tuple[float, ...]:
    """``n`` points that divide the unit interval evenly."""
    return tuple(i / (n + 1) for i in range(1, n + 1))


def _parabola(n: int) -> tuple[float, ...]:
    """The start of the discretised boundary value problem."""
    return tuple(t * (t - 1) for t in _inner(n))


def _count(n: int) -> tuple[float, ...]:
    return tuple(float(i) for i in range(1, n + 1))


def _zero(*x: float) -> Optimum:
    """All residuals vanish, at ``x`` if that is the only place."""
    return Optimum(0.0, published=0.0, x=x or None)


def _linear(kind: str, fn: Callable[..., Tensor], m: int, optimum: Optimum) -> Problem:
    return Problem(f"linear, {kind}, m={m}", partial(fn, m=m), m, (1.0,) * 5, (optimum,))


# fmt: off
PROBLEMS = [
    # MINPACK's own, in its order.
    _linear("full rank", linear_full_rank, 10, Optimum(5.0, 5.0, x=(-1.0,) * 5)),
    _linear("full rank", linear_full_rank, 50, Optimum(45.0, 45.0, x=(-1.0,) * 5)),
    _linear("rank 1", linear_rank_one, 10, Optimum(15 / 7)),
    _linear("rank 1", linear_rank_one, 50, Optimum(1225 / 101)),
    _linear("rank 1 with zeros", linear_rank_one_zeros, 10, Optimum(62 / 17)),
    _linear("rank 1 with zeros", linear_rank_one_zeros, 50, Optimum(1322 / 97)),
    Problem("Rosenbrock", rosenbrock, 2, (-1.2, 1.0), (_zero(1.0, 1.0),)),
    Problem("helical valley", helical_valley, 3, (-1.0, 0.0, 0.0), (_zero(1.0, 0.0, 0.0),)),
    Problem("Powell singular", powell_singular, 4, (3.0, -1.0, 0.0, 1.0), (_zero(0.0, 0.0, 0.0, 0.0),)),
    Problem("Freudenstein-Roth", freudenstein_roth, 2, (0.5, -2.0), (
        _zero(5.0, 4.0),
        Optimum(48.98425367924002, 48.9842, x=(11.412778986902094, -0.8968052532744765)),
    ), starts=(1, 1, 1)),
    Problem("Bard", bard, 15, (1.0, 1.0, 1.0), (
        Optimum(0.008214877306578975, 8.21487e-3, x=(0.08241055974978893, 1.1330360920297216, 2.343695178642537)),
        Optimum(17.428693333333333, 17.4286),  # at (0.8406..., -inf, -inf), a constant
    ), starts=(0, 1, 1)),
    Problem("Kowalik-Osborne", kowalik_osborne, 11, (0.25, 0.39, 0.415, 0.39), (
        Optimum(0.00030750560384923743, 3.07505e-4, x=KOWALIK_OSBORNE),
        Optimum(0.00042367462646983446, x=KOWALIK_OSBORNE_BETWEEN_POLES),
        Optimum(0.0010273430486954578, 1.02734e-3),  # at (inf, -14.07..., -inf, -inf)
    ), starts=(0, 2, 0)),
    Problem("Meyer", meyer, 16, (0.02, 4000.0, 250.0), (  # lmder evaluates 1800 times from the second start
        Optimum(87.94585517085112, 87.9458, x=(0.005609636471028053, 6181.346346286372, 345.2236346241365)),
    )),
    Problem("Watson, n=6", watson, 31, (0.0,) * 6, (Optimum(0.002287670053552436, 2.28767e-3, x=WATSON_6),)),
    Problem("Watson, n=9", watson, 31, (0.0,) * 9, (Optimum(1.39976013809902e-06, 1.39976e-6, x=WATSON_9),)),
    Problem("Watson, n=12", watson, 31, (0.0,) * 12, (Optimum(4.722381105891757e-10, 4.72238e-10, x=WATSON_12),)),
    Problem("Box 3-D", box, 10, (0.0, 10.0, 20.0), (
        _zero(),  # at (1, 10, 1), at (10, 1, -1), and wherever x1 = x2 and x3 = 0
        Optimum(0.0755887407549974),  # at (0.6136..., inf, 1.3199...)
    ), starts=(0, 1, 1)),
    Problem("Jennrich-Sampson", jennrich_sampson, 10, (0.3, 0.4), (
        Optimum(124.36218235561485, 124.362, x=(0.2578252136703641, 0.2578252136703641)),
        Optimum(259.5801901342533),  # at -inf and 0.3314...
    ), starts=(0, 1)),  # the third overflows
    Problem("Brown-Dennis", brown_dennis, 20, (25.0, 5.0, -5.0, -1.0), (
        Optimum(85822.20162635634, 85822.2, x=BROWN_DENNIS),
    )),
    Problem("Chebyquad, n=1, m=8", partial(chebyquad, m=8), 8, (0.5,), (
        Optimum(3.0665272323984174),  # this and the next three at x and at 1 - x
        Optimum(3.239086001246635),
        Optimum(3.4914821701392335),
        Optimum(3.550391297675725),
        Optimum(3.557893675988914, x=(0.5,)),  # the standard start is a maximum
    ), starts=(4, 3, 3)),
    Problem("Chebyquad, n=8", partial(chebyquad, m=8), 8, _inner(8), (
        Optimum(0.0035168737256779316, 3.51687e-3),
    ), starts=(0,)),
    Problem("Chebyquad, n=9", partial(chebyquad, m=9), 9, _inner(9), (_zero(),), (0,)),
    Problem("Chebyquad, n=10", partial(chebyquad, m=10), 10, _inner(10), (
        Optimum(0.004772713696375349, 4.772713e-3, digits=7),  # in CUTEst's list, not in the paper
        Optimum(0.006503954800882306, 6.50395e-3),
        Optimum(0.009500628850221672),
    ), starts=(1,)),
    # Several zeros; all unknowns zero but the last, n + 1, give the other value.
    Problem("Brown almost linear, n=10", brown_almost_linear, 10, (0.5,) * 10, (_zero(), Optimum(1.0, 1.0))),
    Problem("Brown almost linear, n=30", brown_almost_linear, 30, (0.5,) * 30, (_zero(), Optimum(1.0, 1.0))),
    Problem("Brown almost linear, n=40", brown_almost_linear, 40, (0.5,) * 40, (_zero(), Optimum(1.0, 1.0)), (0, 0)),
    Problem("Osborne 1", osborne_one, 33, (0.5, 1.5, -1.0, 0.01, 0.02), (
        Optimum(5.4648946974829064e-05, 5.46489e-5),  # the two exponentials may change places
    ), starts=(0, 0)),
    Problem("Osborne 2", osborne_two, 65, (1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5), (
        Optimum(0.040137736293547735, 4.01377e-2),  # the three peaks may change places
        Optimum(1.7898135868810932),  # the peaks beyond the data: nine columns are zero
    ), starts=(0, 1, 1)),
    # The rest of the paper's.
    Problem("Powell badly scaled", powell_badly_scaled, 2, (0.0, 1.0), (_zero(),), (0,)),  # 1.098...e-5 and 9.106...
    Problem("Brown badly scaled", brown_badly_scaled, 3, (1.0, 1.0), (_zero(1e6, 2e-6),)),
    Problem("Beale", beale, 3, (1.0, 1.0), (
        _zero(3.0, 0.5),
        Optimum(0.45200892857142855),  # at (-inf, 1), too slow to reach
    ), starts=(0,)),
    Problem("Gaussian", gaussian, 15, (0.4, 1.0, 0.0), (
        Optimum(1.127932769618648e-08, 1.12793e-8, x=(0.39895613783875666, 1.0000190844878056, 0.0)),
    )),
    Problem("Gulf", gulf, 99, (5.0, 2.5, 0.15), (_zero(50.0, 25.0, 1.5),), (0, 0)),  # the second start is the answer
    Problem("Wood", wood, 6, (-3.0, -1.0, -3.0, -1.0), (_zero(1.0, 1.0, 1.0, 1.0),)),
    Problem("Biggs EXP6", biggs_exp6, 13, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (
        _zero(),  # at (1, 10, 1, 5, 4, 3) and (4, 10, 3, 5, 1, 1)
        Optimum(0.005655649925499931, 5.65565e-3),  # a saddle with x1 = x5, x3 = x6, which exact steps would keep equal
        Optimum(0.3063667726247898),  # at x2 = inf and x1 = x5
    ), starts=(0, 0, 2)),
    Problem("extended Rosenbrock, n=12", rosenbrock, 12, (-1.2, 1.0) * 6, (_zero(*[1.0] * 12),)),
    Problem("extended Powell singular, n=16", powell_singular, 16, (3.0, -1.0, 0.0, 1.0) * 4, (_zero(*[0.0] * 16),)),
    Problem("penalty I, n=4", penalty_one, 5, _count(4), (
        Optimum(2.249977500899937e-05, 2.24997e-5, x=(0.2500074995875379,) * 4),
    )),
    Problem("penalty I, n=10", penalty_one, 11, _count(10), (
        Optimum(7.08765146709037e-05, 7.08765e-5, x=(0.15812230111311634,) * 10),
    )),
    Problem("penalty II, n=4", penalty_two, 8, (0.5,) * 4, (
        Optimum(9.376293007355442e-06, 9.37629e-6, x=PENALTY_TWO_4),
    )),
    Problem("penalty II, n=10", penalty_two, 20, (0.5,) * 10, (
        Optimum(0.0002936605374567459, 2.93660e-4, x=PENALTY_TWO_10),
    )),
    Problem("variably dimensioned, n=10", variably_dimensioned, 12, tuple(1 - i / 10 for i in _count(10)), (
        _zero(*[1.0] * 10),
    )),
    Problem("trigonometric, n=10", trigonometric, 10, (0.1,) * 10, (
        _zero(),  # at multiples of 2 pi
        Optimum(4.473565812806295e-07),
        Optimum(2.7950561218794563e-05),
        Optimum(4.218633887923726e-05),
        Optimum(0.0008788225218218983),
    ), starts=(2, 2, 2)),
    Problem("discrete boundary value, n=10", discrete_boundary_value, 10, _parabola(10), (_zero(*BOUNDARY_VALUE),)),
    Problem("discrete integral equation, n=10", discrete_integral_equation, 10, _parabola(10), (
        _zero(*BOUNDARY_VALUE),
    )),
    Problem("Broyden tridiagonal, n=10", broyden_tridiagonal, 10, (-1.0,) * 10, (_zero(),)),
    Problem("Broyden banded, n=10", broyden_banded, 10, (-1.0,) * 10, (_zero(*BROYDEN_BANDED),)),
]
# fmt: on


# NIST's Statistical Reference Datasets, nonlinear regression.


@dataclass(frozen=True)
class Regression:
    """``y = model(b, x) + noise``; ``b``, its standard errors and the sum of squares are certified to 11 digits."""

    name: str
    model: Callable[[Tensor, Tensor], Tensor]
    x: tuple[float, ...]
    y: tuple[float, ...]
    starts: tuple[tuple[float, ...], tuple[float, ...]]  # a far one and a near one
    b: tuple[float, ...]
    standard_errors: tuple[float, ...]
    cost: float  # sum of squares

    def residuals(self, b: Tensor) -> Tensor:
        return _like(b, self.y) - self.model(b, _like(b, self.x))


def _saturation(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * (1 - torch.exp(-b[1] * x))


def _cubic_over_cubic(b: Tensor, x: Tensor) -> Tensor:
    return (b[0] + x * (b[1] + x * (b[2] + x * b[3]))) / (1 + x * (b[4] + x * (b[5] + x * b[6])))


# fmt: off
MISRA_X = (77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0)
MISRA_Y = (10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78)

NIST = [
    Regression(
        "Misra1a", _saturation, MISRA_X, MISRA_Y,
        starts=((500.0, 0.0001), (250.0, 0.0005)),
        b=(2.3894212918e02, 5.5015643181e-04),
        standard_errors=(2.7070075241e00, 7.2668688436e-06),
        cost=1.2455138894e-01,
    ),
    Regression(
        "Misra1b", lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2), MISRA_X, MISRA_Y,
        starts=((500.0, 0.0001), (300.0, 0.0002)),
        b=(3.3799746163e02, 3.9039091287e-04),
        standard_errors=(3.1643950207e00, 4.2547321834e-06),
        cost=7.5464681533e-02,
    ),
    Regression(
        "Chwirut2", lambda b, x: torch.exp(-b[0] * x) / (b[1] + b[2] * x),
        x=(
            0.5, 1.0, 1.75, 3.75, 5.75, 0.875, 2.25, 3.25, 5.25, 0.75, 1.75, 2.75, 4.75, 0.625, 1.25, 2.25, 4.25, 0.5,
            3.0, 0.75, 3.0, 1.5, 6.0, 3.0, 6.0, 1.5, 3.0, 0.5, 2.0, 4.0, 0.75, 2.0, 5.0, 0.75, 2.25, 3.75, 5.75, 3.0,
            0.75, 2.5, 4.0, 0.75, 2.5, 4.0, 0.75, 2.5, 4.0, 0.5, 6.0, 3.0, 0.5, 2.75, 0.5, 1.75,
        ),
        y=(
            92.9, 57.1, 31.05, 11.5875, 8.025, 63.6, 21.4, 14.25, 8.475, 63.8, 26.8, 16.4625, 7.125, 67.3, 41.0, 21.15,
            8.175, 81.5, 13.12, 59.9, 14.62, 32.9, 5.44, 12.56, 5.44, 32.0, 13.95, 75.8, 20.0, 10.42, 59.5, 21.67,
            8.55, 62.0, 20.2, 7.76, 3.75, 11.81, 54.7, 23.7, 11.55, 61.3, 17.7, 8.74, 59.2, 16.3, 8.62, 81.0, 4.87,
            14.62, 81.7, 17.17, 81.3, 28.9,
        ),
        starts=((0.1, 0.01, 0.02), (0.15, 0.008, 0.010)),
        b=(1.6657666537e-01, 5.1653291286e-03, 1.2150007096e-02),
        standard_errors=(3.8303286810e-02, 6.6621605126e-04, 1.5304234767e-03),
        cost=5.1304802941e02,
    ),
    Regression(
        "Lanczos3",
        lambda b, x: b[0] * torch.exp(-b[1] * x) + b[2] * torch.exp(-b[3] * x) + b[4] * torch.exp(-b[5] * x),
        x=(
            0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9,
            0.95, 1.0, 1.05, 1.1, 1.15,
        ),
        y=(
            2.5134, 2.0443, 1.6684, 1.3664, 1.1232, 0.9269, 0.7679, 0.6389, 0.5338, 0.4479, 0.3776, 0.3197, 0.2720,
            0.2325, 0.1997, 0.1723, 0.1493, 0.1301, 0.1138, 0.1000, 0.0883, 0.0783, 0.0698, 0.0624,
        ),
        starts=((1.2, 0.3, 5.6, 5.5, 6.5, 7.6), (0.5, 0.7, 3.6, 4.2, 4.0, 6.3)),
        b=(
            8.6816414977e-02, 9.5498101505e-01, 8.4400777463e-01, 2.9515951832e00, 1.5825685901e00, 4.9863565084e00,
        ),
        standard_errors=(
            1.7197908859e-02, 9.7041624475e-02, 4.1488663282e-02, 1.0766312506e-01, 5.8371576281e-02, 3.4436403035e-02,
        ),
        cost=1.6117193594e-08,
    ),
    Regression(
        "DanWood", lambda b, x: b[0] * x ** b[1],
        x=(1.309, 1.471, 1.490, 1.565, 1.611, 1.680),
        y=(2.138, 3.421, 3.597, 4.340, 4.882, 5.660),
        starts=((1.0, 5.0), (0.7, 4.0)),
        b=(7.6886226176e-01, 3.8604055871e00),
        standard_errors=(1.8281973860e-02, 5.1726610913e-02),
        cost=4.3173084083e-03,
    ),
    Regression(
        "Misra1c", lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5), MISRA_X, MISRA_Y,
        starts=((500.0, 0.0001), (600.0, 0.0002)),
        b=(6.3642725809e02, 2.0813627256e-04),
        standard_errors=(4.6638326572e00, 1.7728423155e-06),
        cost=4.0966836971e-02,
    ),
    Regression(
        "Misra1d", lambda b, x: b[0] * b[1] * x / (1 + b[1] * x), MISRA_X, MISRA_Y,
        starts=((500.0, 0.0001), (450.0, 0.0003)),
        b=(4.3736970754e02, 3.0227324449e-04),
        standard_errors=(3.6489174345e00, 2.9334354479e-06),
        cost=5.6419295283e-02,
    ),
    Regression(
        "Roszman1", lambda b, x: b[0] - b[1] * x - torch.atan(b[2] / (x - b[3])) / math.pi,
        x=(
            -4868.68, -4868.09, -4867.41, -3375.19, -3373.14, -3372.03, -2473.74, -2472.35, -2469.45, -1894.65,
            -1893.40, -1497.24, -1495.85, -1493.41, -1208.68, -1206.18, -1206.04, -997.92, -996.61, -996.31, -834.94,
            -834.66, -710.03, -530.16, -464.17,
        ),
        y=(
            0.252429, 0.252141, 0.251809, 0.297989, 0.296257, 0.295319, 0.339603, 0.337731, 0.333820, 0.389510,
            0.386998, 0.438864, 0.434887, 0.427893, 0.471568, 0.461699, 0.461144, 0.513532, 0.506641, 0.505062,
            0.535648, 0.533726, 0.568064, 0.612886, 0.624169,
        ),
        starts=((0.1, -0.00001, 1000.0, -100.0), (0.2, -0.000005, 1200.0, -150.0)),
        b=(2.0196866396e-01, -6.1953516256e-06, 1.2044556708e03, -1.8134269537e02),
        standard_errors=(1.9172666023e-02, 3.2058931691e-06, 7.4050983057e01, 4.9573513849e01),
        cost=4.9484847331e-04,
    ),
    Regression(
        "MGH17", lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
        tuple(10.0 * i for i in range(33)), OSBORNE_ONE,
        starts=((50.0, 150.0, -100.0, 1.0, 2.0), (0.5, 1.5, -1.0, 0.01, 0.02)),
        b=(3.7541005211e-01, 1.9358469127e00, -1.4646871366e00, 1.2867534640e-02, 2.2122699662e-02),
        standard_errors=(2.0723153551e-03, 2.2031669222e-01, 2.2175707739e-01, 4.4861358114e-04, 8.9471996575e-04),
        cost=5.4648946975e-05,
    ),
    Regression(
        "MGH09", _linear_over_quadratic, KOWALIK_OSBORNE_X, KOWALIK_OSBORNE_Y,
        starts=((25.0, 39.0, 41.5, 39.0), (0.25, 0.39, 0.415, 0.39)),
        b=(1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01),
        standard_errors=(1.1435312227e-02, 1.9633220911e-01, 8.0842031232e-02, 9.0025542308e-02),
        cost=3.0750560385e-04,
    ),
    Regression(
        "MGH10", lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])), tuple(50.0 + 5 * i for i in range(16)), MEYER,
        starts=((2.0, 400000.0, 25000.0), (0.02, 4000.0, 250.0)),
        b=(5.6096364710e-03, 6.1813463463e03, 3.4522363462e02),
        standard_errors=(1.5687892471e-04, 2.3309021107e01, 7.8486103508e-01),
        cost=8.7945855171e01,
    ),
    Regression(
        "Thurber", _cubic_over_cubic,
        x=(
            -3.067, -2.981, -2.921, -2.912, -2.840, -2.797, -2.702, -2.699, -2.633, -2.481, -2.363, -2.322, -1.501,
            -1.460, -1.274, -1.212, -1.100, -1.046, -0.915, -0.714, -0.566, -0.545, -0.400, -0.309, -0.109, -0.103,
            0.010, 0.119, 0.377, 0.790, 0.963, 1.006, 1.115, 1.572, 1.841, 2.047, 2.200,
        ),
        y=(
            80.574, 84.248, 87.264, 87.195, 89.076, 89.608, 89.868, 90.101, 92.405, 95.854, 100.696, 101.060, 401.672,
            390.724, 567.534, 635.316, 733.054, 759.087, 894.206, 990.785, 1090.109, 1080.914, 1122.643, 1178.351,
            1260.531, 1273.514, 1288.339, 1327.543, 1353.863, 1414.509, 1425.208, 1421.384, 1442.962, 1464.350,
            1468.705, 1447.894, 1457.628,
        ),
        starts=((1000.0, 1000.0, 400.0, 40.0, 0.7, 0.3, 0.03), (1300.0, 1500.0, 500.0, 75.0, 1.0, 0.4, 0.05)),
        b=(
            1.2881396800e03, 1.4910792535e03, 5.8323836877e02, 7.5416644291e01, 9.6629502864e-01, 3.9797285797e-01,
            4.9727297349e-02,
        ),
        standard_errors=(
            4.6647963344e00, 3.9571156086e01, 2.8698696102e01, 5.5675370270e00, 3.1333340687e-02, 1.4984928198e-02,
            6.5842344623e-03,
        ),
        cost=5.6427082397e03,
    ),
    Regression(
        "BoxBOD", _saturation,
        x=(1.0, 2.0, 3.0, 5.0, 7.0, 10.0),
        y=(109.0, 149.0, 149.0, 191.0, 213.0, 224.0),
        starts=((1.0, 1.0), (100.0, 0.75)),  # from the far one lmder runs to b = (mean, inf) and 9771.5
        b=(2.1380940889e02, 5.4723748542e-01),
        standard_errors=(1.2354515176e01, 1.0455993237e-01),
        cost=1.1680088766e03,
    ),
    Regression(
        "Rat42", lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
        x=(9.0, 14.0, 21.0, 28.0, 42.0, 57.0, 63.0, 70.0, 79.0),
        y=(8.93, 10.80, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08),
        starts=((100.0, 1.0, 0.1), (75.0, 2.5, 0.07)),
        b=(7.2462237576e01, 2.6180768402e00, 6.7359200066e-02),
        standard_errors=(1.7340283401e00, 8.8295217536e-02, 3.4465663377e-03),
        cost=8.0565229338e00,
    ),
    Regression(
        "Eckerle4", lambda b, x: b[0] / b[1] * torch.exp(-(((x - b[2]) / b[1]) ** 2) / 2),
        x=(
            400.0, 405.0, 410.0, 415.0, 420.0, 425.0, 430.0, 435.0, 436.5, 438.0, 439.5, 441.0, 442.5, 444.0, 445.5,
            447.0, 448.5, 450.0, 451.5, 453.0, 454.5, 456.0, 457.5, 459.0, 460.5, 462.0, 463.5, 465.0, 470.0, 475.0,
            480.0, 485.0, 490.0, 495.0, 500.0,
        ),
        y=(
            0.0001575, 0.0001699, 0.0002350, 0.0003102, 0.0004917, 0.0008710, 0.0017418, 0.0046400, 0.0065895,
            0.0097302, 0.0149002, 0.0237310, 0.0401683, 0.0712559, 0.1264458, 0.2073413, 0.2902366, 0.3445623,
            0.3698049, 0.3668534, 0.3106727, 0.2078154, 0.1164354, 0.0616764, 0.0337200, 0.0194023, 0.0117831,
            0.0074357, 0.0022732, 0.0008800, 0.0004579, 0.0002345, 0.0001586, 0.0001143, 0.0000710,
        ),
        starts=((1.0, 10.0, 500.0), (1.5, 5.0, 450.0)),
        b=(1.5543827178e00, 4.0888321754e00, 4.5154121844e02),
        standard_errors=(1.5408051163e-02, 4.6803020753e-02, 4.6800518816e-02),
        cost=1.4635887487e-03,
    ),
    Regression(
        "Rat43", lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
        x=tuple(float(i) for i in range(1, 16)),
        y=(
            16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03, 651.92, 724.93, 699.56, 689.96, 637.56,
            717.41,
        ),
        starts=((100.0, 10.0, 1.0, 1.0), (700.0, 5.0, 0.75, 1.3)),
        b=(6.9964151270e02, 5.2771253025e00, 7.5962938329e-01, 1.2792483859e00),
        standard_errors=(1.6302297817e01, 2.0828735829e00, 1.9566123451e-01, 6.8761936385e-01),
        cost=8.7864049080e03,
    ),
]
# fmt: on
