"""SciPy's solvers with jacfn's Jacobians: the answers are those that SciPy finds by finite differences."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from helpers import mlp

from jacfn import JacfnError, JacfnTypeError, JacfnValueError
from jacfn.integrations.scipy import Residuals, curve_fit, least_squares

pytestmark = pytest.mark.usefixtures("float64")

T = np.linspace(0, 4, 40)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.02 * np.sin(37 * T)


def decay(p, t, y):
    """One sample; of all samples it is the same expression."""
    return p["height"] * torch.exp(-p["shape"][0] * t) + p["shape"][1] - y


def start(dtype=torch.float64):
    return {"height": torch.tensor(1.0, dtype=dtype), "shape": torch.ones(2, dtype=dtype)}


def data(dtype=torch.float64):
    return torch.tensor(T, dtype=dtype), torch.tensor(Y, dtype=dtype)


def theirs(**options):
    """SciPy's own answer; its variables stand in the order of the leaves."""

    def fun(x):
        return x[0] * np.exp(-x[1] * T) + x[2] - Y

    return scipy.optimize.least_squares(fun, np.ones(3), **options)


# --- least_squares --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_dims", [None, (None, 0, 0)], ids=["batch", "samples"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "dogbox"},
        {"method": "lm"},
        {"loss": "soft_l1", "f_scale": 0.1},
        {"loss": "cauchy", "x_scale": "jac"},
        {"method": "dogbox", "loss": "huber", "f_scale": 0.01},
        {"bounds": ([0, 0, 0.6], [2, 9, 9])},
        {"bounds": ([0, 0, 0.6], [2, 9, 9]), "method": "dogbox", "loss": "arctan"},
        {"tr_solver": "lsmr"},
    ],
    ids=str,
)
def test_least_squares_finds_what_scipy_finds(options, in_dims):
    ours = least_squares(decay, start(), *data(), in_dims=in_dims, **options)
    for jac in ("2-point", "3-point"):
        other = theirs(jac=jac, **options)
        assert ours.success
        assert other.success
        np.testing.assert_allclose(ours.x, other.x, atol=2e-5)
        assert ours.cost == pytest.approx(other.cost, rel=1e-6)


@pytest.mark.parametrize("method", ["trf", "dogbox"])
@pytest.mark.parametrize("options", [{}, {"loss": "soft_l1"}, {"bounds": ([0, 0, 0.6], [2, 9, 9])}], ids=str)
def test_products_alone_lead_to_the_same_minimum(method, options):
    dense = least_squares(decay, start(), *data(), method=method, **options)
    free = least_squares(decay, start(), *data(), in_dims=(None, 0, 0), operator=True, method=method, **options)
    assert isinstance(free.jac, scipy.sparse.linalg.LinearOperator)
    np.testing.assert_allclose(free.x, dense.x, atol=1e-4)
    assert free.cost == pytest.approx(dense.cost, rel=1e-6)


def test_the_result_has_the_structure_and_dtype_of_the_start():
    fit = least_squares(decay, start(torch.float32), *data(torch.float32), ftol=1e-6, xtol=1e-6, gtol=1e-6)
    assert fit.x.dtype == fit.fun.dtype == fit.jac.dtype == np.float64
    assert list(fit.params) == ["height", "shape"]
    assert {leaf.dtype for leaf in fit.params.values()} == {torch.float32}
    assert fit.params["shape"].shape == (2,)
    np.testing.assert_allclose(fit.x, theirs().x, atol=1e-3)


def test_float32_products_are_double_for_scipy():
    problem = Residuals(decay, start(torch.float32), *data(torch.float32), operator=True)
    operator = problem.jac(problem.x0)
    assert operator.dtype == np.float64
    assert (operator @ np.ones(3)).dtype == (operator.T @ np.ones(40)).dtype == np.float64
    assert (operator @ np.eye(3)).dtype == (operator.T @ np.ones((40, 2))).dtype == np.float64


