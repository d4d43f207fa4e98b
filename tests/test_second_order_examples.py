"""The worked examples of the docs, with few samples: their numbers are the known ones, their pictures are drawn."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import jacfn

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For such small arrays more take longer, the more so where other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def poisson() -> ModuleType:
    return script("poisson")


@pytest.fixture(scope="module")
def waves() -> ModuleType:
    return script("wavefunctions")


@pytest.fixture(scope="module")
def spectrum() -> ModuleType:
    return script("spectrum")


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --- Poisson


def test_poisson_source_belongs_to_the_solution(poisson: ModuleType) -> None:
    x = poisson.grid(5)
    h = 1e-3
    steps = h * torch.eye(2, dtype=torch.float64)
    around = sum(poisson.solution(x + s) + poisson.solution(x - s) for s in steps)
    torch.testing.assert_close(-(around - 4 * poisson.solution(x)) / h**2, poisson.source(x), rtol=1e-4, atol=1e-8)


def test_poisson_is_solved_and_drawn(poisson: ModuleType, tmp_path: Path) -> None:
    fit, errors = poisson.solve(12, 60)
    assert len(errors) == fit.steps
    assert errors[0] > 0.5
    assert errors[-1] < 5e-3
    edge = torch.tensor([[0.0, 0.3], [1.0, 0.4], [0.2, 0.0], [0.7, 1.0]], dtype=torch.float64)
    assert all(poisson.u(fit.params, x) == 0 for x in edge)
    poisson.draw(fit.params, errors).savefig(tmp_path / "picture.png")


# --- wave functions


def test_hydrogen_has_one_local_energy_everywhere(waves: ModuleType) -> None:
    x = torch.randn(500, 1, 3, dtype=torch.float64)
    local = waves.local_energy(waves.exponential, {"zeta": scalar(1.0)}, x)
    torch.testing.assert_close(local, torch.full_like(local, -0.5), rtol=0, atol=1e-10)


def test_local_energy_of_two_exponentials_is_the_known_one(waves: ModuleType) -> None:
    zeta = 27 / 16
    x = torch.randn(500, 2, 3, dtype=torch.float64)
    r1, r2, r12 = x[:, 0].norm(dim=1), x[:, 1].norm(dim=1), (x[:, 0] - x[:, 1]).norm(dim=1)
    expected = -(zeta**2) + (zeta - 2) * (1 / r1 + 1 / r2) + 1 / r12
    torch.testing.assert_close(waves.local_energy(waves.exponential, {"zeta": scalar(zeta)}, x), expected)


def energies(waves: ModuleType, log_psi: str, params: dict[str, Tensor], electrons: int) -> tuple[float, float]:
    """The mean and its error."""
    function = getattr(waves, log_psi)
    found = waves.measure(function, params, waves.walkers(function, params, electrons, 1000), 30)
    return found.mean, found.error


@pytest.mark.parametrize(
    ("log_psi", "params", "electrons", "exact", "largest"),
    [
        ("exponential", {"zeta": 0.8}, 1, 0.8**2 / 2 - 0.8, 5e-3),
        ("gaussian", {"alpha": 8 / (9 * math.pi)}, 1, -4 / (3 * math.pi), 1e-2),
        ("exponential", {"zeta": 27 / 16}, 2, -((27 / 16) ** 2), 2e-2),
    ],
)
def test_energy_is_the_known_one_within_its_error(
    waves: ModuleType, log_psi: str, params: dict[str, float], electrons: int, exact: float, largest: float
) -> None:
    mean, error = energies(waves, log_psi, {name: scalar(value) for name, value in params.items()}, electrons)
    assert error < largest
    assert abs(mean - exact) < 4 * error


def test_spread_of_hydrogen_is_the_known_one(waves: ModuleType) -> None:
    params = {"zeta": scalar(1.2)}
    found = waves.measure(waves.exponential, params, waves.walkers(waves.exponential, params, 1, 2000), 20)
    assert found.spread == pytest.approx(0.2 * 1.2, rel=0.1)


def by_quadrature(b: float, nodes: int = 40) -> float:
    """The energy of the correlated function.

    Of r1, r2 and r12 alone, ``<|∇ψ|²>/2`` is the kinetic energy; in perimetric coordinates ``x = r1 + r12 - r2`` and so
    on (Pekeris, 1958, doi:10.1103/PhysRev.112.1649) the domain is all that is positive, and the density ``r1 r2 r12``.
    """
    t, w = np.polynomial.laguerre.laggauss(nodes)
    w = w * np.exp(t)
    x, y, z = t[:, None, None] / 2, t[None, :, None] / 2, t[None, None, :] / 4
    r1, r2, r12 = (x + z) / 2, (y + z) / 2, (x + y) / 2
    slope = 1 / (2 * (1 + b * r12) ** 2)  # of log ψ, along r12; -2 along r1 and r2
    cosines = (r1**2 + r12**2 - r2**2) / (2 * r1 * r12) + (r2**2 + r12**2 - r1**2) / (2 * r2 * r12)
    energy = (8 + 2 * slope**2 - 4 * slope * cosines) / 2 - 2 / r1 - 2 / r2 + 1 / r12
    density = np.exp(-4 * (r1 + r2) + r12 / (1 + b * r12)) * r1 * r2 * r12
    weights = density * w[:, None, None] * w[None, :, None] * w[None, None, :]
    return float((weights * energy).sum() / weights.sum())


def test_quadrature_has_its_least_where_the_page_says() -> None:
    least = by_quadrature(0.14335)
    assert least == pytest.approx(-2.878196, abs=1e-6)
    assert least < min(by_quadrature(0.13), by_quadrature(0.157))


def test_helium_with_correlation_is_optimised(waves: ModuleType) -> None:
    x = waves.walkers(waves.correlated, {"log_b": scalar(0.0)}, 2, 1000)
    params, x, path = waves.optimise(waves.correlated, {"log_b": scalar(0.0)}, x, 50)
    assert path[0].mean > -2.85
    b = params["log_b"].exp().item()
    assert 0.1 < b < 0.2
    found = waves.measure(waves.correlated, params, x, 30)
    assert found.error < 5e-3
    assert abs(found.mean - by_quadrature(b)) < 4 * found.error


def test_helium_with_a_network_comes_close_to_the_atom_and_is_drawn(waves: ModuleType, tmp_path: Path) -> None:
    x = waves.walkers(waves.neural, waves.weights, 2, 500)
    params, x, path = waves.optimise(waves.neural, waves.weights, x, 40)
    found = waves.measure(waves.neural, params, x, 20)
    assert abs(found.mean - -2.903724) < 5e-3 + 4 * found.error
    assert found.mean < -2.89
    waves.draw({0.8: found, 1.2: found}, {"correlated": path, "neural": path}).savefig(tmp_path / "picture.png")


# --- spectrum


def test_spectrum_is_that_of_the_dense_hessian_and_is_drawn(spectrum: ModuleType, tmp_path: Path) -> None:
    loss, weights = spectrum.trained(3, hidden=4, steps=100)
    top = spectrum.largest(loss, weights, 6)
    dense = torch.linalg.eigvalsh(torch.func.hessian(loss)(weights))
    np.testing.assert_allclose(top, dense.flip(0)[:6], rtol=1e-10)
    at, width = torch.linspace(-1, 1, 4001, dtype=torch.float64), 0.02
    density = spectrum.density(loss, weights, at, width, steps=20, probes=2)
    assert float(torch.trapezoid(density, at)) == pytest.approx(1, abs=1e-6)
    tops = {3: top, 5: top, 10: top}
    spectrum.draw(tops, dense, at, density, width).savefig(tmp_path / "picture.png")


def test_quadrature_of_lanczos_has_the_moments_of_the_hessian(spectrum: ModuleType) -> None:
    loss, weights = spectrum.trained(3, hidden=2, steps=20)
    H = torch.func.hessian(loss)(weights)
    v = torch.nn.functional.normalize(torch.randn_like(weights), dim=0)
    nodes, masses = spectrum.lanczos(loss, weights, v, 5)
    power = v
    for k in range(2 * 5):  # a Gauss quadrature is exact up to the degree 2 * 5 - 1
        torch.testing.assert_close((nodes**k) @ masses, v @ power)
        power = H @ power


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_outliers_are_one_less_than_classes(spectrum: ModuleType, classes: int) -> None:
    loss, weights = spectrum.trained(classes)
    top = spectrum.largest(loss, weights, classes + 3)
    drops = top[:-1] / top[1:]
    assert drops[classes - 2] > 1.2 > drops[classes - 1]


def test_pages_show_what_is_there() -> None:
    """Every part of a script that a page includes by name exists."""
    for name in ("poisson", "wavefunctions", "spectrum"):
        page = (FOLDER.parent / f"{name}.rst").read_text()
        source = (FOLDER / f"{name}.py").read_text()
        included = [line.split(": ", 1)[1] for line in page.splitlines() if ":pyobject:" in line]
        assert all(f"def {part}(" in source for part in included)
        assert f".. worked-example:: {name}" in page
    assert jacfn.__name__ in source
