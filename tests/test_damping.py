"""How steps are damped: the factors of each strategy, the length of a trust region, and when a bent step is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jacfn import LevenbergMarquardt
from jacfn.least_squares.damping import STRATEGIES, Level
from jacfn.least_squares.rows import StackedRows
from jacfn.least_squares.solvers import System, make
from jacfn.least_squares.state import State

F64 = torch.float64
START = torch.tensor([-1.2, 1.0], dtype=F64)


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def steps(fit: LevenbergMarquardt, start: Any, *args: Any) -> Iterator[tuple[State, State]]:
    """The states before and after each step."""
    state = fit.init(start, *args)
    while state.running:
        before, state = state, fit.step(state)
        yield before, state


# --- factors --------------------------------------------------------------------------------------


def test_marquardt_goes_by_factors_of_ten() -> None:
    taken = []
    for before, after in steps(LevenbergMarquardt(rosenbrock, damping="marquardt"), START):
        factor = 0.1 if after.accepted else 10.0
        assert after.damping.item() == pytest.approx(factor * before.damping.item(), rel=1e-12)
        taken.append(bool(after.accepted))
    assert {True, False} <= set(taken)


def test_nielsen_follows_the_gain_and_doubles_its_increases() -> None:
    taken, growth = "", 2.0
    for before, after in steps(LevenbergMarquardt(rosenbrock, initial_damping=1e-6), START):
        factor = max(1 / 3, 1 - (2 * after.ratio.item() - 1) ** 3) if after.accepted else growth
        assert after.damping.item() == pytest.approx(factor * before.damping.item(), rel=1e-12)
        growth = 2.0 if after.accepted else 2 * growth
        taken += "+" if after.accepted else "-"
    assert "--+" in taken


# --- trust regions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "qr", "cholesky", "dual"])
@given(
    m=st.integers(1, 8),
    p=st.integers(1, 8),
    kappa=st.sampled_from([1.0, 10.0, 1e3]),
    part=st.sampled_from([1e-6, 1e-3, 0.1, 0.5, 0.9, 2.0]),
    guess=st.sampled_from([0.0, 1e-9, 1.0, 1e9]),
    seed=st.integers(0, 2**20),
)
def test_a_step_that_is_too_long_gets_the_length_of_the_radius(
    name: Any, m: int, p: int, kappa: float, part: float, guess: float, seed: int
) -> None:
    """``part`` of the full step; a full step that is shorter is taken as it is.

    The normal matrix of fewer rows than columns and the Gram matrix of more are singular: they have no full step.
    """
    m, p = (max(m, p), min(m, p)) if name == "cholesky" else (min(m, p), max(m, p)) if name == "dual" else (m, p)
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(m, p, generator=generator, dtype=F64), full_matrices=False)
    A = u * torch.logspace(0, -float(np.log10(kappa)), min(m, p), dtype=F64) @ v
    r = torch.randn(m, generator=generator, dtype=F64)
    scale = 10.0 ** torch.randint(-3, 4, (p,), generator=generator).double()
    system = System(StackedRows((A * scale)[None]), r[None], scale[None])
    full = torch.linalg.lstsq(A, -r, driver="gelsd").solution
    radius = part * full.norm()[None]
    level = Level(torch.full((1,), guess, dtype=F64), torch.full((1,), 2.0, dtype=F64), radius)
    solver = make(name, system, None, None, None)
    level, _, z = STRATEGIES["trust-region"].damp(level, solver, (A.T @ r)[None])
    assert level.radius == radius
    if part < 1:
        assert abs(z.norm() - radius) <= 0.1001 * radius
        assert level.value > 0
        whole = torch.cat([A, level.value.sqrt() * torch.eye(p, dtype=F64)])
        wanted = torch.linalg.lstsq(whole, torch.cat([-r, torch.zeros(p, dtype=F64)])).solution
        torch.testing.assert_close(z[0], wanted, rtol=1e-6, atol=1e-8 * float(radius))
    else:
        torch.testing.assert_close(z[0], full, rtol=1e-6, atol=1e-6 * float(full.norm()))


@pytest.mark.parametrize("scaling", ["more", "jacobi", "none"])
def test_steps_of_a_fit_have_the_length_of_the_radius(scaling: Any) -> None:
    fit = LevenbergMarquardt(rosenbrock, damping="trust-region", scaling=scaling)
    state = fit.init(START)
    state = dataclasses.replace(state, level=dataclasses.replace(state.level, radius=state.level.radius / 1000))
    rim = inside = 0
    while state.running:
        before, state = state, fit.step(state)
        if not state.accepted:
            continue
        radius, length = before.level.radius, before.model.length(state.x - before.x)
        full = before.model.length(torch.linalg.solve(torch.func.jacrev(rosenbrock)(before.x), -rosenbrock(before.x)))
        if full > 1.1 * radius:
            rim += 1
            assert abs(length - radius) <= 0.1001 * radius
        else:
            inside += 1
            assert length.item() == pytest.approx(full.item(), rel=1e-6)
    assert rim >= 3
    assert inside


# --- bent steps -----------------------------------------------------------------------------------


def square(x: Tensor, floor: Tensor) -> Tensor:
    """At ``x = 1`` without damping, ``z = (c - 1)/2`` and ``2a/z = 1 - c``, to all digits."""
    return x.square() - floor


@pytest.mark.parametrize(("floor", "calm"), [(0.5, True), (0.26, True), (0.24, False), (0.0, False)])
def test_a_step_that_bends_too_much_is_not_taken(floor: float, calm: bool) -> None:
    """``2 |a| <= 0.75 |z|`` decides, though the cost falls each time."""
    start, c = torch.ones(1, dtype=F64), torch.tensor(floor, dtype=F64)
    options: dict[str, Any] = {"initial_damping": 0.0, "scaling": "none"}
    straight = LevenbergMarquardt(square, **options)
    assert straight.step(straight.init(start, c)).accepted
    bent = LevenbergMarquardt(square, geodesic=True, **options)
    first = bent.init(start, c)
    state = bent.step(first)
    assert bool(state.accepted) == calm
    assert state.nfev - first.nfev == 2
    z = (floor - 1) / 2
    if calm:
        assert state.x.item() == pytest.approx(1 + z + z * (1 - floor) / 4, rel=1e-12)
    else:
        assert state.x.item() == 1
        assert state.damping > 0
        assert state.njev == first.njev
    for _ in range(100):
        state = bent.step(state)
    assert state.x.item() == pytest.approx(floor**0.5, abs=1e-4)


def test_each_problem_has_its_own_bend() -> None:
    fit = LevenbergMarquardt(square, geodesic=True, initial_damping=0.0, scaling="none", in_dims=(0, 0))
    state = fit.step(fit.init(torch.ones(3, 1, dtype=F64), torch.tensor([0.5, 0.24, 0.26], dtype=F64)))
    assert state.accepted.tolist() == [True, False, True]
    assert state.x[1].item() == 1
