"""Many independent curves: all at once, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import jacfn

from .. import tables, timing
from ..operators.compare import heading, prose
from . import in_jax

#: Curves of which the loops fit only the first ones, and how many.
SOME = 200
#: Relative tolerance of all ways on the cost and the step: SciPy's own.
TOLERANCE = 1.49e-8


@dataclass(frozen=True)
class Curves:
    """``y = a exp(-b t) + c`` with noise, in float64; and where to start, ``(B, 3)``."""

    t: Tensor
    y: Tensor
    start: Tensor


def make(count: int = 10_000, points: int = 20) -> Curves:
    """Amplitudes of 1 to 5, rates of 0.5 to 3, backgrounds of 0 to 1; noise of 1 %."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(count, 3, dtype=torch.float64, generator=generator)
    truth = draw * torch.tensor([4, 2.5, 1]) + torch.tensor([1, 0.5, 0])
    t = torch.linspace(0, 4, points, dtype=torch.float64)
    noise = 0.01 * torch.randn(count, points, dtype=torch.float64, generator=generator)
    y = decay(truth[:, :, None].unbind(1), t) + noise
    return Curves(t, y, torch.ones(count, 3, dtype=torch.float64))


def decay(p: Any, t: Any) -> Any:
    """Of one curve, or of many."""
    exp = torch.exp if isinstance(t, Tensor) else np.exp
    return p[0] * exp(-p[1] * t) + p[2]


def residual(p: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Of one curve."""
    return decay(p, t) - y


# --- the ways -------------------------------------------------------------------------------------


def _ours(curves: Curves, **options: Any) -> Tensor:
    fit = jacfn.levenberg_marquardt(residual, curves.start, curves.t, curves.y, in_dims=(0, None, 0), **options)
    params: Tensor = fit.params
    return params


def _with_tolerance(curves: Curves) -> Tensor:
    return _ours(curves, ftol=TOLERANCE, xtol=TOLERANCE, gtol=0)


def _jacobian(p: Any, t: Any) -> Any:
    fall = np.exp(-p[1] * t)
    return np.stack([fall, -p[0] * t * fall, np.ones_like(t)], 1)


def _curve_fit(curves: Curves) -> Tensor:
    """SciPy's curve_fit, which is MINPACK's lmder here, with the Jacobian written by hand in NumPy."""
    from scipy.optimize import curve_fit

    t, tolerance = curves.t.numpy(), {"ftol": TOLERANCE, "xtol": TOLERANCE}

    def fit(start: Any, y: Any) -> Any:
        return curve_fit(
            lambda t, *p: decay(p, t), t, y, start, jac=lambda t, *p: _jacobian(p, t), method="lm", **tolerance
        )[0]

    starts, data = curves.start.numpy(), curves.y.numpy()
    return torch.from_numpy(np.stack([fit(*pair) for pair in zip(starts, data, strict=True)]))


def _leastsq(curves: Curves) -> Tensor:
    """The same MINPACK routine with nothing around it."""
    from scipy.optimize import leastsq

    t = curves.t.numpy()

    def fit(start: Any, y: Any) -> Any:
        return leastsq(
            lambda p: decay(p, t) - y, start, Dfun=lambda p: _jacobian(p, t), ftol=TOLERANCE, xtol=TOLERANCE
        )[0]

    starts, data = curves.start.numpy(), curves.y.numpy()
    return torch.from_numpy(np.stack([fit(*pair) for pair in zip(starts, data, strict=True)]))


def _one_by_one(curves: Curves) -> Tensor:
    """jacfn in a loop."""
    pairs = zip(curves.start, curves.y, strict=True)
    return torch.stack(
        [
            jacfn.levenberg_marquardt(residual, start, curves.t, y, ftol=TOLERANCE, xtol=TOLERANCE, gtol=0).params
            for start, y in pairs
        ]
    )


OURS = "jacfn, all at once"
AT_ONCE: dict[str, Callable[[Curves], Tensor]] = {OURS: _with_tolerance, "jacfn, default tolerances": _ours}
LOOPS: dict[str, Callable[[Curves], Tensor]] = {
    "loop of scipy curve_fit": _curve_fit,
    "loop of scipy leastsq": _leastsq,
    "loop of jacfn": _one_by_one,
}

# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """Seconds for all curves: of the first call, of the faster of two more; and how many parameters agree."""

    first: float
    seconds: float
    wrong: int
    note: str = ""


def measure(curves: Curves, folder: Path, threads: int, some: int = SOME) -> Iterator[tuple[str, Timed]]:
    """All ways; loops are timed on the first curves."""
    few = Curves(curves.t, curves.y[:some], curves.start[:some])
    reference = _leastsq(few)
    for name, way in AT_ONCE.items():
        found, first = timing.once(lambda way=way: way(curves))
        again = min(timing.once(lambda way=way: way(curves))[1] for _ in range(2))
        yield name, Timed(first, again, wrong(found, reference))
    for name, way in LOOPS.items():
        times = len(curves.y) / len(few.y)
        found, first = timing.once(lambda way=way: way(few))
        again = timing.once(lambda way=way: way(few))[1]
        note = f"{len(few.y)} curves, scaled"
        yield name, Timed(times * first, times * again, wrong(found, reference), note)
    data = {"t": curves.t.numpy(), "y": curves.y.numpy(), "start": curves.start.numpy()}
    for name, answer in in_jax.answers("curves", data, folder, threads):
        if "error" in answer:
            yield name, Timed(math.nan, math.nan, 0, answer["error"])
        else:
            (found,) = answer["arrays"]
            yield name, Timed(answer["first"], answer["seconds"], wrong(torch.from_numpy(found), reference))


def wrong(found: Tensor, reference: Tensor) -> int:
    """How many of the first curves are further than 1e-5 from MINPACK's, relative to the largest parameter."""
    apart = (found[: len(reference)] - reference).abs().amax(1) / reference.abs().amax(1)
    return int((~(apart < 1e-5)).sum())


# --- saying what came out -------------------------------------------------------------------------

HOW = """\
Every curve is a problem of its own, with its own damping and its own end. Tolerances on cost and step are SciPy's
default but where the line says otherwise (jaxopt and optimistix: 1e-8, by tests of their own). first call: with what is
compiled or learnt then. ratio: time of the way / time of jacfn, above 1 means that the way is slower. others: of the
first curves, how many end elsewhere than MINPACK's."""


def section(curves: Curves, timed: dict[str, Timed]) -> str:
    """The table."""
    ours = timed[OURS].seconds if OURS in timed else math.nan
    rows = [
        [
            name,
            tables.significant(result.seconds / ours),
            tables.significant(result.seconds),
            tables.significant(result.first),
            str(result.wrong),
            result.note,
        ]
        for name, result in timed.items()
    ]
    count, points = curves.y.shape
    title = heading(f"{count} exponential decays of {points} points, 3 parameters each, float64")
    header = ["way", "ratio", "seconds", "first call", "others", "note"]
    return "\n\n".join([title, prose(HOW), tables.grid(header, rows)])
