"""The fit: what it finds, what it counts, why it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jacfn import JacfnError, LevenbergMarquardt, Reason, levenberg_marquardt, make_functional
from jacfn._memory import PeakBytes
from jacfn.least_squares import State
from jacfn.least_squares.damping import NAMES as DAMPINGS
from jacfn.least_squares.scaling import SCALINGS

F64 = torch.float64
SOLVERS = ["auto", "qr", "cholesky", "dual", "cg", "lsmr"]


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


START = torch.tensor([-1.2, 1.0], dtype=F64)


def decay(p: dict[str, Tensor], t: Tensor, y: Tensor) -> Tensor:
    return p["height"] * torch.exp(-p["rate"] * t) + p["floor"] - y


def decay_data(n: int = 40, noise: float = 0.0, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    t = torch.linspace(0, 4, n, dtype=F64)
    y = 3 * torch.exp(-1.5 * t) + 0.5 + noise * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return {name: torch.ones((), dtype=F64) for name in ("height", "rate", "floor")}, t, y


# --- what it finds --------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("geodesic", [False, True])
def test_rosenbrock(damping: Any, scaling: Any, geodesic: bool) -> None:
    fit = levenberg_marquardt(rosenbrock, START, damping=damping, scaling=scaling, geodesic=geodesic)
    torch.testing.assert_close(fit.params, torch.ones(2, dtype=F64), rtol=1e-12, atol=1e-12)
    assert fit.converged
    assert fit.steps < 100


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_fits_the_same(solver: Any) -> None:
    start, t, y = decay_data(noise=0.01)
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(None, 0, 0), solver=solver)
    wanted = levenberg_marquardt(decay, start, t, y, solver="qr", damping="trust-region")
    assert fit.converged
    assert fit.cost == pytest.approx(wanted.cost, rel=1e-12)
    for name in start:
        torch.testing.assert_close(fit.params[name], wanted.params[name], rtol=1e-7, atol=0)


@given(m=st.integers(3, 12), p=st.integers(1, 8), seed=st.integers(0, 2**20), solver=st.sampled_from(SOLVERS))
@settings(max_examples=40, deadline=None)
def test_linear_problems_are_solved_in_one_undamped_step(m: int, p: int, seed: int, solver: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = m if solver == "dual" else min(m, p)  # the Gram matrix of more rows than columns is singular
    A = torch.linalg.qr(torch.randn(m, p, generator=generator, dtype=F64)).Q * torch.linspace(1, 3, p, dtype=F64)
    b = torch.randn(m, generator=generator, dtype=F64)
    options: dict[str, Any] = {"solver_tolerance": 1e-15} if solver in ("cg", "lsmr") else {}
    fit = levenberg_marquardt(
        lambda x: A @ x - b, torch.zeros(p, dtype=F64), initial_damping=0.0, max_steps=1, solver=solver, **options
    )
    wanted = torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    torch.testing.assert_close(fit.params, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scaling", ["more", "jacobi"])
@given(powers=st.lists(st.integers(-6, 6), min_size=3, max_size=3))
@settings(max_examples=15, deadline=None)
def test_units_of_the_parameters_change_nothing_but_rounding(scaling: Any, powers: list[int]) -> None:
    start, t, y = decay_data(noise=0.05)
    units = {name: 10.0**power for name, power in zip(start, powers, strict=True)}

    def in_units(p: dict[str, Tensor]) -> Tensor:
        return decay({name: leaf * units[name] for name, leaf in p.items()}, t, y)

    scaled = {name: leaf / units[name] for name, leaf in start.items()}
    options: dict[str, Any] = {"scaling": scaling, "max_steps": 6, "damping": "nielsen"}
    fit, wanted = levenberg_marquardt(in_units, scaled, **options), levenberg_marquardt(decay, start, t, y, **options)
    costs = [record.cost for record in fit.history], [record.cost for record in wanted.history]
    assert costs[0] == pytest.approx(costs[1], rel=1e-8)


def test_networks_are_fitted_beyond_rounding_of_float32() -> None:
    torch.manual_seed(0)
    fn, params = make_functional(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)))
    x = torch.linspace(-1, 1, 50)[:, None]
    fit = levenberg_marquardt(lambda p, x: fn(p, x) - torch.sin(3 * x), params, x, in_dims=(None, 0), max_steps=200)
    assert fit.params["0.weight"].dtype == torch.float32
    assert fit.cost < 1e-6


def test_more_parameters_than_residuals() -> None:
    torch.manual_seed(0)
    fn, params = make_functional(nn.Sequential(nn.Linear(3, 30), nn.Tanh(), nn.Linear(30, 2)).double())
    x, y = torch.randn(10, 3, dtype=F64), torch.randn(10, 2, dtype=F64)
    for solver in ("dual", "qr", "auto"):
        fit = levenberg_marquardt(lambda p, x, y: fn(p, x) - y, params, x, y, in_dims=(None, 0, 0), solver=solver)
        assert fit.cost < 1e-20


def test_weights_and_trees_of_residuals() -> None:
    start, t, y = decay_data(noise=0.1)
    w = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.1
    w[3] = 0.0
    wanted = levenberg_marquardt(lambda p: w.sqrt() * decay(p, t, y), start)
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(None, 0, 0), weights=w)
    assert fit.cost == pytest.approx(wanted.cost, rel=1e-12)
    torch.testing.assert_close(fit.params, wanted.params, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fit.value, decay(fit.params, t, y))

    def split(p: dict[str, Tensor]) -> dict[str, Tensor]:
        r = decay(p, t, y)
        return {"head": r[:7], "tail": r[7:].reshape(3, 11)}

    tree = levenberg_marquardt(split, start, weights={"head": w[:7], "tail": w[7:].reshape(3, 11)})
    assert tree.cost == pytest.approx(wanted.cost, rel=1e-12)
    assert tree.value["tail"].shape == (3, 11)


@pytest.mark.parametrize("frozen", [["floor"], lambda name: name == "floor"], ids=["names", "function"])
def test_frozen_leaves_keep_their_values(frozen: Any) -> None:
    start, t, y = decay_data(noise=0.1)
    start["floor"] = torch.tensor(0.4, dtype=F64)
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(None, 0, 0), frozen=frozen)
    wanted = levenberg_marquardt(lambda p: p[0] * torch.exp(-p[1] * t) + 0.4 - y, torch.ones(2, dtype=F64))
    assert fit.params["floor"] == 0.4
    torch.testing.assert_close(
        torch.stack([fit.params["height"], fit.params["rate"]]), wanted.params, rtol=1e-7, atol=0
    )
    assert fit.covariance().shape == (2, 2)
    assert fit.standard_errors()["floor"] == 0


def test_the_arguments_are_left_alone() -> None:
    start, t, y = decay_data()
    before = {name: leaf.clone() for name, leaf in start.items()}
    start["rate"].requires_grad_()
    fit = levenberg_marquardt(decay, start, t, y)
    assert not fit.params["rate"].requires_grad
    for name in start:
        assert start[name] == before[name]


def test_results_have_memory_of_their_own() -> None:
    start = {"a": torch.ones(2, dtype=F64), "b": torch.ones(2, dtype=F64)}
    fit = levenberg_marquardt(lambda p: torch.cat([p["a"] - 3, 2 * p["b"] - p["a"]]), start, frozen=["b"])
    for leaf in fit.params.values():
        leaf.zero_()
    for leaf in start.values():
        torch.testing.assert_close(leaf, torch.ones(2, dtype=F64))
    torch.testing.assert_close(fit.params["a"], torch.full((2,), 2.5, dtype=F64))


def test_memory_budget() -> None:
    torch.manual_seed(0)
    fn, params = make_functional(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double())
    x = torch.randn(2000, 4, dtype=F64)

    def residual(p: Any, x: Tensor) -> Tensor:
        return fn(p, x) - x.prod()

    free = levenberg_marquardt(residual, params, x, in_dims=(None, 0), max_steps=5)
    tight = levenberg_marquardt(residual, params, x, in_dims=(None, 0), max_steps=5, memory="1MiB")
    assert tight.cost == pytest.approx(free.cost, rel=1e-6)


def peak_of(fit: Callable[[], Any]) -> int:
    with PeakBytes() as booked:
        fit()
    return booked.peak


@pytest.mark.parametrize("solver", ["auto", "dual", "lsmr"])
def test_wide_jacobians_keep_to_the_budget(solver: Any) -> None:
    x = torch.rand(4, 100_000)

    def fit(memory: str | None) -> int:
        def residual(p: Tensor) -> Tensor:
            return (x @ p).tanh() - 1

        return peak_of(
            lambda: levenberg_marquardt(residual, torch.zeros(100_000), max_steps=2, memory=memory, solver=solver)
        )

    assert fit("13MiB") <= 13 << 20
    with pytest.raises(JacfnError, match=r"memory=2 MiB is too small for the fit, .* give at least (.*) MiB"):
        fit("2MiB")


def test_the_budget_of_many_problems() -> None:
    start, t, y = many_decays(200)
    need = 10 * 200 * 40 * 3 * 8

    def fit(memory: int | None) -> Any:
        return levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0), memory=memory, max_steps=3)

    assert peak_of(lambda: fit(None)) <= need
    torch.testing.assert_close(fit(need).cost, fit(None).cost)
    with pytest.raises(JacfnError, match="the Jacobians of 200 problems, .* fit fewer problems at a time"):
        fit(need - 1)


# --- many problems --------------------------------------------------------------------------------


def many_decays(count: int = 7) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    start, t, _ = decay_data()
    generator = torch.Generator().manual_seed(0)
    rates = 0.5 + 2 * torch.rand(count, 1, generator=generator, dtype=F64)
    y = 2 * torch.exp(-rates * t) + 0.3 + 0.01 * torch.randn(count, 40, generator=generator, dtype=F64)
    return {name: leaf.expand(count).clone() for name, leaf in start.items()}, t, y


@pytest.mark.parametrize("solver", ["auto", "qr", "cholesky", "dual"])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_many_problems_end_where_each_does_alone(solver: Any, damping: Any) -> None:
    start, t, y = many_decays()
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0), solver=solver, damping=damping)
    assert bool(fit.converged.all())
    for i in range(7):
        alone = levenberg_marquardt(decay, {k: v[i] for k, v in start.items()}, t, y[i], solver=solver, damping=damping)
        assert float(fit.cost[i]) == pytest.approx(alone.cost, rel=1e-10)
        for name in start:
            torch.testing.assert_close(fit.params[name][i], alone.params[name], rtol=1e-6, atol=1e-9)


def test_counts_of_many_problems_are_their_own() -> None:
    start, t, y = many_decays()
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0), solver="qr")
    for i in range(7):
        alone = levenberg_marquardt(decay, {k: v[i] for k, v in start.items()}, t, y[i], solver="qr")
        assert abs(int(fit.steps[i]) - alone.steps) <= 2  # rounding may move the last ones
        assert abs(int(fit.njev[i]) - alone.njev) <= 2
    assert len(fit.history) == int(fit.steps.max()) + 1
    assert fit.history[-1].cost.shape == (7,)


def test_a_problem_that_is_not_finite_harms_no_other() -> None:
    start, t, y = many_decays()
    wanted = levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0))
    y[2, 5] = torch.nan
    start["rate"][4] = torch.inf
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0))
    bad = [2, 4]
    assert [fit.reason[i] for i in bad] == [Reason.NON_FINITE, Reason.NON_FINITE]
    for i in set(range(7)) - set(bad):
        assert fit.reason[i].converged
        assert float(fit.cost[i]) == pytest.approx(float(wanted.cost[i]), rel=1e-12)


def test_a_problem_without_a_derivative_has_not_converged() -> None:
    start = torch.tensor([[0.0], [4.0]], dtype=F64)
    fit = levenberg_marquardt(lambda p: p.sqrt() - 1, start, in_dims=(0,))
    assert fit.reason[0] is Reason.NON_FINITE
    assert fit.reason[1].converged
    torch.testing.assert_close(fit.params[1], torch.ones(1, dtype=F64))


def test_many_problems_with_other_axes_weights_and_frozen_leaves() -> None:
    start, t, y = many_decays()
    w = torch.rand(7, 40, generator=torch.Generator().manual_seed(3), dtype=F64)
    start["floor"] = torch.linspace(0.2, 0.4, 7, dtype=F64)
    fit = levenberg_marquardt(decay, start, t, y.T, in_dims=(0, None, 1), weights=w, frozen=["floor"])
    for i in range(7):
        one = {k: v[i] for k, v in start.items()}
        alone = levenberg_marquardt(decay, one, t, y[i], weights=w[i], frozen=["floor"])
        assert float(fit.cost[i]) == pytest.approx(alone.cost, rel=1e-10)
    torch.testing.assert_close(fit.params["floor"], start["floor"])
    assert fit.covariance().shape == (7, 2, 2)


# --- counts and ends ------------------------------------------------------------------------------


class Counted:
    """Rosenbrock's residuals, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return rosenbrock(x)


