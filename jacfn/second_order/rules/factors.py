"""Factors of a matrix (L3): their derivatives by perturbation.

For each there is a matrix, linear in A', that tells how the factors turn; its derivative gives their second ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.linear import by_rule
from jacfn.second_order.rules.products import matmul, sums
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten


def adjoint(x: Jet) -> Jet:
    """The transpose, its elements conjugated."""
    return x.linear(lambda t, lead: t.mH.resolve_conj())


def _plus(total: Tensor, second: Tensor | None) -> Tensor:
    return total if second is None else total + second


# --- Cholesky ---------------------------------------------------------------------------------------


@rule(aten.linalg_cholesky_ex.default)
def _cholesky_ex(a: Jet, *, upper: bool = False, check_errors: bool = False) -> Any:
    lower, info = torch.linalg.cholesky_ex(a.value, check_errors=check_errors)
    result = _cholesky(a, lower)
    return adjoint(result) if upper else result, info


@rule(aten.cholesky.default)
def _old_cholesky(a: Jet, upper: bool = False) -> Any:
    return _cholesky_ex(a, upper=upper, check_errors=True)[0]


def _cholesky(a: Jet, lower: Tensor) -> Jet:
    """L' = L X with the lower triangle X of S = L⁻¹ A' L⁻ᴴ, its diagonal halved; S' = L⁻¹ A'' L⁻ᴴ - X S - S Xᴴ."""
    inverse = torch.linalg.solve_triangular(lower, _eye(lower), upper=False)

    def half(s: Tensor) -> Tensor:
        return s.tril() - torch.diag_embed(s.diagonal(dim1=-2, dim2=-1)) / 2

    s = inverse @ a.first @ inverse.mH
    x = half(s)
    bent = -sums(x, s, a.sum) - sums(s, x.mH, a.sum)
    bent = _plus(bent, None if a.second is None else inverse @ a.second @ inverse.mH)
    return a.new(lower, lambda: lower @ x, lower @ (sums(x, x, a.sum) + half(bent)))


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


# --- QR ---------------------------------------------------------------------------------------------


@rule(aten.linalg_qr.default)
def _qr(a: Jet, mode: str = "reduced") -> Any:
    rows, columns = a.value.shape[-2:]
    if a.value.is_complex() or (mode == "complete" and rows > columns):
        return NotImplemented
    if rows >= columns:
        return _tall_qr(a)
    q, _ = _tall_qr(a.linear(lambda t, lead: t[..., :rows]))
    return q, matmul(q.linear(lambda t, lead: t.mT), a)


def _tall_qr(a: Jet) -> tuple[Jet, Jet]:
    """Q' = A' R⁻¹ - Q X and R' = X R, where X is the upper triangle of C = Qᵀ A' R⁻¹ and what is below it, transposed.

    With M = A' R⁻¹ this gives C' = Q'ᵀ M + Qᵀ A'' R⁻¹ - C X.
    """
    q, r = torch.linalg.qr(a.value)
    inverse = torch.linalg.solve_triangular(r, _eye(r), upper=True)

    def upper(c: Tensor) -> Tensor:
        return c.triu() + c.tril(-1).mT

    m = a.first @ inverse
    c = q.mT @ m
    x = upper(c)
    turned = m - q @ x
    straight = None if a.second is None else a.second @ inverse
    bent = sums(turned.mT, m, a.sum) - sums(c, x, a.sum)
    bent = upper(_plus(bent, None if straight is None else q.mT @ straight))
    of_q = _plus(-sums(m + turned, x, a.sum) - q @ bent, straight)
    return a.new(q, turned, of_q), a.new(r, lambda: x @ r, (bent + sums(x, x, a.sum)) @ r)


# --- LU ---------------------------------------------------------------------------------------------


@rule(aten.linalg_lu.default)
def _lu(a: Jet, *, pivot: bool = True) -> Any:
    if a.value.shape[-1] != a.value.shape[-2]:
        return NotImplemented
    packed, pivots, _ = torch.linalg.lu_factor_ex(a.value, pivot=pivot)
    permutation, lower, upper = torch.lu_unpack(packed, pivots)
    return permutation, *_triangles(a, permutation, lower, upper)


@rule(aten.linalg_lu_factor_ex.default)
def _lu_factor(a: Jet, *, pivot: bool = True, check_errors: bool = False) -> Any:
    """Both triangles in one matrix."""
    if a.value.shape[-1] != a.value.shape[-2]:
        return NotImplemented
    packed, pivots, info = torch.linalg.lu_factor_ex(a.value, pivot=pivot, check_errors=check_errors)
    lower, upper = _triangles(a, *torch.lu_unpack(packed, pivots))
    return a.new(packed, lambda: lower.first + upper.first, lower.filled() + upper.filled()), pivots, info


