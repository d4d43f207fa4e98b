"""Damped linear solves: each against NumPy's least squares of the augmented matrix, on dense and streamed Jacobians."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import jacfn
from jacfn.least_squares.rows import OperatorRows, Rows, StackedRows
from jacfn.least_squares.solvers import KRYLOV, NAMES, System, choose, make

DIRECT = [name for name in NAMES if name not in KRYLOV]


def matrix(m: int, p: int, kappa: float, seed: int) -> Tensor:
    """With singular values from 1 to 1/kappa."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))
    k = min(m, p)
    values = torch.logspace(0, -float(np.log10(kappa)), k, dtype=torch.float64)
    return u[:, :k] * values @ v[:, :k].T


def rows_of(A: Tensor, chunk_size: int | None = None, method: str = "rev") -> Rows:
    """The rows of a linear function's Jacobian, in blocks of samples if a size is given."""
    fn = lambda x, a: a @ x  # noqa: E731
    x = torch.zeros(A.shape[1], dtype=A.dtype)
    return OperatorRows(
        jacfn.jacobian_operator(fn, x, A, in_dims=(None, 0), method=method, chunk_size=chunk_size)  # type: ignore[arg-type]
    )


def oracle(A: Tensor, r: Tensor, scale: Tensor | None, damping: float) -> np.ndarray:
    """``argmin ‖A D⁻¹ z + r‖² + λ ‖z‖²`` by NumPy's SVD."""
    scaled = (A if scale is None else A / scale).numpy()
    whole = np.concatenate([scaled, damping**0.5 * np.eye(A.shape[1])])
    return np.linalg.lstsq(whole, np.concatenate([-r.numpy(), np.zeros(A.shape[1])]), rcond=None)[0]


def largest_error(
    A: Tensor, r: Tensor, scale: Tensor | None, damping: float, dual: bool, dtype: torch.dtype = torch.float64
) -> float:
    """``100 ε κ²`` of the damped, scaled matrix, relative to the longest step that residuals of this length make.

    The dual matrix of more rows than columns, and the other one of fewer, have zeros among their singular values.
    """
    values = torch.linalg.svdvals(A if scale is None else A / scale)
    smallest = values[-1] ** 2 if A.shape[0] == A.shape[1] or (A.shape[0] > A.shape[1] and not dual) else 0.0
    norm = float(values[0] ** 2 + damping)
    return 100 * torch.finfo(dtype).eps * norm / float(smallest + damping) * float(r.norm()) / norm**0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [True, False])