def test_rejected_steps_cost_no_jacobian() -> None:
    fn = Counted()
    fit = LevenbergMarquardt(fn, initial_damping=1e-8, method="rev")
    state = fit.init(START)
    rejected = accepted = 0
    while state.running:
        before = fn.calls
        state = fit.step(state)
        if state.accepted:
            accepted += 1
        else:
            rejected += 1
            assert fn.calls == before + 1
    assert rejected > 2
    assert int(state.njev) == 1 + accepted
    assert int(state.nfev) == 1 + accepted + rejected == 1 + int(state.steps)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ftol": 1e-2, "xtol": 0.0, "gtol": 0.0}, Reason.COST),
        ({"ftol": 0.0, "xtol": 1e-2, "gtol": 0.0}, Reason.STEP),
        ({"ftol": 0.0, "xtol": 0.0, "gtol": 1e-2}, Reason.GRADIENT),
        ({"ftol": 0.0, "xtol": 0.0, "gtol": 0.0}, Reason.ROUNDING),
        ({"max_steps": 3}, Reason.MAX_STEPS),
        ({"max_evaluations": 4}, Reason.MAX_EVALUATIONS),
        ({"max_time": 0.0}, Reason.MAX_TIME),
        ({"callback": lambda state: int(state.steps) == 2}, Reason.CALLBACK),
    ],
)
def test_reasons(options: dict[str, Any], reason: Reason) -> None:
    start, t, y = decay_data(noise=0.1)
    fit = levenberg_marquardt(decay, start, t, y, **options)
    assert fit.reason is reason
    assert fit.converged is reason.converged
    assert str(reason)


