"""Inverses, linear systems, determinants and functions of a matrix (L3).

In the formulas A' and A'' are the derivatives of a matrix along one direction; what is quadratic in A' is summed over
the directions at once. The inverse stands where a factorisation could: PyTorch takes one that it kept for a constant
when it differentiates what was solved with it, and here all can be differentiated further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn._exact import ExactKernels
from jacfn._torch import derivative_levels
from jacfn.second_order.jet import Jet, added, constant
from jacfn.second_order.rules.binary import combined, plain
from jacfn.second_order.rules.linear import by_rule, from_behind, split_axis
from jacfn.second_order.rules.products import matmul, multiplied, sums
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten


@rule(aten.linalg_inv_ex.default)
def _inverse(a: Jet, *, check_errors: bool = False) -> tuple[Jet, Tensor]:
    """X = A⁻¹ has X' = -X A' X and X'' = 2 X A' X A' X - X A'' X."""
    x, info = torch.linalg.inv_ex(a.value, check_errors=check_errors)
    moved = multiplied(x, a.first, x.ndim)
    second = 2 * sums(moved, moved, a.sum)
    if a.second is not None:
        second = second - x @ a.second
    return a.new(x, lambda: -multiplied(moved, x, x.ndim), second @ x), info


# --- linear systems ---------------------------------------------------------------------------------


Solver = Callable[[Tensor], Tensor]


def _solved(a: Any, b: Any, solver: Callable[[Tensor], Solver]) -> Jet:
    """Of A X = B: X' = A⁻¹ (B' - A' X) and X'' = A⁻¹ (B'' - A'' X - 2 A' X')."""
    rank = max(plain(a).ndim, plain(b).ndim)
    a, b = (x.to_rank(rank) if isinstance(x, Jet) else x for x in (a, b))
    solve = _of_columns(solver(plain(a)), rank)
    if not isinstance(a, Jet):
        return from_behind(solve)(b)
    value = solve(plain(b))
    right = -multiplied(a.first, value, rank)
    first = solve(right + b.first if isinstance(b, Jet) else right)
    second = -2 * sums(a.first, first, a.sum)
    if a.second is not None:
        second = second - multiplied(a.second, value, rank)
    if isinstance(b, Jet) and b.second is not None:
        second = second + b.second
    return a.new(value, first, solve(second))


def _of_columns(solve: Solver, rank: int) -> Solver:
    """Directions in front become further columns."""

    def apply(t: Tensor) -> Tensor:
        if t.ndim <= rank:
            return solve(t)
        columns = t.movedim(0, -2)  # (..., n, K, m)
        return split_axis(solve(columns.flatten(-2)), -1, columns.shape[-2:]).movedim(-2, 0)

    return apply


def _transposed(x: Any) -> Any:
    return by_rule(aten.transpose.int, x, -2, -1)