@pytest.mark.parametrize(
    "bounds",
    [
        ({"height": 0, "shape": torch.tensor([0, 0.6])}, {"height": 2.0, "shape": 9}),
        (np.array([0, 0, 0.6]), [2.0, None, None]),
        scipy.optimize.Bounds([0, 0, 0.6], [2, 9, 9]),
        ([None, None, 0.6], {"height": torch.tensor(2.0), "shape": None}),
    ],
    ids=["trees", "flat", "Bounds", "None"],
)
def test_bounds_are_prefixes_or_flat(bounds):
    fit = least_squares(decay, start(), *data(), bounds=bounds)
    np.testing.assert_allclose(fit.x, theirs(bounds=([0, 0, 0.6], [2, 9, 9])).x, atol=1e-5)
    assert fit.params["height"].item() == pytest.approx(2, abs=1e-6)


def test_scales_are_prefixes_too():
    fits = [
        least_squares(decay, start(), *data(), x_scale=scale, max_nfev=3)
        for scale in ({"height": 10.0, "shape": 0.1}, np.array([10.0, 0.1, 0.1]))
    ]
    np.testing.assert_array_equal(fits[0].x, fits[1].x)


def test_a_network_is_fitted_within_a_budget():
    from jacfn import make_functional

    fn, params = make_functional(mlp(2, 6, 1))
    x = torch.rand(60, 2)
    y = (x[:, :1] * 3).sin() * x[:, 1:]

    def residual(params, x, y):
        return fn(params, x) - y

    fit = least_squares(residual, params, x, y, in_dims=(None, 0, 0), memory="1MiB", max_nfev=200)
    assert list(fit.params) == list(params)
    assert fit.cost < 1e-2


def test_residuals_may_be_a_pytree():
    def pair(p, t, y):
        whole = decay(p, t, y)
        return {"twice": torch.stack([whole, whole]), "half": whole / 2}

    problem = Residuals(pair, start(), *data(), in_dims=(None, 0, 0))
    jacobian = problem.jac(problem.x0)
    values = problem.fun(problem.x0)
    assert jacobian.shape == (120, 3)
    step = np.array([1e-7, 0, 0])
    np.testing.assert_allclose((problem.fun(problem.x0 + step) - values) / 1e-7, jacobian[:, 0], atol=1e-6)


# --- what is evaluated ----------------------------------------------------------------------------


def counted(fn):
    """The function, and the list to which it adds at each call whether that is within a transform."""
    calls = []

    def wrapped(*args):
        calls.append(torch._C._functorch.maybe_current_level())
        return fn(*args)

    return wrapped, calls


def test_nothing_is_evaluated_twice_at_the_latest_point():
    fn, calls = counted(decay)
    problem = Residuals(fn, start(), *data(), jac_method="fwd")
    x = problem.x0
    problem.fun(x)
    assert len(calls) == 1
    problem.fun(x.copy())
    assert len(calls) == 1
    first = problem.jac(x)
    evaluated = len(calls)
    assert evaluated > 1
    problem.fun(x)
    second = problem.jac(x.copy())
    assert len(calls) == evaluated
    first += 1
    assert (first != second).all(), "each caller has a matrix of its own"
    problem.jac(x + 1)
    before = len(calls)
    problem.fun(x + 1)
    assert len(calls) == before, "the residuals come from the pass that makes the Jacobian"


def test_rejected_steps_make_no_jacobian():
    fn, calls = counted(decay)
    fit = least_squares(
        fn, {"height": torch.tensor(20.0), "shape": torch.tensor([9.0, -4.0])}, *data(), jac_method="fwd"
    )
    within = sum(level is not None for level in calls)
    assert fit.nfev > fit.njev
    assert len(calls) - within <= fit.nfev
    assert within <= 2 * fit.njev  # a pass for the values, one for the columns


def test_what_is_handed_out_can_be_overwritten():
    problem = Residuals(decay, start(), *data())
    values = problem.fun(problem.x0)
    values += 1
    assert not np.allclose(problem.fun(problem.x0), values)