def test_limits_are_kept() -> None:
    start, t, y = decay_data(noise=0.1)
    assert levenberg_marquardt(decay, start, t, y, max_steps=3).steps == 3
    assert levenberg_marquardt(decay, start, t, y, max_evaluations=4).nfev == 4
    fit = levenberg_marquardt(decay, start, t, y, callback=lambda state: int(state.steps) == 2)
    assert fit.steps == 2
    assert [record.step for record in fit.history] == [0, 1, 2]

    def slow(p: dict[str, Tensor]) -> Tensor:
        time.sleep(0.02)
        return decay(p, t, y)

    assert levenberg_marquardt(slow, start, max_time=0.1, ftol=0.0, xtol=0.0, gtol=0.0).steps < 20


def test_a_start_at_the_solution_ends_at_once() -> None:
    fit = levenberg_marquardt(rosenbrock, torch.ones(2, dtype=F64))
    assert (fit.reason, fit.steps, fit.nfev, fit.njev) == (Reason.GRADIENT, 0, 1, 1)


def test_a_wrong_derivative_is_not_called_convergence() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.exp()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return -g

    fit = levenberg_marquardt(lambda x: Wrong.apply(x) + 1, torch.ones(2, dtype=F64), method="rev")
    assert fit.reason is Reason.DAMPING
    assert not fit.converged


