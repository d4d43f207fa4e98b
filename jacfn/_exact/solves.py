"""Linear systems and factors: the derivative formulas take a kept factorisation for a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn._exact.tables import ALWAYS, MAPPED, NESTED, refused, replaces


@replaces(MAPPED, torch.linalg.solve)
def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    inverse: Tensor = torch.linalg.inv(A)
    if not left:
        return B @ inverse
    if B.ndim == 1 or (B.ndim + 1 == A.ndim and B.shape == A.shape[:-1]):
        return (inverse @ B.unsqueeze(-1)).squeeze(-1)
    return inverse @ B


@replaces(MAPPED, torch.linalg.solve_ex)
def _solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> Any:
    plain: Any = torch.linalg.solve_ex(A.detach(), B.detach(), left=left, check_errors=check_errors)
    return type(plain)((_solve(A, B, left=left), plain.info))


@replaces(MAPPED, torch.linalg.tensorsolve)
def _tensorsolve(input: Tensor, other: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    if dims is not None:
        input = input.movedim(tuple(dims), tuple(range(-len(dims), 0)))
    return _solve(input.reshape(other.numel(), -1), other.reshape(-1)).reshape(input.shape[other.ndim :])


@replaces(MAPPED, torch.linalg.lu_solve)
def _lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    if not left:  # X A = B is Aᴴ Xᴴ = Bᴴ
        return _lu_solve(LU, pivots, B.mH, adjoint=not adjoint).mH
    permutation, lower, upper = torch.lu_unpack(LU, pivots)  # A = P L U
    if adjoint:
        half = torch.linalg.solve_triangular(upper.mH, B, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(lower.mH, half, upper=True, unitriangular=True)
        return permutation @ whole
    half = torch.linalg.solve_triangular(lower, permutation.mH @ B, upper=False, unitriangular=True)
    solution: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)
    return solution


@replaces(MAPPED, torch.lu_solve, Tensor.lu_solve)
def _old_lu_solve(input: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    return _lu_solve(LU_data, LU_pivots, input)


@replaces(ALWAYS, torch.triangular_solve, Tensor.triangular_solve)
def _triangular_solve(
    input: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    """Its jvp is wrong."""
    matrix = A.mT if transpose else A
    solution = torch.linalg.solve_triangular(matrix, input, upper=upper != transpose, unitriangular=unitriangular)
    return _TriangularSolve((solution, A.clone()))


@replaces(MAPPED, torch.cholesky_solve, Tensor.cholesky_solve)
def _cholesky_solve(input: Tensor, input2: Tensor, upper: bool = False) -> Tensor:
    lower = input2.mH if upper else input2
    half = torch.linalg.solve_triangular(lower, input, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mH, half, upper=True)
    return solution


@replaces(ALWAYS, torch.cholesky_inverse, Tensor.cholesky_inverse)
def _cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    inverse: Tensor = torch.linalg.inv(input.mH @ input if upper else input @ input.mH)
    return inverse


@replaces(MAPPED, torch.linalg.householder_product, torch.orgqr, Tensor.orgqr)
def _householder_product(input: Tensor, tau: Tensor) -> Tensor:
    """The product of the reflections I − tᵢ vᵢ vᵢᴴ at once.

    It is I − V T Vᴴ with T = (I + D S)⁻¹ D, where D holds the tᵢ and S is VᴴV above the diagonal (Joffrain et al.,
    Accumulating Householder transformations, revisited, 2006; multiplied out so that a tᵢ may be zero).
    """
    count, (rows, columns) = tau.shape[-1], input.shape[-2:]
    identity = torch.eye(rows, dtype=input.dtype, device=input.device)
    vectors = input[..., :count].tril(-1) + identity[:, :count]
    coupled = tau.unsqueeze(-1) * (vectors.mH @ vectors).triu(1)
    scaled = tau.unsqueeze(-1) * vectors.mH[..., :columns]
    weighted: Tensor = torch.linalg.solve_triangular(
        identity[:count, :count] + coupled, scaled, upper=True, unitriangular=True
    )
    return identity[:, :columns] - vectors @ weighted


_TriangularSolve: Any = torch.return_types.triangular_solve
NESTED[torch.linalg.eig] = refused("torch.linalg.eig", "torch.linalg.eigh where the matrix is symmetric")
NESTED[torch.linalg.eigvals] = refused("torch.linalg.eigvals", "torch.linalg.eigvalsh where the matrix is symmetric")
