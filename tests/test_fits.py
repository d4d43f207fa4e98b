"""Fits with known answers: curves against SciPy, bundle adjustment, networks, a partial differential equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from torch import Tensor, nn

from benchmarks.fits.pinn import poisson
from jacfn import levenberg_marquardt, make_functional
from jacfn.least_squares.damping import NAMES as DAMPINGS

F64 = torch.float64
SOLVERS = ["auto", "qr", "cholesky", "dual", "cg", "lsmr"]

# --- curves: each is written once, for NumPy and for torch ----------------------------------------

Curve = Callable[[Any, Any, Any], Any]  # (the library with its exp, x, parameters)


def rise(lib: Any, x: Any, p: Any) -> Any:
    return p[0] * (1 - lib.exp(-p[1] * x))


def two_decays(lib: Any, x: Any, p: Any) -> Any:
    return p[0] * lib.exp(-p[1] * x) + p[2] * lib.exp(-p[3] * x)


def rational(lib: Any, x: Any, p: Any) -> Any:
    return (p[0] + p[1] * x) / (1 + p[2] * x + p[3] * x**2)


def logistic(lib: Any, x: Any, p: Any) -> Any:
    return p[0] / (1 + lib.exp(p[1] - p[2] * x))


def peak_on_decay(lib: Any, x: Any, p: Any) -> Any:
    return p[0] * lib.exp(-p[1] * x) + p[2] * lib.exp(-(((x - p[3]) / p[4]) ** 2))


# The curve, where x ends, the true parameters, a start, the deviation of the noise.
CURVES: dict[str, tuple[Curve, float, list[float], list[float], float]] = {
    "rise": (rise, 5.0, [240.0, 0.55], [500.0, 0.1], 1.0),
    "two_decays": (two_decays, 8.0, [3.0, 2.0, 1.5, 0.3], [2.0, 4.0, 2.0, 0.1], 0.01),
    "rational": (rational, 6.0, [0.5, 2.0, 0.2, 0.3], [1.0, 1.0, 1.0, 1.0], 0.005),
    "logistic": (logistic, 10.0, [70.0, 2.6, 0.7], [100.0, 1.0, 0.5], 0.8),
    "peak_on_decay": (peak_on_decay, 10.0, [9.0, 0.3, 5.0, 6.0, 1.2], [5.0, 0.1, 3.0, 5.0, 2.0], 0.1),
}


def curve_data(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where it was measured, what was measured, and the deviations that are told."""
    curve, end, truth, _, noise = CURVES[name]
    draw = np.random.default_rng(seed)
    x = np.linspace(end / 60, end, 60)
    sigma = noise * draw.uniform(0.5, 2.0, 60)
    return x, curve(np, x, truth) + sigma * draw.normal(size=60), sigma