@pytest.mark.parametrize("damping", DAMPINGS)
def test_trials_that_are_not_finite_are_rejected(damping: Any) -> None:
    fit = levenberg_marquardt(
        lambda x: torch.stack([x.log() + 3, x.log() + 3.5]).sum(-1),
        torch.tensor([0.9], dtype=F64),
        damping=damping,
        initial_damping=1e-10,
    )
    assert fit.params.item() == pytest.approx(float(torch.tensor(-3.25).exp()), rel=1e-6)
    assert fit.converged


@pytest.mark.parametrize("damping", DAMPINGS)
def test_a_jacobian_that_is_not_finite_rejects_the_step(damping: Any) -> None:
    def fn(p: Tensor) -> Tensor:  # below zero its value is finite, and its derivative is not
        return torch.stack([torch.relu(p[0]).sqrt() - 0.3, 0.1 * (p[0] - 0.05)])

    fit = levenberg_marquardt(fn, torch.ones(1, dtype=F64), damping=damping)
    assert fit.converged
    p = fit.params.item()
    assert (p**0.5 - 0.3) / (2 * p**0.5) + 0.01 * (p - 0.05) == pytest.approx(0, abs=1e-9)
    many = levenberg_marquardt(fn, torch.tensor([[1.0], [0.1]], dtype=F64), in_dims=0, damping=damping)
    assert bool(many.converged.all())
    torch.testing.assert_close(many.params, fit.params.expand(2, 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{"xtol": 1e-4, "initial_damping": 1e4}, {"initial_damping": 1e14}])
