"""How many evaluations jacfn and MINPACK take on the problems of Moré, Garbow and Hillstrom (1981)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

import jacfn

from .. import tables
from ..measure import _one_line as one_line
from ..operators.compare import heading, prose

#: A fit is right if its cost is this near to a published one, relatively, or as small as rounding leaves it.
NEAR = 1e-5
#: Digits that are told apart at most.
DIGITS = 16
#: Evaluations after which a fit is given up.
MOST = 500
TOLERANCE = 10 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Counted:
    """Evaluations of the residuals and of the Jacobian, whether the fit ended at a known cost, and how near to one."""

    nfev: float = math.nan
    njev: float = math.nan
    right: bool = False
    digits: float = 0.0
    note: str = ""


def problems() -> Sequence[Any]:
    """The problems of the tests."""
    return import_module("tests.mgh").PROBLEMS


def _ours(problem: Any, factor: int, **options: Any) -> Counted:
    fit = jacfn.levenberg_marquardt(problem.residuals, problem.start(factor), max_evaluations=MOST, **options)
    return _counted(problem, fit)


def _minpack(problem: Any, factor: int) -> Counted:
    """SciPy's method lm with the exact Jacobian, MINPACK's scaling, and the tolerances of jacfn."""
    from scipy.optimize import least_squares

    jacobian = torch.func.jacfwd(problem.residuals)
    fit = least_squares(
        lambda x: problem.residuals(torch.from_numpy(x)).numpy(),
        problem.start(factor).numpy(),
        lambda x: jacobian(torch.from_numpy(x)).numpy(),
        method="lm",
        x_scale="jac",
        ftol=TOLERANCE,
        xtol=TOLERANCE,
        gtol=TOLERANCE,
        max_nfev=MOST,
    )
    return _counted(problem, fit)


def _counted(problem: Any, fit: Any) -> Counted:
    cost = 2 * float(fit.cost)
    return Counted(fit.nfev, fit.njev, right(problem, cost), digits(problem, cost))


def right(problem: Any, cost: float) -> bool:
    """Whether the sum of squares is one of the published ones."""
    return any(abs(cost - known) <= NEAR * known + 1e-20 for known in problem.costs)


def digits(problem: Any, cost: float) -> float:
    """Digits in which the sum of squares and the nearest known one agree; of a zero, beside the standard start's."""
    known = min(problem.costs, key=lambda known: abs(cost - known))
    scale = known or float(problem.residuals(problem.start()).square().sum())
    error = abs(cost - known) / scale
    return DIGITS if error < 10**-DIGITS else max(0.0, -math.log10(error))


OURS, THEIRS = "jacfn", "scipy lm"
WAYS: dict[str, Callable[[Any, int], Counted]] = {
    OURS: _ours,
    "jacfn, trust-region": lambda problem, factor: _ours(problem, factor, damping="trust-region"),
    THEIRS: _minpack,
}

# --- measuring ------------------------------------------------------------------------------------

#: Name of the problem, n, m, factor of the start, and what each way took.
Row = tuple[str, int, int, int, dict[str, Counted]]


def measure(some: Sequence[Any]) -> list[Row]:
    """Every problem from every start for which MINPACK's end is known."""
    rows = []
    for problem in some:
        for factor, _ in problem.cases():
            counted = {name: _count(way, problem, factor) for name, way in WAYS.items()}
            rows.append((problem.name, problem.n, problem.m, factor, counted))
            print(f"counts: {problem.name} x{factor}", *map(_cell, counted.values()), flush=True)
    return rows


def _count(way: Callable[[Any, int], Counted], problem: Any, factor: int) -> Counted:
    try:
        return way(problem, factor)
    except Exception as error:
        return Counted(note=one_line(error))


# --- saying what came out -------------------------------------------------------------------------

HOW = f"""\
Evaluations of the residuals / of the Jacobian, in float64, from the standard starts times 1, 10 and 100, with exact
Jacobians and tolerances of ten rounding units for all. Then the digits of the final sum of squares: minus the decimal
logarithm of its relative difference from the nearest known stationary value; where that is zero, of its ratio to the
sum of squares at the standard start; {DIGITS} at most. Where the residuals are small beside the terms of which they
consist, rounding leaves fewer to every way. A star: the fit ended elsewhere than at a known stationary
value, or not within {MOST} evaluations. fewest digits: of each way, where it is right itself. The other last lines sum
up the problems where all ways are right."""


#: What stands where others have a star and digits.
BESIDE = " " * 4


def section(rows: Sequence[Row]) -> str:
    """The table, then medians and totals."""
    header = ["problem", "n", "m", "start", *WAYS]
    body = [
        [name, str(n), str(m), f"x{factor}", *(_cell(counted[way]) for way in WAYS)]
        for name, n, m, factor, counted in rows
    ]
    shared = [counted for *_, counted in rows if all(c.right for c in counted.values())]
    solved = [f"{sum(counted[way].right for *_, counted in rows)}{BESIDE}" for way in WAYS]
    summary = [
        ["right", "", "", f"of {len(rows)}", *solved],
        ["fewest digits", "", "", "", *(_fewest(counted[way] for *_, counted in rows) for way in WAYS)],
        ["evaluations", "", "", f"of {len(shared)}", *_sums(shared)],
        ["evaluations / scipy lm's, median", "", "", "", *_ratios(shared)],
    ]
    title = heading("Evaluations on the problems of Moré, Garbow and Hillstrom")
    notes = [
        f"{name} x{factor}, {way}: {c.note}"
        for name, *_, factor, counted in rows
        for way, c in counted.items()
        if c.note
    ]
    return "\n\n".join([title, prose(HOW), "\n".join([tables.grid(header, [*body, [], *summary]), *notes])])


def _cell(counted: Counted) -> str:
    if math.isnan(counted.nfev):
        return "fails"
    return f"{counted.nfev}/{counted.njev}{' ' if counted.right else '*'} {math.floor(counted.digits):2}"


def _fewest(counted: Iterable[Counted]) -> str:
    digits = [one.digits for one in counted if one.right]
    return f"{min(digits):.1f}" if digits else "-"


def _sums(shared: Sequence[dict[str, Counted]]) -> list[str]:
    return [f"{sum(c[way].nfev for c in shared)}/{sum(c[way].njev for c in shared)}{BESIDE}" for way in WAYS]


def _ratios(shared: Sequence[dict[str, Counted]]) -> list[str]:
    if not shared:
        return ["-"] * len(WAYS)
    return [f"{statistics.median(c[way].nfev / c[THEIRS].nfev for c in shared):.2f}{BESIDE}" for way in WAYS]