def by_scipy(name: str, x: np.ndarray, y: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """MINPACK's answer and the covariance; the Jacobian is exact, by complex steps."""
    curve, _, _, start, _ = CURVES[name]

    def jac(x: np.ndarray, *p: float) -> np.ndarray:
        steps = 1e-30j * np.eye(len(p))
        return np.stack([curve(np, x, np.array(p) + step).imag / 1e-30 for step in steps], -1)

    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    fitted: tuple[np.ndarray, np.ndarray] = curve_fit(
        lambda x, *p: curve(np, x, p), x, y, start, jac=jac, method="lm", **tight, **options
    )
    return fitted


def fit_curve(name: str, x: np.ndarray, y: np.ndarray, dtype: torch.dtype = F64, **options: Any) -> Any:
    curve, _, _, start, _ = CURVES[name]
    data = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
    return levenberg_marquardt(
        lambda p, x, y: curve(torch, x, p) - y,
        torch.tensor(start, dtype=dtype),
        *data,
        in_dims=(None, 0, 0),
        **options,
    )


def assert_near(ours: Tensor, wanted: np.ndarray, rtol: float) -> None:
    """Relative to the largest element of what is wanted."""
    difference = np.abs(ours.double().numpy() - wanted).max()
    assert difference <= rtol * np.abs(wanted).max(), f"{difference / np.abs(wanted).max():.2e}"


@pytest.mark.parametrize("name", CURVES)
def test_curves_as_minpack_fits_them(name: str) -> None:
    x, y, _ = curve_data(name)
    wanted, covariance = by_scipy(name, x, y)
    fit = fit_curve(name, x, y)
    assert fit.converged
    assert fit.rank == len(wanted)
    np.testing.assert_allclose(fit.params.numpy(), wanted, rtol=1e-8)
    np.testing.assert_allclose(fit.standard_errors().numpy(), np.sqrt(np.diag(covariance)), rtol=1e-8)
    assert_near(fit.covariance(), covariance, 1e-8)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", CURVES)
def test_weighted_curves_as_curve_fit_has_them(name: str, absolute: bool) -> None:
    x, y, sigma = curve_data(name)
    wanted, covariance = by_scipy(name, x, y, sigma=sigma, absolute_sigma=absolute)
    fit = fit_curve(name, x, y, weights=torch.tensor(sigma**-2))
    variance = 1.0 if absolute else None
    np.testing.assert_allclose(fit.params.numpy(), wanted, rtol=1e-8)
    np.testing.assert_allclose(fit.standard_errors(variance=variance).numpy(), np.sqrt(np.diag(covariance)), rtol=1e-8)
    assert_near(fit.covariance(variance=variance), covariance, 1e-8)


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("name", CURVES)
def test_every_damping_finds_the_curve(name: str, damping: Any) -> None:
    x, y, _ = curve_data(name)
    wanted = fit_curve(name, x, y)
    for geodesic in (False, True):
        fit = fit_curve(name, x, y, damping=damping, geodesic=geodesic)
        assert fit.converged
        assert fit.cost == pytest.approx(wanted.cost, rel=1e-12)


@pytest.mark.parametrize("name", CURVES)
def test_curves_in_single_precision(name: str) -> None:
    x, y, _ = curve_data(name)
    wanted, fit = fit_curve(name, x, y), fit_curve(name, x, y, torch.float32)
    assert fit.params.dtype == torch.float32
    assert fit.converged
    assert fit.cost == pytest.approx(wanted.cost, rel=1e-4)
    errors = wanted.standard_errors()
    assert float(((fit.params - wanted.params).abs() / errors).max()) < 0.05  # far below what the data tell
    torch.testing.assert_close(fit.standard_errors().double(), errors, rtol=0.02, atol=0)


def test_noise_free_curves_are_recovered() -> None:
    for name, (curve, end, truth, _, _) in CURVES.items():
        x = np.linspace(end / 60, end, 60)
        fit = fit_curve(name, x, curve(np, x, truth))
        assert fit.cost < 1e-24
        np.testing.assert_allclose(np.sort(fit.params.numpy()), np.sort(truth), rtol=1e-8)


@pytest.mark.parametrize("solver", ["auto", "qr", "cholesky"])
def test_many_curves_at_once_as_one_by_one(solver: Any) -> None:
    curve, _, _, start, _ = CURVES["peak_on_decay"]
    data = [curve_data("peak_on_decay", seed)[:2] for seed in range(6)]
    x, y = torch.tensor(data[0][0]), torch.tensor(np.stack([y for _, y in data]))
    starts = torch.tensor(start, dtype=F64).expand(6, 5).clone()
    fit = levenberg_marquardt(lambda p, x, y: curve(torch, x, p) - y, starts, x, y, in_dims=(0, None, 0), solver=solver)
    assert bool(fit.converged.all())
    assert fit.rank.tolist() == [5] * 6
    low, high = fit.confidence_interval(0.9)
    for i, (_, one) in enumerate(data):
        alone = fit_curve("peak_on_decay", data[0][0], one, solver="qr")
        torch.testing.assert_close(fit.params[i], alone.params, rtol=1e-8, atol=0)
        torch.testing.assert_close(fit.standard_errors()[i], alone.standard_errors(), rtol=1e-8, atol=0)
        assert_near(fit.covariance()[i], alone.covariance().numpy(), 1e-8)
        ends = alone.confidence_interval(0.9)
        torch.testing.assert_close((low[i], high[i]), ends, rtol=1e-8, atol=1e-10)


# --- bundle adjustment ----------------------------------------------------------------------------

CAMERAS, POINTS = 5, 30
GAUGE = 7  # rotations, translations and the scale of the whole scene change no picture


def project(camera: Tensor, point: Tensor) -> Tensor:
    """Where a camera (axis and angle, translation, focal length) sees a point; Rodrigues' formula."""
    angle = camera[:3].norm()
    axis = camera[:3] / angle
    turned = angle.cos() * point + angle.sin() * torch.linalg.cross(axis, point)
    seen = turned + (1 - angle.cos()) * (axis @ point) * axis + camera[3:6]
    return camera[6] * seen[:2] / seen[2]


def scene(noise: float, dtype: torch.dtype = F64) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """A perturbed start; who sees which point, and where."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    points = 2 * torch.rand(POINTS, 3, generator=generator, dtype=F64) - 1
    away = torch.tensor([0.0, 0.0, 5.0], dtype=F64) + 0.3 * normal(CAMERAS, 3)
    focal = 1 + 0.1 * torch.rand(CAMERAS, 1, generator=generator, dtype=F64)
    cameras = torch.cat([0.3 * normal(CAMERAS, 3), away, focal], 1)
    camera, point = torch.cartesian_prod(torch.arange(CAMERAS), torch.arange(POINTS)).T
    seen = torch.func.vmap(project)(cameras[camera], points[point])
    seen = seen + noise * normal(*seen.shape)
    start = {"cameras": cameras + 0.03 * normal(CAMERAS, 7), "points": points + 0.1 * normal(POINTS, 3)}
    return {name: leaf.to(dtype) for name, leaf in start.items()}, camera, point, seen.to(dtype)


def reprojection(p: dict[str, Tensor], camera: Tensor, point: Tensor, seen: Tensor) -> Tensor:
    return project(p["cameras"][camera], p["points"][point]) - seen


@pytest.mark.parametrize("solver", SOLVERS)
def test_bundle_adjustment_without_noise_is_exact(solver: Any) -> None:
    fit = levenberg_marquardt(reprojection, *scene(0.0), in_dims=(None, 0, 0, 0), solver=solver, max_steps=60)
    assert fit.converged
    assert fit.cost < 1e-26
    assert fit.rank == 7 * CAMERAS + 3 * POINTS - GAUGE


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("solver", SOLVERS)
def test_bundle_adjustment_reaches_the_noise(solver: Any, dtype: torch.dtype) -> None:
    fit = levenberg_marquardt(reprojection, *scene(1e-3, dtype), in_dims=(None, 0, 0, 0), solver=solver, max_steps=100)
    wanted = levenberg_marquardt(reprojection, *scene(1e-3), in_dims=(None, 0, 0, 0), damping="trust-region")
    assert fit.converged
    assert fit.cost == pytest.approx(wanted.cost, rel=1e-10 if dtype == F64 else 1e-4)
    rank = 7 * CAMERAS + 3 * POINTS - GAUGE
    free = 2 * CAMERAS * POINTS - rank
    assert 0.8 < 2 * fit.cost / (1e-6 * free) < 1.2  # chi-squared with 182 degrees of freedom: within 10 % or so
    assert fit.rank == rank


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sinc_by_a_small_network(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    fn, params = make_functional(nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).to(dtype))
    x = torch.linspace(-1, 1, 400, dtype=dtype)[:, None]
    y = torch.sinc(10 * x)
    fit = levenberg_marquardt(lambda p, x, y: fn(p, x) - y, params, x, y, in_dims=(None, 0, 0), max_steps=200)
    assert 2 * fit.cost / 400 < 5e-4  # a hundredth of the variance of y; most starts end below 1e-5
    costs = [record.cost for record in fit.history]
    assert costs == sorted(costs, reverse=True)


def test_digits_better_than_by_ridge_regression() -> None:
    problems = pytest.importorskip("jacfn._demo.problems")
    problem = problems.load("digits", 0, "cpu")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    fn, params = make_functional(network)
    answers, _ = make_functional(network, batched=True)
    # Weight decay as further samples, each with ten of the weights for residuals.
    count, extra = len(problem.inputs), sum(leaf.numel() for leaf in params.values()) // 10
    part = torch.cat([torch.full((count,), -1), torch.arange(extra)])
    x = torch.cat([problem.inputs, torch.zeros(extra, 1, 8, 8, dtype=F64)])
    y = torch.cat([problem.targets, torch.zeros(extra, 10, dtype=F64)])

    def residual(p: dict[str, Tensor], x: Tensor, y: Tensor, part: Tensor) -> Tensor:
        weights = torch.cat([leaf.flatten() for leaf in p.values()]).reshape(-1, 10)
        return torch.where(part < 0, fn(p, x) - y, weights[part.clamp(min=0)])

    fit = levenberg_marquardt(residual, params, x, y, part, in_dims=(None, 0, 0, 0), max_steps=12)
    accuracy = problem.score(answers(fit.params, problem.held_inputs), problem.held_targets)
    assert accuracy > problem.baselines["ridge regression"]


# --- a partial differential equation --------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_poisson_equation_by_a_network(seed: int) -> None:
    problem = poisson(seed)
    fit = levenberg_marquardt(
        problem.residual, problem.params, *problem.data, in_dims=problem.in_dims, geodesic=True, max_steps=200
    )
    assert problem.error(fit.params) <= 2e-6