@given(
    m=st.integers(1, 12),
    p=st.integers(1, 12),
    kappa=st.sampled_from([1.0, 10.0, 1e3]),
    damping=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    chunk_size=st.sampled_from([None, 1, 5]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25, deadline=None)
def test_steps_agree(
    name: str, scaled: bool, m: int, p: int, kappa: float, damping: float, chunk_size: int | None, seed: int
) -> None:
    A = matrix(m, p, kappa, seed)
    r = torch.randn(m, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    scale = A.norm(dim=0) if scaled else None
    rows = rows_of(A, chunk_size, "products" if name in KRYLOV else "rev")
    solver = make(name, System(rows, r, scale), None, 1e-16, 10 * (m + p))  # type: ignore[arg-type]
    z = solver.damp(torch.tensor(damping, dtype=torch.float64)).step()
    wanted = oracle(A, r, scale, damping)
    assert np.linalg.norm(z.numpy() - wanted) <= largest_error(A, r, scale, damping, name == "dual")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [True, False])
@given(
    m=st.integers(1, 12),
    p=st.integers(1, 12),
    kappa=st.sampled_from([1.0, 10.0, 100.0]),
    damping=st.sampled_from([1e-4, 1e-2, 1.0, 1e3]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25, deadline=None)
def test_steps_agree_in_single_precision(
    name: str, scaled: bool, m: int, p: int, kappa: float, damping: float, seed: int
) -> None:
    A = matrix(m, p, kappa, seed).float()
    r = torch.randn(m, generator=torch.Generator().manual_seed(seed + 1))
    scale = A.norm(dim=0) if scaled else None
    rows = rows_of(A, method="products" if name in KRYLOV else "rev")
    solver = make(name, System(rows, r, scale), None, 1e-8, 10 * (m + p))  # type: ignore[arg-type]
    z = solver.damp(torch.tensor(damping, dtype=torch.float64)).step().double()
    exact = A.double(), r.double(), None if scale is None else scale.double(), damping
    wanted = oracle(*exact)
    assert np.linalg.norm(z.numpy() - wanted) <= largest_error(*exact, name == "dual", torch.float32)


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_units_of_the_columns_do_not_matter(
    name: str, shape: tuple[int, int], many: bool, dtype: torch.dtype, close: float
) -> None:
    A, r = matrix(*shape, 10.0, 7), torch.randn(shape[0], dtype=torch.float64)
    units = 10.0 ** torch.tensor([6, -6, 3, 0, -3, 6, -6, 1, -1][: shape[1]], dtype=torch.float64)
    inside = (A * units).to(dtype)
    scale = inside.norm(dim=0)
    rows = StackedRows(inside[None]) if many else rows_of(inside)
    system = System(rows, r.to(dtype)[None] if many else r.to(dtype), scale[None] if many else scale)
    damping = torch.tensor([1e-3] if many else 1e-3, dtype=torch.float64)
    damped = make(name, system, None, None, None).damp(damping)  # type: ignore[arg-type]
    wanted = oracle(A, r, A.norm(dim=0), 1e-3)
    np.testing.assert_allclose(damped.step().reshape(-1).double().numpy(), wanted, rtol=close, atol=close)
    others = damped.least(system.residual).reshape(-1).double()
    np.testing.assert_allclose(others.numpy(), wanted, rtol=close, atol=close)


@pytest.mark.parametrize("name", KRYLOV)
def test_iterations_beyond_rounding_keep_the_solution(name: str) -> None:
    """Few distinct singular values: everything is found in a few iterations, and what follows is rounding."""
    A, r = matrix(12, 6, 1.0, 310), torch.randn(12, generator=torch.Generator().manual_seed(311), dtype=torch.float64)
    scale, rows = A.norm(dim=0), rows_of(A, method="products")
    z = make(name, System(rows, r, scale), None, 1e-16, 180).damp(torch.tensor(0.01, dtype=torch.float64)).step()  # type: ignore[arg-type]
    wanted = oracle(A, r, scale, 0.01)
    assert np.linalg.norm(z.numpy() - wanted) <= largest_error(A, r, scale, 0.01, dual=False)


@pytest.mark.parametrize("name", KRYLOV)
def test_each_iteration_lowers_the_linear_problem(name: str) -> None:
    """Also while the gradient grows, as it does where the right side is made of what the matrix shrinks most."""
    A = matrix(60, 40, 1e3, 1)
    u, values, _ = torch.linalg.svd(A, full_matrices=False)
    r = u @ values.reciprocal()
    costs = []
    for steps in (1, 3, 9, 27, 81):
        solver = make(name, System(rows_of(A, method="products"), r, None), None, None, steps)  # type: ignore[arg-type]
        z = solver.damp(torch.tensor(1e-12, dtype=torch.float64)).step()
        costs.append(float((A @ z + r).square().sum()))
    assert float(r.square().sum()) > costs[0]
    assert all(later < earlier for earlier, later in itertools.pairwise(costs))


def test_conjugate_gradients_end_where_rounding_begins() -> None:
    """Near the end of a fit the residuals are all but orthogonal to the columns: their gradient has few digits."""
    A = matrix(30, 8, 10.0, 0)
    other, far = torch.randn(2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = far - A @ torch.linalg.lstsq(A, far).solution + 1e-12 * other
    products = []

    class Counted(StackedRows):
        def mv(self, v: Tensor) -> Tensor:
            products.append(v)
            return self.dense[0] @ v

        def rmv(self, u: Tensor) -> Tensor:
            return self.dense[0].mT @ u

    solver = make("cg", System(Counted(A[None]), r, None), None, None, 1000)
    z = solver.damp(torch.tensor(1e-3, dtype=torch.float64)).step()
    assert np.linalg.norm(z.numpy() - oracle(A, r, None, 1e-3)) < 1e-13
    assert len(products) < 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_other_right_sides(name: str, shape: tuple[int, int]) -> None:
    A, damping = matrix(*shape, 10.0, 0), torch.tensor(0.1, dtype=torch.float64)
    r, other = torch.randn(2, shape[0], dtype=torch.float64)
    g = torch.randn(shape[1], dtype=torch.float64)
    scale = A.norm(dim=0)
    damped = make(name, System(rows_of(A), r, scale), None, 1e-16, 100).damp(damping)  # type: ignore[arg-type]
    torch.testing.assert_close(damped.least(other).numpy(), oracle(A, other, scale, 0.1), rtol=1e-10, atol=1e-12)
    scaled = A / scale
    normal = scaled.T @ scaled + 0.1 * torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(damped.inverse(g), torch.linalg.solve(normal, g), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_many_problems_as_one_by_one(name: str, shape: tuple[int, int]) -> None:
    stack = torch.stack([matrix(*shape, 10.0, seed) for seed in range(5)])
    r = torch.randn(5, shape[0], dtype=torch.float64)
    damping = torch.logspace(-3, 1, 5, dtype=torch.float64)
    scale = stack.norm(dim=1)
    damped = make(name, System(StackedRows(stack), r, scale), None, None, None).damp(damping)  # type: ignore[arg-type]
    z, inverse = damped.step(), damped.inverse(scale)
    for i in range(5):
        wanted = oracle(stack[i], r[i], scale[i], float(damping[i]))
        torch.testing.assert_close(z[i].numpy(), wanted, rtol=1e-9, atol=1e-11)
        alone = make(name, System(rows_of(stack[i]), r[i], scale[i]), None, None, None)  # type: ignore[arg-type]
        torch.testing.assert_close(inverse[i], alone.damp(damping[i]).inverse(scale[i]), rtol=1e-9, atol=1e-11)


def test_qr_keeps_the_digits_that_the_normal_matrix_loses() -> None:
    A = matrix(40, 6, 1e7, 3)
    x = torch.ones(6, dtype=torch.float64)
    system = System(rows_of(A), -(A @ x), None)
    none = torch.zeros((), dtype=torch.float64)
    errors = {
        name: float((make(name, system, None, None, None).damp(none).step() - x).norm())  # type: ignore[arg-type]
        for name in ("qr", "cholesky")
    }
    assert errors["qr"] < 1e-6
    assert not errors["cholesky"] < 1e-4  # 1e14 is beyond it


def test_auto_turns_to_qr_where_the_normal_matrix_is_ill_conditioned() -> None:
    A = matrix(800, 160, 1e8, 3)
    assert choose(*A.shape, 8, None) == "cholesky"
    x = torch.ones(160, dtype=torch.float64)
    damped = make("auto", System(rows_of(A), -(A @ x), None), None, None, None).damp(torch.tensor(0.0))
    assert float((damped.step() - x).norm()) < 1e-5
    assert type(damped).__module__.endswith("qr")


@pytest.mark.parametrize(
    ("m", "p", "budget", "wanted"),
    [
        (30, 4, None, "qr"),
        (4, 30, None, "qr"),
        (100_000, 500, None, "cholesky"),
        (640, 235_146, None, "dual"),
        (100_000, 100_000, None, "lsmr"),
        (100_000, 5000, 1 << 20, "lsmr"),
    ],
)
def test_choice(m: int, p: int, budget: int | None, wanted: str) -> None:
    assert choose(m, p, 8, budget) == wanted


def test_a_singular_matrix_without_damping_is_no_step() -> None:
    A = torch.ones(5, 2, dtype=torch.float64)
    system = System(rows_of(A), torch.arange(5.0, dtype=torch.float64), None)
    z = make("cholesky", system, None, None, None).damp(torch.zeros((), dtype=torch.float64)).step()
    assert z.isnan().all()