def test_steps_that_damping_made_short_are_not_convergence(options: dict[str, Any]) -> None:
    fit = levenberg_marquardt(rosenbrock, START, **options)
    assert fit.converged
    assert fit.cost < 1e-6


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 1e7), (F64, 1e16)])
def test_the_unit_of_the_residuals_does_not_end_a_fit(dtype: torch.dtype, unit: float) -> None:
    fit = levenberg_marquardt(lambda x: unit * rosenbrock(x), START.to(dtype), scaling="none")
    torch.testing.assert_close(fit.params, torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("damping", ["nielsen", "marquardt"])
def test_damping_has_a_floor(damping: Any) -> None:
    """From where it can grow again in a few steps."""
    fit = levenberg_marquardt(lambda x: x - 1, START, damping=damping, ftol=0.0, xtol=0.0, gtol=0.0, max_steps=500)
    assert all(record.damping >= torch.finfo(F64).eps ** 2 for record in fit.history)


def test_step_by_step_as_in_one_call() -> None:
    start, t, y = decay_data(noise=0.1)
    whole = levenberg_marquardt(decay, start, t, y)
    fit = LevenbergMarquardt(decay)
    state = first = fit.init(start, t, y)
    while state.running:
        state = fit.step(state)
    assert state.cost == whole.cost
    assert int(state.steps) == whole.steps
    assert first.cost == whole.history[0].cost  # a state is not changed by the steps from it
    assert Reason(int(state.code)) is whole.reason


def test_batches() -> None:
    torch.manual_seed(0)
    fn, params = make_functional(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double())
    x = torch.linspace(-1, 1, 240, dtype=F64)[:, None]
    y = torch.sin(3 * x)

    def batches(count: int) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            chosen = torch.randperm(240, generator=generator)[:60]
            yield x[chosen], y[chosen]

    def residual(p: Any, x: Tensor, y: Tensor) -> Tensor:
        return fn(p, x) - y

    fit = levenberg_marquardt(residual, params, in_dims=(None, 0, 0), batches=batches(60))
    assert fit.reason is Reason.BATCHES
    assert fit.steps == 60
    assert float((fn(fit.params, x[0]) - y[0]).abs()) < 1e-2
    everything = torch.func.vmap(residual, in_dims=(None, 0, 0))(fit.params, x, y)
    assert float(everything.square().mean()) < 1e-4
    limited = levenberg_marquardt(residual, params, in_dims=(None, 0, 0), batches=batches(60), max_steps=5)
    assert (limited.steps, limited.reason) == (5, Reason.MAX_STEPS)


@pytest.mark.parametrize("most", range(1, 8))
def test_batches_count_their_evaluations(most: int) -> None:
    """Two for each batch, that of the first one at the start."""
    t = torch.linspace(0, 1, 10, dtype=F64)
    batches = [(t,)] * 20
    model = lambda p, t: p[0] * torch.exp(p[1] * t) - 2  # noqa: E731
    fit = levenberg_marquardt(model, torch.ones(2, dtype=F64), batches=batches, max_evaluations=most)
    assert fit.nfev in (most, most - 1)
    assert fit.reason == Reason.MAX_EVALUATIONS


def test_callbacks_answer_for_the_whole_fit() -> None:
    with pytest.raises(JacfnError, match=r"callback must return whether to stop .* shape \(3,\).*any\(\) or all\(\)"):
        levenberg_marquardt(rosenbrock, START, callback=lambda _: torch.ones(3))


def test_callback_sees_the_states() -> None:
    seen: list[State] = []
    start, t, y = many_decays()
    fit = levenberg_marquardt(decay, start, t, y, in_dims=(0, None, 0), callback=seen.append)
    assert len(seen) == int(fit.steps.max())
    for state, record in zip(seen, fit.history[1:], strict=True):
        torch.testing.assert_close(state.cost, record.cost)
        assert state.params["rate"].shape == (7,)