@rule(aten._linalg_solve_ex.default)
def _solve(a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    matrix, right = plain(a), plain(b)
    if right.ndim == 1 or (right.ndim + 1 == matrix.ndim and right.shape == matrix.shape[:-1]):
        result, *rest = _solve(a, by_rule(aten.unsqueeze.default, b, -1), check_errors=check_errors)
        return by_rule(aten.squeeze.dim, result, -1), *rest
    inverse, info = torch.linalg.inv_ex(matrix, check_errors=check_errors)
    if left:
        result = _solved(a, b, lambda _: inverse.__matmul__)
    else:
        result = _transposed(_solved(_transposed(a), _transposed(b), lambda _: inverse.mT.__matmul__))
    return result, matrix, info, info  # nobody sees the factors, which stand in the middle


@rule(aten.linalg_solve_triangular.default)
def triangular(a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """What is beyond the triangle has no influence."""
    if not left:
        sides = _transposed(a), _transposed(b)
        return _transposed(triangular(*sides, upper=not upper, unitriangular=unitriangular))
    kept = by_rule(aten.triu.default if upper else aten.tril.default, a, int(unitriangular) * (1 if upper else -1))

    def solver(matrix: Tensor) -> Solver:
        # The diagonal of ones is not in kept.
        return lambda t: torch.linalg.solve_triangular(matrix, t, upper=upper, unitriangular=unitriangular)

    return _solved(kept, b, solver)


@rule(aten.linalg_lu_solve.default)
def _lu_solve(packed: Any, pivots: Tensor, b: Any, *, left: bool = True, adjoint: bool = False) -> Any:
    """By both triangles."""
    if plain(packed).is_complex():
        return NotImplemented
    if not left:
        return _transposed(_lu_solve(packed, pivots, _transposed(b), adjoint=not adjoint))
    permutation = torch.lu_unpack(plain(packed).detach(), pivots, unpack_data=False).P
    if adjoint:
        across = _transposed(packed)
        half = _triangular(across, b, False)
        return by_rule(torch.matmul, permutation, _triangular(across, half, True, True))
    half = _triangular(packed, by_rule(torch.matmul, permutation.mT, b), False, True)
    return _triangular(packed, half, True)


@rule(aten.cholesky_solve.default)
def _cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    if plain(factor).is_complex():
        return NotImplemented
    lower = _transposed(factor) if upper else factor
    half = _triangular(lower, b, False)
    return _triangular(_transposed(lower), half, True)


def _triangular(a: Any, b: Any, upper: bool, ones: bool = False) -> Any:
    operation = triangular if isinstance(a, Jet) or isinstance(b, Jet) else torch.linalg.solve_triangular
    return operation(a, b, upper=upper, unitriangular=ones)


@rule(aten.cholesky_inverse.default)
def _cholesky_inverse(factor: Jet, upper: bool = False) -> Any:
    eye = torch.eye(factor.value.shape[-1], dtype=factor.value.dtype, device=factor.value.device)
    return _cholesky_solve(eye, factor, upper)


# --- determinants -----------------------------------------------------------------------------------


def _logarithm(a: Jet, value: Tensor) -> Jet:
    """(log det)' = tr S for S = A⁻¹ A', and (log det)'' = tr A⁻¹ A'' - tr S S."""
    x = torch.linalg.inv_ex(a.value).inverse
    s = multiplied(x, a.first, x.ndim)
    second = -a.sum.of((s * s.mT).sum((-2, -1)))
    if a.second is not None:
        second = second + (x.mT * a.second).sum((-2, -1))
    return a.new(value, lambda: s.diagonal(dim1=-2, dim2=-1).sum(-1), second)


@rule(aten._linalg_slogdet.default)
def _slogdet(a: Jet) -> Any:
    with ExactKernels():
        sign, value = torch.linalg.slogdet(a.value)
    if not a.value.is_complex():
        return sign, _logarithm(a, value), a.value, sign  # nobody sees the factors
    whole = _logarithm(a, torch.complex(value, sign.angle()))
    size, angle = whole.linear(lambda t, lead: t.real), whole.linear(lambda t, lead: t.imag)
    return _turned(angle, sign), size, a.value, sign


def _turned(angle: Jet, unit: Tensor) -> Jet:
    """A complex number of magnitude one: u' = i φ' u and u'' = (i φ'' - φ'²) u."""
    second = 1j * angle.filled() - angle.sum.product(angle.first, angle.first)
    return angle.new(unit, lambda: 1j * angle.first * unit, second * unit)


@rule(aten._linalg_det.default)
def _det(a: Jet) -> Any:
    """Also where the matrix is singular, as the polynomial it is.

    With A = U diag(σ) Vᴴ at this point, and U and V constant, det A = det U det Vᴴ det B for B = Uᴴ A V, which is
    diagonal here, its largest entries first. In B = [[P, Q], [R, T]] the zeros of a singular matrix gather in T, which
    has as many rows as there are derivatives, and det B = det P det(T - R P⁻¹ Q). Zeros left in P: a constant factor.
    """
    size, rows = a.value.shape[-1], 2 + derivative_levels([a.value])
    if size <= rows:
        return _expanded(a), a.value, a.value  # nobody sees the factors
    left, values, right = torch.linalg.svd(a.value.detach())
    turned = matmul(matmul(left.mH, a), right.mH)
    cut = size - rows
    zero = values[..., :cut] < torch.finfo(values.dtype).tiny
    p, q, r, t = (
        turned.linear(lambda t, lead, i=i, j=j: t[..., i, j])
        for i in (slice(cut), slice(cut, size))
        for j in (slice(cut), slice(cut, size))
    )
    pivot = p.new(p.value + torch.diag_embed(zero.to(p.value.dtype)), lambda: p.first, p.second)
    rest = combined(t, matmul(matmul(r, _inverse(pivot)[0]), q), 1, -1)
    factor = torch.linalg.det(left) * torch.linalg.det(right) * ~zero.any(-1)
    product = by_rule(aten.mul.Tensor, _of_invertible(pivot), _expanded(rest))
    return product.linear(lambda t, lead: factor * t), a.value, a.value


def _of_invertible(a: Jet) -> Jet:
    """The determinant, by its logarithm."""
    with ExactKernels():
        sign, size = torch.linalg.slogdet(a.value)
    value = sign * size.exp()
    logarithm = _logarithm(a, value)
    second = logarithm.filled() + a.sum.product(logarithm.first, logarithm.first)
    return a.new(value, lambda: value * logarithm.first, value * second)


def _expanded(a: Jet) -> Jet:
    """The determinant of a few rows without a division (Bird, A simple division-free algorithm, 2011)."""
    size = a.value.shape[-1]
    if size == 0:
        return constant(a.value.new_ones(a.value.shape[:-2]), a)
    power = a if size % 2 else by_rule(aten.neg.default, a)
    for _ in range(size - 1):
        power = matmul(power.linear(lambda t, lead: _above(t)), a)
    return power.linear(lambda t, lead: t[..., 0, 0])


def _above(power: Tensor) -> Tensor:
    """What is above the diagonal, and on it minus the sum of what follows there."""
    diagonal = power.diagonal(dim1=-2, dim2=-1)
    after = diagonal.flip(-1).cumsum(-1).flip(-1) - diagonal
    return power.triu(1) - torch.diag_embed(after)


# --- functions of a matrix --------------------------------------------------------------------------


@rule(aten.linalg_matrix_exp.default)
def _matrix_exp(a: Jet) -> Jet:
    """The exponential of [[A, A', 0], [0, A, A'], [0, 0, A]] has those of A, with its derivatives, in its first row.

    They are the coefficients of its powers of a t with t³ = 0 (Al-Mohy, Higham, Computing the Fréchet derivative of
    the matrix exponential, 2009), so the last one is half of the second derivative.
    """
    first, n = a.first, a.value.shape[-1]
    same = a.value.expand(first.shape)
    whole = _exponential(same, first, torch.zeros_like(first))
    second = 2 * a.sum.of(whole[..., 2 * n :])
    if a.second is not None:
        same = a.value.expand(a.second.shape)
        second = second + _exponential(same, a.second)[..., n:]
    return a.new(torch.linalg.matrix_exp(a.value), whole[..., n : 2 * n], second)


def _exponential(*row: Tensor) -> Tensor:
    """The first row of blocks of the exponential of a matrix whose rows of blocks are this one, ever further right."""
    zero, n = torch.zeros_like(row[0]), row[0].shape[-1]
    rows = [torch.cat([zero] * i + list(row[: len(row) - i]), -1) for i in range(len(row))]
    whole: Tensor = torch.linalg.matrix_exp(torch.cat(rows, -2))
    return whole[..., :n, :]


@rule(aten.linalg_pinv.atol_rtol_tensor)
def _pinv(a: Jet, **options: Any) -> Any:
    """Where the rank does not change.

    P' = -P A' P + P Pᴴ A'ᴴ R + Z A'ᴴ Pᴴ P with R = 1 - A P and Z = 1 - P A (Golub, Pereyra, The differentiation of
    pseudo-inverses and nonlinear least squares problems, 1973), and P'' by the product rule.
    """
    p: Tensor = aten.linalg_pinv.atol_rtol_tensor(a.value, **options)
    rows, columns = (torch.eye(n, dtype=p.dtype, device=p.device) for n in a.value.shape[-2:])
    r, z = rows - a.value @ p, columns - p @ a.value
    d = a.first
    pp, qq = p @ p.mH, p.mH @ p

    def along(d: Tensor) -> Tensor:
        return pp @ d.mH @ r + z @ d.mH @ qq - p @ d @ p

    first = along(d)
    dr, dz = -(d @ p + a.value @ first), -(first @ a.value + p @ d)
    bent = first @ p.mH, first.mH @ p
    dpp, dqq = bent[0] + bent[0].mH, bent[1] + bent[1].mH
    second = sums(dpp, d.mH @ r, a.sum) + sums(pp @ d.mH, dr, a.sum) - sums(first, d @ p, a.sum)
    second = second + sums(dz, d.mH @ qq, a.sum) + sums(z @ d.mH, dqq, a.sum) - sums(p @ d, first, a.sum)
    return a.new(p, first, added(second, None if a.second is None else along(a.second)))


# --- products of reflections ------------------------------------------------------------------------


@rule(aten.linalg_householder_product.default)
def _householder_product(a: Any, tau: Any) -> Any:
    """1 - V T Vᵀ with T = (1 + D S)⁻¹ D, where D holds the τᵢ and S is VᵀV above the diagonal.

    So the product of all 1 - τᵢ vᵢ vᵢᵀ is had at once (Joffrain et al., Accumulating Householder transformations,
    revisited, 2006), also where a τᵢ is zero.
    """
    count, (rows, columns) = plain(tau).shape[-1], plain(a).shape[-2:]
    if plain(a).is_complex():
        return NotImplemented
    eye = torch.eye(rows, dtype=plain(a).dtype, device=plain(a).device)
    below = by_rule(aten.tril.default, by_rule(aten.slice.Tensor, a, -1, 0, count), -1)
    v = by_rule(aten.add.Tensor, below, eye[:, :count])
    across, each = by_rule(aten.transpose.int, v, -2, -1), by_rule(aten.unsqueeze.default, tau, -1)
    coupled = by_rule(aten.mul.Tensor, each, by_rule(aten.triu.default, by_rule(torch.matmul, across, v), 1))
    scaled = by_rule(aten.mul.Tensor, each, by_rule(aten.slice.Tensor, across, -1, 0, columns))
    turned = triangular(coupled, scaled, upper=True, unitriangular=True)
    return by_rule(aten.sub.Tensor, eye[:, :columns], matmul(v, turned))