def test_a_vector_that_is_changed_in_place_is_another_one():
    problem = Residuals(decay, start(), *data())
    x = problem.x0.copy()
    before = problem.fun(x)
    x[0] += 1
    assert not np.allclose(problem.fun(x), before)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jac": "2-point"}, JacfnTypeError, "jac cannot be given: .* call scipy.optimize.least_squares"),
        ({"args": (1,)}, JacfnTypeError, "args cannot be given: .* by position"),
        ({"method": "lm", "operator": True}, JacfnValueError, "operator=True: SciPy's method 'lm' needs the dense"),
        ({"method": "lm", "bounds": (0, None)}, JacfnValueError, "bounds: SciPy's method 'lm' has none; take 'trf'"),
        ({"method": "lm", "loss": "huber"}, JacfnValueError, "loss='huber': SciPy's method 'lm' minimises plain"),
        ({"tr_solver": "exact", "operator": True}, JacfnValueError, "take 'lsmr', or operator=False"),
        ({"x_scale": "jac", "operator": True}, JacfnValueError, "x_scale='jac' reads the columns"),
        ({"bounds": 3}, JacfnTypeError, r"bounds must be a pair \(lower, upper\), got 3"),
        ({"bounds": ({"height": 0}, None)}, JacfnValueError, r"bounds\[0\] must be a prefix of the structure"),
        (
            {"bounds": (torch.zeros(2), None)},
            JacfnValueError,
            r"flat, of shape \(3,\); got the shape \(2,\) for a leaf",
        ),
        (
            {"bounds": ({"height": 0, "shape": torch.zeros(1)}, None)},
            JacfnValueError,
            r"bounds\[0\] must hold numbers or tensors .* got the shape \(1,\) for a leaf of shape \(2,\)",
        ),
        (
            {"x_scale": {"height": np.ones(1), "shape": 1.0}},
            JacfnValueError,
            r"x_scale must hold numbers or tensors .* got the shape \(1,\) for a leaf of shape \(\)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_scipy_has_no_room_for_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        least_squares(decay, start(), *data(), **options)


def test_a_row_is_no_bound_of_a_matrix():
    fit = functools.partial(least_squares, lambda p: (p - 3).reshape(-1), torch.zeros(3, 3))
    with pytest.raises(JacfnValueError, match=r"bounds\[1\] .* the shape \(3,\) for a leaf of shape \(3, 3\)"):
        fit(bounds=(-1, torch.ones(3)))
    upper = torch.arange(9.0).reshape(3, 3) + 0.5
    np.testing.assert_allclose(fit(bounds=(-1, upper)).x, np.minimum(np.arange(9) + 0.5, 3), atol=1e-6)
    np.testing.assert_allclose(fit(bounds=(np.array(-1), torch.tensor(1.0))).x, np.ones(9), atol=1e-6)


@pytest.mark.parametrize("order", [("height", "shape"), ("shape", "height")])
def test_bounds_are_matched_by_key(order):
    lower, upper = (
        {name: side[name] for name in order} for side in ({"height": 0, "shape": 0.6}, {"height": 2.0, "shape": 9})
    )
    fit = least_squares(decay, start(), *data(), bounds=(lower, upper))
    np.testing.assert_allclose(fit.x, theirs(bounds=([0, 0.6, 0.6], [2, 9, 9])).x, atol=1e-5)


def test_many_problems_at_once_are_refused():
    with pytest.raises(JacfnValueError, match="in_dims maps params over samples"):
        least_squares(lambda p, y: p - y, torch.zeros(3), torch.ones(3), in_dims=(0, 0))


def test_without_scipy_the_error_says_what_to_install():
    code = "import sys; sys.modules['scipy'] = None; import jacfn.integrations.scipy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode
    assert "this adapter needs SciPy: pip install 'jacfn[scipy]'" in done.stderr


# --- curve_fit ------------------------------------------------------------------------------------


def model(x, a, b, c):
    return a * torch.exp(-b * x) + c


def plain(x, a, b, c):
    return a * np.exp(-b * x) + c


RANDOM = np.random.default_rng(0)
SIGMA = RANDOM.uniform(0.5, 2, 40)
MIXED = RANDOM.normal(size=(40, 40))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"p0": [2.0, 1.0, 0.0]},
        {"sigma": SIGMA},
        {"sigma": SIGMA, "absolute_sigma": True},
        {"sigma": MIXED @ MIXED.T + np.eye(40), "absolute_sigma": True},
        {"bounds": ([0, 0, 0.6], [2, 9, 9])},
        {"method": "dogbox", "p0": torch.tensor([2.0, 1.0, 0.0])},
        {"method": "trf", "loss": "soft_l1"},
    ],
    ids=["plain", "p0", "sigma", "absolute", "covariance", "bounds", "dogbox", "robust"],
)
@pytest.mark.parametrize("make", [np.asarray, list, torch.as_tensor], ids=["numpy", "list", "torch"])
@pytest.mark.parametrize("in_dims", [None, 0], ids=["whole", "points"])
def test_curve_fit_is_scipys(options, make, in_dims):
    popt, pcov = curve_fit(model, make(T), make(Y), in_dims=in_dims, **options)
    options = {name: np.asarray(value) if name == "p0" else value for name, value in options.items()}
    expected, covariance = scipy.optimize.curve_fit(plain, T, Y, **options)
    np.testing.assert_allclose(popt, expected, rtol=1e-5)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-3, atol=1e-12)


