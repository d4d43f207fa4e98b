"""Covariance, standard errors, intervals, rank and the table, against NumPy and SciPy."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from jacfn import JacfnError, JacfnValueError, Reason, levenberg_marquardt, make_functional
from jacfn._memory import PeakBytes

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear(A: Tensor, b: Tensor, start: Tensor | None = None, **options: Any) -> Any:
    """The fit of ``A p - b``: its Jacobian is ``A`` everywhere."""
    start = torch.zeros(A.shape[1], dtype=A.dtype) if start is None else start
    return levenberg_marquardt(lambda p, a, b: a @ p - b, start, A, b, in_dims=(None, 0, 0), **options)


def by_numpy(A: Tensor, b: Tensor, variance: float | None = None, weights: Tensor | None = None) -> np.ndarray:
    """``s² (AᵀWA)⁻¹``, by the pseudoinverse."""
    a, r = A.double().numpy(), b.double().numpy()
    root = np.ones(len(r)) if weights is None else np.sqrt(weights.numpy())
    a, r = a * root[:, None], r * root
    left = r - a @ np.linalg.lstsq(a, r, rcond=None)[0]
    s = left @ left / (a.shape[0] - a.shape[1]) if variance is None else variance
    inverse = np.linalg.pinv(a)
    covariance: np.ndarray = s * inverse @ inverse.T
    return covariance


# --- covariance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "qr", "cholesky", "dual", "cg", "lsmr"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_covariance_of_linear_problems(solver: Any, chunk_size: int | None) -> None:
    A, b = normal(20, 4), normal(20, seed=1)
    fit = linear(A, b, solver=solver, chunk_size=chunk_size)
    np.testing.assert_allclose(fit.covariance().numpy(), by_numpy(A, b), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(fit.standard_errors().numpy(), np.sqrt(np.diag(by_numpy(A, b))), rtol=1e-10)
    np.testing.assert_allclose(fit.covariance(variance=2.5).numpy(), by_numpy(A, b, 2.5), rtol=1e-10, atol=1e-14)


def test_covariance_with_weights() -> None:
    A, b = normal(20, 4), normal(20, seed=1)
    w = normal(20, seed=2).exp()
    fit = linear(A, b, weights=w)
    np.testing.assert_allclose(fit.covariance().numpy(), by_numpy(A, b, weights=w), rtol=1e-10, atol=1e-14)
    wanted = by_numpy(A, b, 1.0, w)
    np.testing.assert_allclose(fit.covariance(variance=1.0).numpy(), wanted, rtol=1e-10, atol=1e-14)


def test_residuals_without_weight_do_not_steer_the_covariance() -> None:
    A, b = normal(20, 4), normal(20, seed=1)
    w = (torch.arange(20) < 12).double()
    known = linear(A, b, weights=w).covariance(variance=1.0)
    np.testing.assert_allclose(known.numpy(), by_numpy(A[:12], b[:12], 1.0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("power", [8, 12])
def test_units_of_the_parameters_cost_no_digits(power: int) -> None:
    A, b = normal(20, 3), normal(20, seed=1)
    units = torch.tensor([10.0**-power, 1.0, 10.0**power], dtype=F64)
    fit, wanted = linear(A * units, b), linear(A, b)
    torch.testing.assert_close(fit.standard_errors() * units, wanted.standard_errors(), rtol=1e-10, atol=0)
    assert fit.rank == 3


def test_covariance_of_many_problems() -> None:
    A, b = normal(5, 12, 3), normal(5, 12, seed=1)
    fit = levenberg_marquardt(lambda p, a, b: a @ p - b, torch.zeros(5, 3, dtype=F64), A, b, in_dims=0)
    wanted = np.stack([by_numpy(A[i], b[i]) for i in range(5)])
    np.testing.assert_allclose(fit.covariance().numpy(), wanted, rtol=1e-9, atol=1e-14)
    assert fit.standard_errors().shape == (5, 3)
    variance = torch.linspace(1, 2, 5, dtype=F64)
    known = np.stack([by_numpy(A[i], b[i], float(variance[i])) for i in range(5)])
    np.testing.assert_allclose(fit.covariance(variance=variance).numpy(), known, rtol=1e-9, atol=1e-14)


def test_more_parameters_than_residuals_have_a_pseudoinverse() -> None:
    A, b = normal(3, 5), normal(3, seed=1)
    fit = linear(A, b)
    assert fit.rank == 3
    known = fit.covariance(variance=1.0, pseudo=True)
    np.testing.assert_allclose(known.numpy(), _scaled_pseudo(A), rtol=1e-9, atol=1e-12)


def _scaled_pseudo(A: Tensor) -> np.ndarray:
    """``D⁻¹ (Â'Â)⁺ D⁻¹`` with unit columns ``Â = A D⁻¹``."""
    scale = np.linalg.norm(A.numpy(), axis=0)
    inverse = np.linalg.pinv(A.numpy() / scale)
    covariance: np.ndarray = inverse @ inverse.T / scale / scale[:, None]
    return covariance


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_single_precision_is_singular_at_its_own_rounding(dtype: torch.dtype) -> None:
    A = normal(20, 3)
    A[:, 2] = A[:, 1] * (1 + 1e-9 * normal(20, seed=4))
    fit = linear(A.to(dtype), normal(20, seed=1).to(dtype), max_steps=20)
    assert fit.rank == (3 if dtype == F64 else 2)


# --- singular Jacobians ---------------------------------------------------------------------------


def redundant(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Only the sum of ``left`` and ``right[1]`` matters."""
    return p["slope"] * x + p["left"] + p["right"][1] - y


def redundant_fit(**options: Any) -> Any:
    start = {"slope": torch.zeros((), dtype=F64), "left": torch.zeros((), dtype=F64)}
    start["right"] = torch.zeros(2, dtype=F64)
    x = torch.linspace(0, 1, 9, dtype=F64)
    return levenberg_marquardt(redundant, start, x, (9 * x).sin(), in_dims=(None, 0, 0), **options)


def test_a_singular_jacobian_is_reported_with_names() -> None:
    fit = redundant_fit(frozen=["slope"])
    assert fit.converged
    assert fit.rank == 1
    for method in (fit.covariance, fit.standard_errors, fit.confidence_interval):
        with pytest.raises(JacfnError, match=r"rank 1 of 3.*mostly .*(left|right).*frozen=.*pseudo=True"):
            method()


def test_the_direction_without_data_is_named() -> None:
    A = normal(20, 3)
    A[:, 1] = 0
    with pytest.raises(JacfnError, match=r"rank 2 of 3: .*mostly \[1\]\)"):
        linear(A, normal(20, seed=1)).covariance()


def test_pseudo_covariance_within_what_is_determined() -> None:
    A = normal(20, 3)
    A[:, 1] = 0
    fit = linear(A, normal(20, seed=1))
    covariance = fit.covariance(variance=1.0, pseudo=True)
    wanted = by_numpy(A[:, [0, 2]], torch.zeros(20, dtype=F64), 1.0)
    np.testing.assert_allclose(covariance[[0, 2]][:, [0, 2]].numpy(), wanted, rtol=1e-10, atol=1e-14)
    assert not covariance[1].any()
    assert fit.standard_errors(pseudo=True)[1] == 0


def test_many_weak_directions_are_named_by_the_weakest() -> None:
    """Columns that sum to zero: no parameter has more than a small part of what is open."""
    A = normal(40, 25)
    A = A - A.mean(1, keepdim=True)
    with pytest.raises(JacfnError, match=r"rank 24 of 25: .*mostly \[\d+\], \[\d+\], \[\d+\]\)"):
        linear(A, normal(40, seed=1)).covariance()


def test_one_singular_problem_of_many_takes_no_covariance_from_the_others() -> None:
    A, b = normal(4, 12, 3), normal(4, 12, seed=1)
    A[2, :, 1] = 0
    fit = levenberg_marquardt(lambda p, a, b: a @ p - b, torch.zeros(4, 3, dtype=F64), A, b, in_dims=0)
    assert fit.rank.tolist() == [3, 3, 2, 3]
    covariance = fit.covariance()
    assert covariance[2].isnan().all()
    for i in (0, 1, 3):
        np.testing.assert_allclose(covariance[i].numpy(), by_numpy(A[i], b[i]), rtol=1e-9, atol=1e-12)
    assert fit.standard_errors(pseudo=True).isfinite().all()


def test_a_problem_that_is_not_finite_takes_no_errors_from_the_others() -> None:
    A, b = normal(4, 12, 3), normal(4, 12, seed=1)
    b[1, 3] = torch.nan
    fit = levenberg_marquardt(lambda p, a, b: a @ p - b, torch.zeros(4, 3, dtype=F64), A, b, in_dims=0)
    assert fit.reason[1] is Reason.NON_FINITE
    errors = fit.standard_errors(pseudo=True)
    assert errors[1].isnan().all()
    for i in (0, 2, 3):
        np.testing.assert_allclose(errors[i].numpy(), np.sqrt(np.diag(by_numpy(A[i], b[i]))), rtol=1e-9)


# --- what has no covariance -----------------------------------------------------------------------


def not_finite_fit() -> Any:
    """Of two batches, the second of which has no logarithms."""
    x = torch.linspace(1, 2, 9, dtype=F64)
    return levenberg_marquardt(
        lambda p, x: p["a"] * x.log() + p["b"] - x,
        {"a": torch.zeros((), dtype=F64), "b": torch.zeros((), dtype=F64)},
        in_dims=(None, 0),
        batches=[(x,), (x - 1.5,)],
    )


def test_what_is_not_finite_has_no_statistics() -> None:
    fit = not_finite_fit()
    assert fit.reason is Reason.NON_FINITE
    for ask in (
        lambda: fit.rank,
        fit.covariance,
        fit.standard_errors,
        fit.confidence_interval,
        lambda: fit.covariance(variance=1.0, pseudo=True),
    ):
        with pytest.raises(JacfnError, match="where the fit ended are not finite: mend fn, leave out the data"):
            ask()
    assert "no standard errors: covariance and rank: the residuals" in fit.summary()


def test_a_problem_of_many_that_is_not_finite_has_no_covariance_whatever_is_asked() -> None:
    A, b = normal(3, 12, 3), normal(3, 12, seed=1)
    b[1, 3] = torch.inf
    fit = levenberg_marquardt(lambda p, a, b: a @ p - b, torch.zeros(3, 3, dtype=F64), A, b, in_dims=0)
    covariance = fit.covariance(variance=1.0, pseudo=True)
    assert covariance.isnan().all((1, 2)).tolist() == [False, True, False]


def wide_fit(p: int, **options: Any) -> Any:
    """Three residuals of ``p`` parameters."""
    x = torch.arange(p, dtype=F64)
    rows = torch.stack([torch.ones(p, dtype=F64), x.cos(), x.sin()])
    return linear(rows, normal(3), max_steps=2, **options)


def test_the_rank_of_few_rows_takes_no_square_matrix() -> None:
    fit = wide_fit(20_000)
    with PeakBytes() as seen:
        assert fit.rank == 3
    assert seen.peak < 100 * 20_000 * 8


@pytest.mark.parametrize("pseudo", [False, True])
def test_a_covariance_without_room_is_refused(pseudo: bool) -> None:
    fit = wide_fit(20_000)
    with (
        PeakBytes() as seen,
        pytest.raises(
            JacfnError, match=r"covariance: a matrix of 20000 x 20000 .* takes 3052 MiB, .* room for 2048 MiB"
        ),
    ):
        fit.covariance(variance=1.0, pseudo=pseudo)
    assert seen.peak < 1 << 20


def test_the_room_for_a_covariance_is_the_budget() -> None:
    x = torch.linspace(0, 3, 400, dtype=F64)

    def fit(memory: str) -> Any:
        return levenberg_marquardt(
            lambda p, x: (p * torch.cos(x * torch.arange(300))).sum(),
            torch.ones(300, dtype=F64),
            x,
            in_dims=(None, 0),
            memory=memory,
            max_steps=1,
        )

    with pytest.raises(JacfnError, match=r"300 x 300 numbers .*takes 0.6866 MiB, .* room for 0.5 MiB: .*memory="):
        fit("0.5MiB").covariance(variance=1.0, pseudo=True)
    with pytest.raises(JacfnError, match="rank: a matrix of 300 x 300"):
        _ = fit("0.5MiB").rank
    assert fit("64MiB").covariance(variance=1.0, pseudo=True).shape == (300, 300)


# --- degrees of freedom ---------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "p"), [(3, 3), (2, 3), (1, 1)])
def test_no_degrees_of_freedom(m: int, p: int) -> None:
    fit = linear(normal(m, p), normal(m, seed=1))
    with pytest.raises(JacfnError, match=rf"{m} residual\(s\) leave no degrees of freedom for {p} parameter"):
        fit.covariance()
    with pytest.raises(JacfnError, match="degrees of freedom"):
        fit.confidence_interval()
    assert "no standard errors: covariance" in fit.summary()
    if m == p:
        wanted = by_numpy(fit.state.model.rows.operator.materialize(), torch.zeros(m, dtype=F64), 1.0)
        np.testing.assert_allclose(fit.covariance(variance=1.0).numpy(), wanted, rtol=1e-9)


def test_frozen_leaves_give_degrees_of_freedom_back() -> None:
    A, b = normal(3, 3), normal(3, seed=1)
    start = {"a": torch.zeros(2, dtype=F64), "b": torch.zeros(1, dtype=F64)}
    fit = levenberg_marquardt(lambda p: A @ torch.cat([p["a"], p["b"]]) - b, start, frozen=["b"])
    np.testing.assert_allclose(fit.covariance().numpy(), by_numpy(A[:, :2], b), rtol=1e-9)
    assert fit.standard_errors()["b"].tolist() == [0.0]
    low, high = fit.confidence_interval()
    assert low["b"] == high["b"] == start["b"]


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_confidence_interval(level: float) -> None:
    A, b = normal(9, 3), normal(9, seed=1)
    fit = linear(A, b)
    low, high = fit.confidence_interval(level)
    centre, errors = fit.params.numpy(), np.sqrt(np.diag(by_numpy(A, b)))
    wanted = [stats.t.interval(level, 6, loc=c, scale=e) for c, e in zip(centre, errors, strict=True)]
    np.testing.assert_allclose(np.stack([low.numpy(), high.numpy()], -1), wanted, rtol=1e-9)


def test_confidence_interval_has_the_structure_of_the_parameters() -> None:
    start = {"a": [torch.zeros(2, dtype=F64)], "b": (torch.zeros((), dtype=F64),)}
    A, b = normal(9, 3), normal(9, seed=1)
    tree = levenberg_marquardt(lambda p: A[:, :2] @ p["a"][0] + A[:, 2] * p["b"][0] - b, start)
    low, high = tree.confidence_interval()
    flat = linear(A, b).confidence_interval()
    torch.testing.assert_close(torch.cat([low["a"][0], low["b"][0][None]]), flat[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([high["a"][0], high["b"][0][None]]), flat[1], rtol=1e-9, atol=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    x = torch.linspace(0, 2, 25, dtype=F64)
    y = 2 * torch.exp(-1.3 * x) + 0.05 * normal(2000, 25)
    fit = levenberg_marquardt(
        lambda p, y: p[0] * torch.exp(-p[1] * x) - y, torch.ones(2000, 2, dtype=F64), y, in_dims=0
    )
    assert bool(fit.converged.all())
    low, high = fit.confidence_interval(0.9)
    truth = torch.tensor([2.0, 1.3], dtype=F64)
    covered = ((low < truth) & (truth < high)).double().mean(0)
    assert ((covered - 0.9).abs() < 0.03).all()  # four deviations of the count are 0.027


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -0.5, float("nan")])
def test_levels_between_nothing_and_everything(level: float) -> None:
    with pytest.raises(JacfnValueError, match=r"level must lie between 0 and 1, got .*: 0\.95 for 95 %"):
        linear(normal(9, 2), normal(9, seed=1)).confidence_interval(level)


def test_intervals_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = linear(normal(9, 2), normal(9, seed=1))
    imported = builtins.__import__

    def without_scipy(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    for name in [name for name in sys.modules if name == "scipy.stats"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(JacfnError, match=r"confidence_interval needs SciPy: pip install 'jacfn\[scipy\]'"):
        fit.confidence_interval()


# --- the table ------------------------------------------------------------------------------------


def test_summary_of_one_fit() -> None:
    start = {"slope": torch.zeros((), dtype=F64), "bend": torch.zeros(2, dtype=F64), "kept": torch.ones(1, dtype=F64)}
    x = torch.linspace(0, 1, 9, dtype=F64)
    fit = levenberg_marquardt(
        lambda p: p["slope"] * x + p["bend"][0] * x**2 + p["bend"][1] + p["kept"] - (9 * x).sin(),
        start,
        frozen=["kept"],
    )
    text = fit.summary()
    for wanted in (
        f"9 residuals, 3 parameters, cost {fit.cost:.6g}",
        f"{fit.steps} steps, {fit.nfev} evaluations of fn, {fit.njev} of its Jacobian",
        f"ended: {fit.reason}",
    ):
        assert wanted in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[6:]}
    assert list(rows) == ["slope", "bend[0]", "bend[1]"]
    errors = fit.standard_errors()
    assert rows["slope"] == [f"{fit.params['slope']:.8g}", f"{errors['slope']:.3g}"]
    assert rows["bend[1]"] == [f"{fit.params['bend'][1]:.8g}", f"{errors['bend'][1]:.3g}"]


def test_summary_names_entries_as_the_errors_do() -> None:
    fit = levenberg_marquardt(lambda p: p["w"].sum() * torch.arange(9.0) - 1, {"w": torch.zeros(2, 2)})
    text = fit.summary()
    assert all(f"w[{i}, {j}]" in text for i in range(2) for j in range(2))
    assert "rank 1 of 4" in text


def test_summary_of_many_fits() -> None:
    A, b = normal(6, 12, 3), normal(6, 12, seed=1)
    b[4, 0] = torch.inf
    fit = levenberg_marquardt(lambda p, a, b: a @ p - b, torch.zeros(6, 3, dtype=F64), A, b, in_dims=0)
    text = fit.summary()
    assert "6 problems of 12 residuals and 3 parameters" in text
    assert str(Reason.NON_FINITE) in text
    counts = [int(line.split()[0]) for line in text.splitlines()[4:]]
    assert sum(counts) == 6


def test_summary_of_a_network_lists_its_leaves() -> None:
    torch.manual_seed(0)
    fn, params = make_functional(nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1)).double())
    fit = levenberg_marquardt(lambda p, x: fn(p, x) - x.prod(), params, normal(30, 3), in_dims=(None, 0), max_steps=2)
    lines = fit.summary().splitlines()
    assert lines[0].startswith("30 residuals, 101 parameters")
    assert [line.split()[0] for line in lines[6:]] == list(params)
    assert f"{fit.params['0.weight'].norm().item():.4g}" in lines[6]
    assert repr(fit).startswith(f"Solution(cost={fit.cost}, steps=2, reason=<Reason.MAX_STEPS")


def test_summary_of_a_bare_parameter() -> None:
    x = torch.linspace(0, 1, 9, dtype=F64)
    number = levenberg_marquardt(lambda p: p * x - x.exp(), torch.zeros((), dtype=F64))
    assert number.summary().splitlines()[-1].split()[:2] == ["params", f"{number.params:.8g}"]
    nothing = levenberg_marquardt(lambda p: 0 * p + x, torch.zeros((), dtype=F64))
    assert "mostly params)" in nothing.summary()
    vector = levenberg_marquardt(lambda p: p - torch.arange(31.0), torch.zeros(31))
    assert vector.summary().splitlines()[-1].split()[:2] == ["params", "(31,)"]
