"""The fit on the problems of Moré, Garbow and Hillstrom, and on regressions certified by NIST, from near and afar."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from jacfn import levenberg_marquardt
from jacfn.least_squares.damping import NAMES as DAMPINGS
from tests.mgh import NIST, PROBLEMS, Problem, Regression

CASES = [
    pytest.param(problem, factor, optimum, id=f"{problem.name}-x{factor}")
    for problem in PROBLEMS
    for factor, optimum in problem.cases()
]
# What the evaluation of a sum of squares loses in float64; of all others, four digits more are asked for.
ROUNDING = {"Watson, n=12": 1e-8, "Watson, n=9": 1e-10, "Meyer": 1e-10}

# Where a strategy ends elsewhere than MINPACK's: at another local minimum (with its sum of squares), or not at all.
ELSEWHERE: dict[str, dict[tuple[str, int], float | None]] = {
    "nielsen": {
        ("Bard", 100): 0.1147629073,  # lower than any that is listed, with two parameters at infinity
        ("Kowalik-Osborne", 10): 3.075056038e-4,  # the lowest
        ("Meyer", 100): None,  # goes on beyond 3000 steps
        ("trigonometric, n=10", 10): 4.218633888e-5,
        ("trigonometric, n=10", 100): 4.218633888e-5,
    },
    "marquardt": {
        ("Brown almost linear, n=10", 10): 1.0,
        ("Kowalik-Osborne", 10): 3.075056038e-4,
        ("Meyer", 10): None,
        ("Meyer", 100): None,
        ("trigonometric, n=10", 10): 4.218633888e-5,
        ("trigonometric, n=10", 100): 4.218633888e-5,
    },
    "trust-region": {
        ("Brown almost linear, n=30", 1): 1.0,
        ("Brown almost linear, n=40", 1): 1.0,
        ("Jennrich-Sampson", 10): None,  # a step to where a column of the Jacobian underflows
        ("trigonometric, n=10", 10): 8.788225218e-4,
    },
}


def check(problem: Problem, factor: int, wanted: float, damping: Any) -> None:
    fit = levenberg_marquardt(problem.residuals, problem.start(factor), method="fwd", damping=damping, max_steps=3000)
    assert fit.converged, fit
    squares = 2 * fit.cost
    if wanted < 1e-28:
        assert squares < 1e-20
    else:
        assert squares == pytest.approx(wanted, rel=ROUNDING.get(problem.name, 1e-9))


@pytest.mark.parametrize(("problem", "factor", "optimum"), CASES)
def test_nielsen(problem: Problem, factor: int, optimum: Any) -> None:
    wanted = ELSEWHERE["nielsen"].get((problem.name, factor), optimum.cost)
    if wanted is None:
        pytest.skip("does not get there in 3000 steps")
    check(problem, factor, wanted, "nielsen")


@pytest.mark.slow
@pytest.mark.parametrize("damping", [name for name in DAMPINGS if name != "nielsen"])
@pytest.mark.parametrize(("problem", "factor", "optimum"), CASES)
def test_other_strategies(problem: Problem, factor: int, optimum: Any, damping: str) -> None:
    wanted = ELSEWHERE[damping].get((problem.name, factor), optimum.cost)
    if wanted is None:
        pytest.skip("does not get there")
    check(problem, factor, wanted, damping)


NOT_FROM_FAR = {("BoxBOD", 0)}  # nor does MINPACK: both end at 9771.5


@pytest.mark.parametrize("regression", NIST, ids=lambda regression: regression.name)
@pytest.mark.parametrize("start", [0, 1], ids=["far", "near"])
def test_certified_regressions(regression: Regression, start: int) -> None:
    begin = torch.tensor(regression.starts[start], dtype=torch.float64)
    damping: Any = "trust-region" if regression.name == "MGH10" else "nielsen"  # Meyer's function from afar
    fit = levenberg_marquardt(regression.residuals, begin, method="fwd", damping=damping, max_steps=3000)
    if (regression.name, start) in NOT_FROM_FAR:
        assert 2 * fit.cost > 1.5 * regression.cost
        return
    assert fit.converged
    assert 2 * fit.cost == pytest.approx(regression.cost, rel=1e-9, abs=1e-22)
    exact = {"rtol": 1e-6 if regression.cost > 1e-20 else 1e-4, "atol": 0.0}
    torch.testing.assert_close(fit.params, torch.as_tensor(regression.b, dtype=torch.float64), **exact)
    errors = torch.as_tensor(regression.standard_errors, dtype=torch.float64)
    torch.testing.assert_close(fit.standard_errors(), errors, **exact)


def test_published_digits_belong_to_the_same_minima() -> None:
    for problem in PROBLEMS:
        for optimum in problem.optima:
            if optimum.published is None or not optimum.cost:
                continue
            unit = 10.0 ** (math.floor(math.log10(abs(optimum.published))) + 1 - optimum.digits)
            assert abs(optimum.cost - optimum.published) <= 1.01 * unit, problem.name
