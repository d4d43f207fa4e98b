"""Rules for inverses, systems, determinants, factors and functions of a matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import by_jets, check

from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

linalg = torch.linalg
EYE = torch.eye(3, dtype=torch.float64)
SOME = torch.tensor([[4.0, 1, 0.5], [0.3, 3, -1], [1, 0.2, 5]], dtype=torch.float64)


def positive(a):
    return a @ a.mT + 3 * torch.eye(a.shape[-1], dtype=a.dtype)


def apart(a):
    """Symmetric, its eigenvalues far apart."""
    return a + a.mT + 10 * torch.diag(torch.arange(float(a.shape[-1])))


def steep(a):
    """With singular values far apart."""
    rows, columns = a.shape[-2:]
    return a + 10 * torch.eye(rows, columns, dtype=a.dtype) * torch.arange(1.0, rows + 1).double().unsqueeze(-1)


def complex_(a):
    return torch.complex(a, 0.5 * a.mT.sin())


def hermitian(a):
    return complex_(a) @ complex_(a).mH + torch.diag(torch.arange(10.0, 40.0, 10.0))


def projector(vectors):
    """Onto the first of complex vectors, which has no phase."""
    return torch.view_as_real(vectors[..., :1] @ vectors[..., :1].mH)


CASES = {
    "inv": (lambda a: linalg.inv(steep(a)), (3, 3)),
    "inv of several": (lambda a: torch.inverse(steep(a)), (2, 1, 3, 3)),
    "inv_ex": (lambda a: linalg.inv_ex(steep(a)).inverse, (3, 3)),
    "solve": (lambda a, b: linalg.solve(steep(a), b), (3, 3), (3, 2)),
    "solve for a vector": (lambda a, b: linalg.solve(steep(a), b), (3, 3), (3,)),
    "solve for vectors": (lambda a, b: linalg.solve(steep(a), b), (2, 3, 3), (2, 3)),
    "solve several": (lambda a, b: linalg.solve(steep(a), b), (2, 1, 3, 3), (3, 3, 2)),
    "solve with a constant": (lambda b: linalg.solve(SOME, b.sin()), (2, 3, 2)),
    "solve for a constant": (lambda a: linalg.solve(steep(a), SOME[0]), (3, 3)),
    "solve from the right": (lambda a, b: linalg.solve(steep(a), b, left=False), (2, 3, 3), (2, 2, 3)),
    "solve_ex": (lambda a, b: linalg.solve_ex(steep(a), b).result, (3, 3), (3, 2)),
    "tensorsolve": (lambda a, b: linalg.tensorsolve(a + torch.eye(4).double().view(2, 2, 4) * 9, b), (2, 2, 4), (2, 2)),
    "tensorinv": (lambda a: linalg.tensorinv(a + torch.eye(4).double().view(2, 2, 4) * 9), (2, 2, 4)),
    "solve_triangular": (lambda a, b: linalg.solve_triangular(steep(a), b, upper=True), (3, 3), (3, 2)),
    "solve_triangular lower": (lambda a, b: linalg.solve_triangular(steep(a), b, upper=False), (2, 3, 3), (3, 2)),
    "solve_triangular with ones": (
        lambda a, b: linalg.solve_triangular(a, b, upper=False, unitriangular=True),
        (3, 3),
        (3, 2),
    ),
    "solve_triangular from the right": (
        lambda a, b: linalg.solve_triangular(steep(a), b, upper=True, left=False),
        (3, 3),
        (2, 3),
    ),
    "solve_triangular with a constant": (lambda b: linalg.solve_triangular(SOME, b.sin(), upper=True), (2, 3, 2)),
    "cholesky": (lambda a: linalg.cholesky(positive(a)), (3, 3)),
    "cholesky upper": (lambda a: linalg.cholesky(positive(a), upper=True), (2, 3, 3)),
    "old cholesky": (lambda a: torch.cholesky(positive(a)), (3, 3)),
    "cholesky_ex": (lambda a: linalg.cholesky_ex(positive(a)).L, (3, 3)),
    "cholesky_solve": (lambda a, b: torch.cholesky_solve(b, steep(a)), (3, 3), (3, 2)),
    "cholesky_solve upper": (lambda a, b: torch.cholesky_solve(b, steep(a), upper=True), (2, 3, 3), (2, 3, 2)),
    "cholesky_solve with a constant": (lambda b: torch.cholesky_solve(b.sin(), SOME), (3, 2)),
    "cholesky_inverse": (lambda a: torch.cholesky_inverse(steep(a)), (3, 3)),
    "lu_solve": (lambda a, b: linalg.lu_solve(*linalg.lu_factor(steep(a)), b), (3, 3), (3, 2)),
    "lu_solve of the adjoint": (
        lambda a, b: linalg.lu_solve(*linalg.lu_factor(steep(a)), b, adjoint=True),
        (2, 3, 3),
        (2, 3, 2),
    ),
    "lu_solve from the right": (
        lambda a, b: linalg.lu_solve(*linalg.lu_factor(steep(a)), b, left=False),
        (3, 3),
        (2, 3),
    ),
    "lu_solve with constants": (lambda b: linalg.lu_solve(*linalg.lu_factor(SOME), b.sin()), (3, 2)),
    "slogdet": (lambda a: linalg.slogdet(a)[1], (3, 3)),
    "slogdet of several": (lambda a: torch.slogdet(steep(a)).logabsdet, (2, 4, 4)),
    "logdet": (lambda a: torch.logdet(positive(a)), (3, 3)),
    "det": (lambda a: linalg.det(a), (5, 5)),
    "det of several": (lambda a: torch.det(a), (2, 1, 4, 4)),
    "det of one": (lambda a: linalg.det(a.sin()), (1, 1)),
    "det of two": (lambda a: a.det(), (2, 2)),
    "det of three": (lambda a: a.det(), (3, 3)),
    "matrix_power": (lambda a: linalg.matrix_power(a, 3), (2, 3, 3)),
    "matrix_power less than nothing": (lambda a: linalg.matrix_power(steep(a), -2), (3, 3)),
    "matrix_exp": (lambda a: linalg.matrix_exp(a), (3, 3)),
    "matrix_exp of several": (lambda a: torch.matrix_exp(a.sin()), (2, 2, 2)),
    "pinv of a tall one": (lambda a: linalg.pinv(steep(a)), (4, 2)),
    "pinv of a wide one": (lambda a: linalg.pinv(steep(a)), (2, 2, 3)),
    "pinv of a deficient one": (lambda a, b: linalg.pinv(a @ b), (4, 1), (1, 3)),
    "qr": (lambda a: linalg.qr(steep(a))[0], (4, 2)),
    "r of qr": (lambda a: torch.qr(steep(a))[1], (2, 4, 2)),
    "wide qr": (lambda a: torch.mul(*linalg.qr(steep(a))[1].split(2, -1)), (2, 4)),
    "square qr": (lambda a: linalg.qr(steep(a), "complete")[0], (3, 3)),
    "qr without q": (lambda a: linalg.qr(steep(a), "r")[1], (4, 3)),
    "lu": (lambda a: torch.mul(*linalg.lu(steep(a))[1:]), (3, 3)),
    "lu_factor": (lambda a: linalg.lu_factor(steep(a))[0], (2, 3, 3)),
    "lu_unpack": (lambda a: torch.add(*torch.lu_unpack(*linalg.lu_factor(steep(a)))[1:]), (3, 3)),
    "eigvalsh": (lambda a: linalg.eigvalsh(apart(a)), (4, 4)),
    "eigh": (lambda a: torch.mul(*linalg.eigh(apart(a))), (3, 3)),
    "eigh of the upper triangle": (lambda a: linalg.eigh(apart(a), "U").eigenvectors, (3, 3)),
    "svdvals": (lambda a: linalg.svdvals(steep(a)), (4, 3)),
    "svdvals of a wide one": (lambda a: linalg.svdvals(steep(a)), (2, 2, 3)),
    "svd": (lambda a: linalg.svd(steep(a), full_matrices=False)[0], (4, 3)),
    "vh of svd": (lambda a: torch.mul(*linalg.svd(steep(a))[1:]), (3, 3)),
    "wide svd": (lambda a: linalg.svd(steep(a), full_matrices=False)[2], (2, 3)),
    "u of a wide svd": (lambda a: linalg.svd(steep(a), full_matrices=False)[0], (2, 3)),
    "complex inv": (lambda a: linalg.inv(complex_(a)).imag, (3, 3)),
    "complex solve": (lambda a, b: linalg.solve(complex_(steep(a)), complex_(b)).real, (3, 3), (3, 3)),
    "complex slogdet": (lambda a: linalg.slogdet(complex_(a))[1], (3, 3)),
    "sign of a complex slogdet": (lambda a: torch.view_as_real(linalg.slogdet(complex_(a))[0]), (3, 3)),
    "complex det": (lambda a: torch.view_as_real(linalg.det(complex_(a))), (4, 4)),
    "complex cholesky": (lambda a: torch.view_as_real(linalg.cholesky(hermitian(a))), (3, 3)),
    "complex cholesky upper": (lambda a: linalg.cholesky(hermitian(a), upper=True).imag, (3, 3)),
    "complex eigvalsh": (lambda a: linalg.eigvalsh(hermitian(a)), (3, 3)),
    "complex eigh": (lambda a: projector(linalg.eigh(hermitian(a))[1]), (3, 3)),
    "complex svdvals": (lambda a: linalg.svdvals(complex_(steep(a))), (3, 3)),
    "complex svd": (lambda a: projector(linalg.svd(complex_(steep(a)))[0]), (3, 3)),
    "complex wide svd": (lambda a: projector(linalg.svd(complex_(steep(a))[:2], full_matrices=False)[2].mH), (3, 3)),
    "complex pinv": (lambda a: linalg.pinv(complex_(steep(a))[:2]).imag, (3, 3)),
    "complex matrix_exp": (lambda a: linalg.matrix_exp(complex_(a)).imag, (3, 3)),
    "householder_product": (lambda a, t: linalg.householder_product(a, t), (2, 4, 3), (2, 2)),
    "householder_product of constants": (lambda t: torch.orgqr(SOME[:, :2], t.sin()), (2,)),
    "matrix_norm": (lambda a: linalg.matrix_norm(a), (3, 2)),
    "nuclear norm": (lambda a: linalg.matrix_norm(steep(a), "nuc"), (2, 3, 2)),
    "spectral norm": (lambda a: linalg.matrix_norm(steep(a), 2), (3, 3)),
    "cond": (lambda a: linalg.cond(steep(a)), (3, 3)),
    "cdist": (lambda a, b: torch.cdist(a, b + 4), (2, 3, 2), (4, 2)),
    "cdist of a constant": (lambda a: torch.cdist(a, SOME + 4, p=3.0), (2, 3)),
    "kernel of distances": (lambda a, b: torch.ops.aten._cdist_forward(a, b + 4, 2.0, None), (3, 2), (4, 2)),
    "pdist": (lambda a: torch.pdist(steep(a)), (4, 2)),
    "pairwise_distance": (lambda a, b: torch.nn.functional.pairwise_distance(a, b + 4), (3, 2), (3, 2)),
    "vander": (lambda x: linalg.vander(x), (3,)),
}


@pytest.mark.filterwarnings("ignore:torch.(cholesky|qr)")
@pytest.mark.parametrize("case", CASES)
def test_linalg(case):
    torch.manual_seed(1)
    function, *shapes = CASES[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize("deficit", [1, 2, 3, 5])
def test_det_of_a_singular_matrix(deficit):
    a = torch.randn(5, 5 - deficit, dtype=torch.float64) @ torch.randn(5 - deficit, 5, dtype=torch.float64)
    check(torch.linalg.det, a)


def test_distances_to_itself_have_no_derivatives():
    x = torch.randn(4, 3, dtype=torch.float64)
    engine = Engine(recording=False, depth=0)
    along = torch.randn(2, 4, 3, dtype=torch.float64)
    for part in by_jets(lambda x: torch.cdist(x, x).diagonal(), (x,), (along,), Sum(), engine):
        assert (part == 0).all()


def test_det_of_nothing_has_no_derivatives():
    check(lambda a: torch.linalg.det(a[:0, :0]) * a.sum(), torch.randn(2, 2, dtype=torch.float64))


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_systems_of_any_shape(data):
    batch, size = st.lists(st.sampled_from([1, 2]), max_size=2), data.draw(st.integers(1, 3))
    a = torch.randn(*data.draw(batch), size, size, dtype=torch.float64)
    b = torch.randn(*data.draw(batch), size, data.draw(st.integers(1, 3)), dtype=torch.float64)
    check(lambda a, b: linalg.solve(steep(a), b), a, b)
    check(lambda a, b: linalg.solve_triangular(steep(a), b, upper=True), a, b)
    check(lambda a: linalg.inv(steep(a)), a)
    check(lambda a: linalg.det(a), a)
    check(lambda a: linalg.slogdet(steep(a))[1], a)
