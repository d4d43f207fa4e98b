"""The second derivative of residuals along a step, by which geodesic acceleration bends it."""

from __future__ import annotations

import pytest
import torch
from jets import differences
from torch import Tensor

import jacfn
from jacfn import levenberg_marquardt
from jacfn.least_squares.passes import Passes
from jacfn.least_squares.problem import make_problem


def residual(params: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.nn.functional.layer_norm(torch.tanh(params["w"] * x + params["b"]), (3,))
    return torch.stack([(params["v"] * hidden).sum(), x.sin()])


def some(count: int, *lead: int) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    params = {name: torch.randn(*lead, 3, dtype=torch.float64) for name in "wbv"}
    return params, torch.randn(count, dtype=torch.float64)


@pytest.mark.parametrize("memory", [None, "64KiB"])
@pytest.mark.parametrize("frozen", [None, ["b"]])
@pytest.mark.parametrize("in_dims", [(None, 0), (0, 0)], ids=["one problem", "many problems"])
def test_curvature(in_dims, frozen, memory) -> None:
    params, x = some(40, *(() if in_dims[0] is None else (40,)))
    if in_dims[0] == 0 and memory is not None:
        memory = "4MiB"  # their Jacobians are stacked
    problem = make_problem(residual, params, (x,), in_dims, frozen, None, Passes(memory=memory))
    start = problem.start
    h = torch.randn_like(start)
    got = problem.curvature(start, h)
    assert got is not None
    _, wanted = differences(problem.residuals, (start,), (h,))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_weights_scale_it() -> None:
    params, x = some(10)
    weights = torch.rand(10, 2, dtype=torch.float64)
    problem = make_problem(residual, params, (x,), (None, 0), None, weights, Passes())
    h = torch.randn_like(problem.start)
    _, wanted = differences(problem.residuals, (problem.start,), (h,))
    torch.testing.assert_close(problem.curvature(problem.start, h), wanted, rtol=1e-6, atol=1e-7)


def test_without_rules_there_is_none() -> None:
    """Then the difference of values serves, and the fit is as good."""
    params, x = some(40)

    def hidden_from_rules(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.vmap(lambda scale: residual(params, x)[0] * scale)(x.new_ones(1))

    problem = make_problem(hidden_from_rules, params, (x,), (None, 0), None, None, Passes())
    for _ in range(2):
        assert problem.curvature(problem.start, problem.start) is None
    fit = levenberg_marquardt(hidden_from_rules, params, x, in_dims=(None, 0), geodesic=True)
    assert fit.cost < 1e-20


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_of_torchscript_there_is_none() -> None:
    """It hands on what was raised inside in its own words."""

    @torch.jit.script
    def decay(rate: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-rate * x)

    def scripted(params: Tensor, x: Tensor) -> Tensor:
        return params[1] * decay(params[0], x) - 2 * torch.exp(-0.5 * x)

    start, x = torch.ones(2, dtype=torch.float64), torch.linspace(0, 3, 20, dtype=torch.float64)
    fit = levenberg_marquardt(scripted, start, x, in_dims=(None, 0), geodesic=True)
    torch.testing.assert_close(fit.params, torch.tensor([0.5, 2.0], dtype=torch.float64))


def test_of_a_laplacian() -> None:
    """A differential equation: the residuals contain second derivatives by the input."""
    fn, params = jacfn.make_functional(
        torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    )
    params = {name: leaf.double() for name, leaf in params.items()}
    points = torch.randn(6, 2, dtype=torch.float64)

    def equation(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return jacfn.laplacian(lambda x: fn(params, x)[0], strict=True)(x) - x.sum()

    problem = make_problem(equation, params, (points,), (None, 0), None, None, Passes())
    h = torch.randn_like(problem.start)
    _, wanted = differences(problem.residuals, (problem.start,), (h,))
    torch.testing.assert_close(problem.curvature(problem.start, h), wanted, rtol=1e-6, atol=1e-7)