def _triangles(a: Jet, permutation: Tensor, lower: Tensor, upper: Tensor) -> tuple[Jet, Jet]:
    """L' = L X, U' = Y U with the parts X and Y of C = L⁻¹ Pᵀ A' U⁻¹, below its diagonal and the rest.

    C' = L⁻¹ Pᵀ A'' U⁻¹ - X C - C Y.
    """
    left = torch.linalg.solve_triangular(lower, permutation.mT, upper=False, unitriangular=True)
    right = torch.linalg.solve_triangular(upper, _eye(upper), upper=True)
    c = left @ a.first @ right
    x, y = c.tril(-1), c.triu()
    bent = -sums(x, c, a.sum) - sums(c, y, a.sum)
    bent = _plus(bent, None if a.second is None else left @ a.second @ right)
    of_lower, of_upper = sums(x, x, a.sum) + bent.tril(-1), sums(y, y, a.sum) + bent.triu()
    return a.new(lower, lambda: lower @ x, lower @ of_lower), a.new(upper, lambda: y @ upper, of_upper @ upper)


@rule(aten.lu_unpack.default)
def _lu_unpack(packed: Jet, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:
    if packed.value.shape[-1] != packed.value.shape[-2]:
        return NotImplemented
    permutation, lower, _ = torch.lu_unpack(packed.value, pivots, unpack_data, unpack_pivots)
    below = packed.linear(lambda t, lead: t.tril(-1))
    return permutation, below.new(lower, lambda: below.first, below.second), packed.linear(lambda t, lead: t.triu())


# --- eigenvalues and singular values ----------------------------------------------------------------


@rule(aten._linalg_eigh.default)
def _eigh(a: Jet, UPLO: str = "L", compute_v: bool = True) -> Any:
    values, vectors = torch.linalg.eigh(a.value, UPLO)
    return _eigen(a, values, vectors, compute_v)


def _eigen(a: Jet, values: Tensor, vectors: Tensor, compute_v: bool) -> tuple[Any, Any]:
    """With E = Vᴴ A' V: λ' = diag E, V' = V G for Gᵢⱼ = Eᵢⱼ Fᵢⱼ, Fᵢⱼ = 1/(λⱼ - λᵢ), and E' = Vᴴ A'' V + Gᴴ E + E G.

    So λ'' = diag E' and V'' = V (G G + G'). Nothing is finite where eigenvalues meet.
    """
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    f = 1 / (gaps + torch.diag_embed(torch.full_like(values, torch.inf)))
    e = vectors.mH @ a.first @ vectors
    g, slopes = e * f, e.diagonal(dim1=-2, dim2=-1).real
    bent = sums(g.mH, e, a.sum) + sums(e, g, a.sum)
    bent = _plus(bent, None if a.second is None else vectors.mH @ a.second @ vectors)
    of_values = a.new(values, lambda: slopes, bent.diagonal(dim1=-2, dim2=-1).real)
    if not compute_v:
        return of_values, vectors
    moved = a.sum.of(e * (slopes.unsqueeze(-2) - slopes.unsqueeze(-1)))
    turned = sums(g, g, a.sum) + f * bent - f.square() * moved
    return of_values, a.new(vectors, lambda: vectors @ g, vectors @ turned)


@rule(aten._linalg_svd.default)
def _svd(a: Jet, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None) -> Any:
    """By the eigenvalues of AᴴA, or AAᴴ if that is smaller, the squares of the singular values; U = A V / σ."""
    rows, columns = a.value.shape[-2:]
    if compute_uv and full_matrices and rows != columns:
        return NotImplemented
    u, s, vh = torch.linalg.svd(a.value, full_matrices=False, driver=driver)
    sides = (adjoint(a), a) if rows >= columns else (a, adjoint(a))
    squares, vectors = _eigen(matmul(*sides), s.square(), vh.mH if rows >= columns else u, compute_uv)
    values = squares.curved(s, 0.5 / s, -0.25 / s**3)
    if not compute_uv:
        return u, values, vh
    others = by_rule(aten.div.Tensor, matmul(sides[1], vectors), by_rule(aten.unsqueeze.default, values, -2))
    u, v = (others, vectors) if rows >= columns else (vectors, others)
    return u, values, adjoint(v)
