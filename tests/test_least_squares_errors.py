"""What a fit refuses, and what the message says; odd arguments that it takes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from jacfn import JacfnError, JacfnTypeError, JacfnValueError, LevenbergMarquardt, Reason, levenberg_marquardt

F64 = torch.float64
X = torch.linspace(0, 1, 9, dtype=F64)
Y = 2 * X + 1 + 0.1 * (9 * X).sin()


def line(p: Tensor) -> Tensor:
    return p[0] + p[1] * X - Y


def line_of(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return p[0] + p[1] * x - y


def named(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return p["a"] * x + p["b"] - y


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=F64)


def two() -> dict[str, Tensor]:
    return {"a": zeros(), "b": zeros()}


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("solver", "svd", r"solver must be one of auto, qr, cholesky, dual, cg, lsmr, got 'svd'"),
        ("solver", ["qr"], r"solver must be one of"),
        ("damping", "lm", r"damping must be one of nielsen, marquardt, trust-region, got 'lm'"),
        ("scaling", "unit", r"scaling must be one of more, jacobi, none, got 'unit'"),
        ("method", "backward", r"method must be one of auto, .*, got 'backward'"),
        ("initial_damping", -1.0, r"initial_damping must be a finite number that is at least 0, got -1.0"),
        ("initial_damping", float("nan"), r"initial_damping must be a finite number"),
        ("ftol", float("inf"), r"ftol must be a finite number that is at least 0, got inf"),
        ("xtol", "1e-8", r"xtol must be a finite number that is at least 0, got '1e-8'"),
        ("gtol", -1e-8, r"gtol must be a finite number"),
        ("solver_tolerance", -1.0, r"solver_tolerance must be a finite number"),
        ("geodesic", 1, r"geodesic must be a bool, got 1"),
        ("solver_steps", 0, r"solver_steps must be a positive int or None, got 0"),
        ("chunk_size", 0, r"chunk_size must be a positive int or None, got 0"),
        ("max_steps", 0, r"max_steps must be a positive int"),
        ("max_steps", 2.5, r"max_steps must be a positive int"),
        ("max_evaluations", -1, r"max_evaluations must be a positive int or None, got -1"),
        ("memory", "lots", r"memory must be bytes or a string such as '512MiB' or '2GB', got 'lots'"),
        ("memory", 1, r"memory=.* is too small for the fit, .* give at least .* MiB"),
    ],
)
def test_options(option: str, value: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        levenberg_marquardt(line, zeros(2), **{option: value})


def test_options_are_checked_when_the_stepper_is_made() -> None:
    with pytest.raises(JacfnTypeError, match=r"LevenbergMarquardt has no option 'solvr'; it has chunk_size, damping"):
        LevenbergMarquardt(line, solvr="qr")
    with pytest.raises(JacfnValueError, match="damping must be one of"):
        LevenbergMarquardt(line, damping="lm")


@pytest.mark.parametrize("solver", ["cg", "lsmr"])
def test_products_alone_take_one_problem(solver: Any) -> None:
    with pytest.raises(JacfnValueError, match=rf"solver='{solver}' takes one problem.*use 'auto', 'qr', 'cholesky'"):
        levenberg_marquardt(line, zeros(3, 2), in_dims=0, solver=solver)


# --- parameters and residuals ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(JacfnTypeError, match=f"params must be float32 or float64, got {dtype}"):
        levenberg_marquardt(lambda p: p, torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), r"complex inputs .* torch.view_as_real"),
        (torch.zeros(2, dtype=torch.int64), r"only floating-point tensors can be differentiated, got torch.int64"),
        ([1.0, 2.0], r"only tensors can be differentiated, got float"),
        (
            {"a": zeros(), "b": torch.zeros(())},
            r"params must have one dtype and device, got torch.float32 on cpu, torch",
        ),
    ],
)
def test_parameters_that_cannot_be_fitted(params: Any, message: str) -> None:
    with pytest.raises(JacfnTypeError, match=message):
        levenberg_marquardt(lambda p: zeros(3), params)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda p: None, "fn returned no tensor"),
        (lambda p: 3.0, "fn's output must be a tensor, got float"),
        (lambda p: torch.complex(p, p), r"fn's output is complex .*view_as_real"),
        (lambda p: p.long(), r"fn's output must be floating-point, got torch.int64"),
        (lambda p: line(p).float(), r"must have one dtype, got torch.float32, torch.float64: convert inside fn"),
        (lambda p: (line(p), line(p).float()), r"must have one dtype"),
        (lambda p: p.mul_(2) - 1, r"fn changes a differentiated argument in place.*clone it first"),
        (3, r"fn must be callable, got int: pass the function itself"),
    ],
)
def test_functions_that_cannot_be_fitted(fn: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        levenberg_marquardt(fn, zeros(2))


def test_starts_that_are_not_finite() -> None:
    with pytest.raises(JacfnValueError, match=r"residuals at the start are not finite \(2 of 9\); start elsewhere"):
        levenberg_marquardt(lambda p: line(p).masked_fill(X > 0.8, torch.nan), zeros(2))
    with pytest.raises(JacfnValueError, match=r"Jacobian at the start is not finite, in b; start elsewhere"):
        levenberg_marquardt(lambda p: p["a"] * X + p["b"].sqrt(), two(), method="rev")
    with pytest.raises(JacfnValueError, match="not finite, in params"):
        levenberg_marquardt(lambda p: p.sqrt(), zeros(2))


def test_errors_of_fn_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        levenberg_marquardt(lambda p: 1 / 0, zeros(2))


# --- in_dims and frozen leaves --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_dims", "message"),
    [
        ((None, 0), r"in_dims must be None, an int, or a tuple with one entry for each of the 3"),
        ((None, None, None), r"maps no argument over samples"),
        ((None, 0, 1), r"in_dims gives axis 1 of argument 2, which has the shape \(9,\)"),
        ((None, 0.5, 0), r"in_dims must hold ints or None, got 0.5"),
    ],
)
def test_in_dims(in_dims: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        levenberg_marquardt(line_of, zeros(2), X, Y, in_dims=in_dims)


def test_problems_in_all_free_leaves_or_in_none() -> None:
    params = {"a": zeros(9), "b": zeros()}
    with pytest.raises(JacfnValueError, match=r"in_dims: either all free leaves of params carry problems, or none"):
        levenberg_marquardt(named, params, X, Y, in_dims=({"a": 0, "b": None}, 0, 0))
    fit = levenberg_marquardt(named, params, X + 1, Y, in_dims=({"a": 0, "b": None}, 0, 0), frozen=["b"])
    torch.testing.assert_close(fit.params["a"], Y / (X + 1))
    assert fit.params["b"] == 0


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("a", r"frozen must be names of leaves or a function of a name, got 'a'"),
        (3, r"frozen must be names of leaves or a function of a name, got 3"),
        (["a", "c"], r"frozen: there is no leaf 'c'; there are a, b"),
        (["a", "b"], r"frozen: every leaf is frozen, so there is nothing to fit"),
        (lambda name: True, r"every leaf is frozen"),
    ],
)
def test_frozen(frozen: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        levenberg_marquardt(named, two(), X, Y, frozen=frozen)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-torch.ones(9, dtype=F64), r"weights must be at least 0: they multiply the squares"),
        (torch.full((9,), torch.nan, dtype=F64), r"weights must be at least 0"),
        (torch.ones(8, dtype=F64), r"weights must .* flat, of shape \(9,\)"),
        (torch.ones(1, 9, dtype=F64), r"weights must be one vector of weights, not a stack of them"),
        (torch.ones(9), r"weights must be torch.float64 on cpu .*, got torch.float32"),
        (2.0, r"weights must have shape \(9,\), .* got float"),
    ],
)
def test_weights(weights: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        levenberg_marquardt(line, zeros(2), weights=weights)


def test_weights_of_nothing_leave_the_start() -> None:
    fit = levenberg_marquardt(line, zeros(2), weights=zeros(9))
    assert (fit.cost, fit.steps, fit.rank) == (0.0, 0, 0)
    assert fit.converged


# --- batches and callbacks ------------------------------------------------------------------------


def test_batches() -> None:
    with pytest.raises(JacfnValueError, match=r"batches replace args: got both, batches and 2 further argument"):
        levenberg_marquardt(line_of, zeros(2), X, Y, batches=[(X, Y)])
    with pytest.raises(JacfnValueError, match=r"weights belong to one set of residuals"):
        levenberg_marquardt(line_of, zeros(2), batches=[(X, Y)], weights=Y)
    with pytest.raises(JacfnValueError, match=r"batches must give at least one tuple"):
        levenberg_marquardt(line_of, zeros(2), batches=[])
    with pytest.raises(JacfnTypeError, match=r"batches must give tuples of arguments for fn, got Tensor"):
        levenberg_marquardt(line_of, zeros(2), batches=[X])


def test_errors_of_batches_and_callbacks_come_through() -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y
        raise OSError("no more files")

    with pytest.raises(OSError, match="no more files"):
        levenberg_marquardt(line_of, zeros(2), batches=broken())

    def complain(state: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        levenberg_marquardt(line, zeros(2), callback=complain)


def test_batches_of_other_sizes() -> None:
    batches = [(X, Y), (X[:5], Y[:5]), (X[:1], Y[:1])]
    fit = levenberg_marquardt(line_of, zeros(2), batches=batches, in_dims=(None, 0, 0))
    assert (fit.steps, fit.reason) == (3, Reason.BATCHES)


def test_a_batch_that_is_not_finite_ends_the_fit_and_keeps_what_it_found() -> None:
    first = levenberg_marquardt(line_of, zeros(2), batches=[(X, Y)])
    fit = levenberg_marquardt(line_of, zeros(2), batches=[(X, Y), (X, Y * torch.nan), (X, Y)])
    assert fit.reason is Reason.NON_FINITE
    assert torch.equal(fit.params, first.params)


# --- odd but right --------------------------------------------------------------------------------

WANTED = torch.tensor([1.0131003, 2.0120608], dtype=F64)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inside_a_grad_mode(mode: Any) -> None:
    with mode():
        fit = levenberg_marquardt(line, zeros(2))
    torch.testing.assert_close(fit.params, WANTED, rtol=1e-6, atol=0)


def test_inputs_that_require_gradients_give_results_without_history() -> None:
    y = Y.clone().requires_grad_()
    start = torch.nn.Parameter(zeros(2))
    for fit in (
        levenberg_marquardt(line_of, start, X, y),
        levenberg_marquardt(lambda p: p[0] + p[1] * X - y, start),
        levenberg_marquardt(line_of, zeros(4, 2), X, y, in_dims=(0, None, None)),
    ):
        results = fit.params, fit.value, fit.covariance(), fit.state.model.gradient
        assert not any(result.requires_grad for result in results)
    assert start.grad is None


@pytest.mark.parametrize("geodesic", [False, True])
@pytest.mark.parametrize("solver", ["qr", "cholesky", "dual", "cg", "lsmr"])
def test_columns_of_zeros_keep_their_start(solver: Any, geodesic: bool) -> None:
    start = torch.tensor([0.0, 7.0], dtype=F64)
    fit = levenberg_marquardt(lambda p: p[0] * X - Y, start, solver=solver, geodesic=geodesic)
    assert fit.params[1] == 7
    assert float(fit.params[0]) == pytest.approx(float(X @ Y / (X @ X)), rel=1e-8)
    assert fit.converged


def test_small_and_empty_shapes() -> None:
    scalar = levenberg_marquardt(lambda p: p * X - Y, torch.ones((), dtype=F64))
    assert scalar.params.shape == scalar.standard_errors().shape == ()
    assert levenberg_marquardt(lambda p: (p - 3).sum(), torch.ones(1, dtype=F64)).params.item() == pytest.approx(3)
    empty = levenberg_marquardt(lambda p: p["a"] * X - Y, {"a": zeros(), "none": zeros(0)})
    assert empty.params["none"].shape == empty.standard_errors()["none"].shape == (0,)
    assert levenberg_marquardt(lambda p: (p[:0], line(p)), zeros(2)).converged
    assert levenberg_marquardt(lambda p: p[:0], zeros(2)).cost == 0
    constant = levenberg_marquardt(lambda p: X - Y, zeros(2))
    assert (constant.reason, constant.steps, constant.rank) == (Reason.GRADIENT, 0, 0)


def test_calls_leave_nothing_behind() -> None:
    first, second = levenberg_marquardt(line, zeros(2)), levenberg_marquardt(line, zeros(2))
    assert torch.equal(first.params, second.params)
    assert [record[:-1] for record in first.history[1:]] == [record[:-1] for record in second.history[1:]]


# --- found by reading: each of these was wrong once ------------------------------------------------


def test_endless_batches_end_at_max_steps_after_an_exact_fit() -> None:
    def patient(state: Any) -> bool:
        calls.append(1)
        return len(calls) > 500

    calls: list[int] = []
    exact = itertools.repeat((X, 2 * X + 1))
    fit = levenberg_marquardt(line_of, zeros(2), batches=exact, max_steps=50, callback=patient)
    assert fit.reason is Reason.MAX_STEPS


def test_batches_for_many_problems_on_another_axis() -> None:
    batches = [(X, Y)] * 9
    fit = levenberg_marquardt(line_of, zeros(2, 4), batches=batches, in_dims=(1, None, None))
    torch.testing.assert_close(fit.params, WANTED.expand(4, 2), rtol=1e-6, atol=0)
    stepper = LevenbergMarquardt(line_of, in_dims=(1, None, None))
    state = stepper.init(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64), X, Y)
    assert torch.equal(stepper.renew(state, X, Y).x, state.x)


@pytest.mark.parametrize("dims", [{"a": None, "b": None}, None])
def test_frozen_leaves_with_axes_given_leaf_by_leaf(dims: Any) -> None:
    fit = levenberg_marquardt(named, two(), X, Y, in_dims=(dims, 0, 0), frozen=["b"])
    assert float(fit.params["a"]) == pytest.approx(float(X @ Y / (X @ X)), rel=1e-8)


def test_frozen_leaves_with_an_entry_for_each_sample() -> None:
    params = {"a": zeros(), "b": X**2}
    fit = levenberg_marquardt(named, params, X, Y, in_dims=({"a": None, "b": 0}, 0, 0), frozen=["b"])
    assert float(fit.params["a"]) == pytest.approx(float(X @ (Y - X**2) / (X @ X)), rel=1e-8)
    assert torch.equal(fit.params["b"], X**2)


def test_frozen_names_from_a_generator() -> None:
    fit = levenberg_marquardt(named, two(), batches=[(X, Y)] * 3, frozen=(name for name in ["b"]))
    assert fit.params["b"] == 0
    stepper = LevenbergMarquardt(named, frozen=iter(["b"]))
    assert [stepper.init(two(), X, Y).x.shape for _ in range(2)] == [(1,), (1,)]


def test_an_undamped_step_of_a_singular_jacobian_is_refused() -> None:
    def both(p: Tensor) -> Tensor:
        return (p[0] + p[1]) * X - Y

    for solver in ("qr", "cholesky", "auto"):
        fit = levenberg_marquardt(both, zeros(2), solver=solver, initial_damping=0.0)  # type: ignore[arg-type]
        assert float(fit.params.sum()) == pytest.approx(float(X @ Y / (X @ X)), rel=1e-8)
        assert fit.params.abs().max() < 10


def test_weights_that_require_gradients() -> None:
    fit = levenberg_marquardt(line, zeros(2), weights=torch.ones(9, dtype=F64, requires_grad=True))
    assert not fit.params.requires_grad
    assert not fit.covariance().requires_grad


def test_transforms_around_a_fit_are_refused() -> None:
    def fitted(y: Tensor) -> Tensor:
        return levenberg_marquardt(line_of, zeros(2), X, y).params.sum()

    for transform in (torch.func.grad, torch.func.vmap):
        with pytest.raises(JacfnError):
            transform(fitted)(Y if transform is torch.func.grad else torch.stack([Y, Y]))


def test_gain_ratios_of_truncated_solves_chosen_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["jacfn.least_squares.solvers.choose"]  # its name in the package is that of the function
    monkeypatch.setattr(module, "choose", lambda *shape: "lsmr")
    A = torch.diag(torch.logspace(0, -2, 40, dtype=F64))
    fit = levenberg_marquardt(
        lambda p, a: a @ p - 1, zeros(40), A, in_dims=(None, 0), solver_steps=2, max_steps=4, scaling="none"
    )
    assert [record.ratio for record in fit.history[1:]] == pytest.approx([1.0] * 4, rel=1e-6)


@pytest.mark.parametrize("geodesic", [False, True])
def test_evaluations_are_never_more_than_allowed(geodesic: bool) -> None:
    for most in (1, 2, 3, 4):
        assert levenberg_marquardt(line, zeros(2), max_evaluations=most, geodesic=geodesic).nfev <= most


@pytest.mark.parametrize(
    ("fn", "params", "options"),
    [
        (lambda p: X - Y, {}, {}),
        (lambda p: p.sum() + X, zeros(0), {}),
        (lambda p: p, zeros(0, 2), {"in_dims": 0}),
        (line, zeros(2), {"max_time": "1"}),
        (line, zeros(2), {"max_steps": None}),
        (line, zeros(2), {"callback": 3}),
        (line, zeros(2), {"batches": 3}),
    ],
    ids=["no leaves", "no elements", "no problems", "max_time", "max_steps", "callback", "batches"],
)
def test_further_arguments_that_make_no_sense(fn: Any, params: Any, options: dict[str, Any]) -> None:
    with pytest.raises(JacfnError):
        levenberg_marquardt(fn, params, **options)


@pytest.mark.parametrize("variance", [-1.0, float("nan"), torch.ones(3), "1"])
def test_variances_that_are_none(variance: Any) -> None:
    with pytest.raises(JacfnError, match="variance"):
        levenberg_marquardt(line, zeros(2)).covariance(variance=variance)