def test_points_may_have_several_coordinates():
    def plane(x, a, b, c):
        return a * x[0] + b * x[1] ** 2 + c

    x = np.stack([T, np.cos(T)])
    popt, pcov = curve_fit(plane, x, Y, in_dims=1)
    expected, covariance = scipy.optimize.curve_fit(plane, x, Y)
    np.testing.assert_allclose(popt, expected, rtol=1e-6)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": SIGMA, "absolute_sigma": True},
        {"sigma": MIXED @ MIXED.T + np.eye(40)},
        {"method": "trf", "bounds": (0, 0.6)},
        {"nan_policy": "omit"},
    ],
    ids=["plain", "sigma", "covariance", "bounds", "nan"],
)
@pytest.mark.parametrize("make", [lambda a: a, lambda a: a[None]], ids=["0-d", "1-d"])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_a_constant_stands_for_all_points(options, make, in_dims):
    y = np.where(np.arange(40) == 5, np.nan, Y) if "nan_policy" in options else Y
    popt, pcov = curve_fit(lambda x, a: make(a), T, y, in_dims=in_dims, **options)
    expected, covariance = scipy.optimize.curve_fit(lambda x, a: np.full(len(x), a), T, y, **options)
    np.testing.assert_allclose(popt, expected, rtol=1e-6)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-5)


@pytest.mark.parametrize("in_dims", [None, 0])
def test_curve_fit_leaves_out_what_is_not_a_number(in_dims):
    y = Y.copy()
    y[5] = np.nan
    popt, pcov = curve_fit(model, T, y, nan_policy="omit", check_finite=False, in_dims=in_dims)
    expected, covariance = scipy.optimize.curve_fit(plain, T, y, nan_policy="omit", check_finite=False)
    np.testing.assert_allclose(popt, expected, rtol=1e-5)
    np.testing.assert_allclose(pcov, covariance, rtol=1e-3)


def test_curve_fit_hands_over_all_that_scipy_says():
    *_, info, _, number = curve_fit(model, T, Y, full_output=True)
    assert info["nfev"] > info["njev"] > 1
    assert number in (1, 2, 3, 4)


def test_curve_fit_has_its_own_jacobian():
    with pytest.raises(JacfnError, match="jac cannot be given: .* call scipy.optimize.curve_fit"):
        curve_fit(model, T, Y, jac="3-point")


def test_curve_fit_takes_the_place_of_the_data():
    x = torch.tensor(T, dtype=torch.float32)
    popt, _ = curve_fit(model, x, torch.tensor(Y, dtype=torch.float32))  # computed in double precision all the same
    assert popt.dtype == np.float64
    np.testing.assert_allclose(popt, scipy.optimize.curve_fit(plain, T, Y)[0], rtol=1e-4)
