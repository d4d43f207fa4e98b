"""Determinants: their derivative formulas take a kept LU factorisation for a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacfn._exact.products import running_products
from jacfn._exact.tables import ALWAYS, MAPPED, replaces
from jacfn._torch import derivative_levels

_SignAndLog: Any = type(torch.linalg.slogdet(torch.ones(1, 1)))  # the named tuple that PyTorch returns


@replaces(MAPPED, torch.slogdet, torch.linalg.slogdet, Tensor.slogdet)
def _slogdet(input: Tensor) -> Any:
    return _SignAndLog(_sign_and_log(input))


@replaces(MAPPED, torch.logdet, Tensor.logdet)
def _logdet(input: Tensor) -> Tensor:
    sign, value = _sign_and_log(input)
    return value + sign.log()


@replaces(ALWAYS, torch.det, torch.linalg.det, Tensor.det)
def _det(input: Tensor) -> Tensor:
    """Exact also where the matrix is singular, as the polynomial it is.

    With A = U diag(s) Vᴴ at this point, and U and V held constant, det A = det U · det Vᴴ · det B for B = Uᴴ A V. Here
    B is diagonal, its largest entries first, so that in B = [[P, Q], [R, T]] the zeros of a singular matrix gather
    in T, and det B = det P · det(T − R P⁻¹ Q) has all derivatives where T is as large as the rank deficit. Where the
    deficit is larger, the derivatives up to the order of T are zero, and so they come out if the zeros left in P
    are taken for a constant factor. Hence T has a row for each derivative that is under way.
    """
    size, rows = input.shape[-1], max(3, derivative_levels([input]))
    if size <= rows:
        return _expanded(input)
    matrix, scales = _equilibrated(input)
    base = matrix.detach()
    left, values, right = torch.linalg.svd(torch.where(base.isfinite().all((-2, -1), True), base, 0))
    turned = left.mH @ matrix @ right.mH
    cut = size - rows
    zero = values[..., :cut] < torch.finfo(values.dtype).tiny
    pivot = turned[..., :cut, :cut] + torch.diag_embed(zero.to(turned.dtype))
    coupling = turned[..., cut:, :cut] @ torch.linalg.inv(pivot) @ turned[..., :cut, cut:]
    factors = [torch.where(zero, 0, _triangle(pivot)) * scales[..., :cut], scales[..., cut:]]
    sign: Tensor = torch.linalg.det(left).sgn() * torch.linalg.det(right).sgn()
    return sign * running_products(torch.cat(factors, -1))[..., -1] * _expanded(turned[..., cut:, cut:] - coupling)


def _expanded(matrix: Tensor) -> Tensor:
    """The determinant without a division, for a few rows (Bird, A simple division-free algorithm, 2011)."""
    size = matrix.shape[-1]
    if size == 0:
        return matrix.new_ones(matrix.shape[:-2])
    power = matrix if size % 2 else -matrix
    for _ in range(size - 1):
        diagonal = power.diagonal(dim1=-2, dim2=-1)
        below = diagonal - diagonal.flip(-1).cumsum(-1).flip(-1)  # minus the sum of what follows on the diagonal
        power = (power.triu(1) + torch.diag_embed(below)) @ matrix
    return power[..., 0, 0]


def _equilibrated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with its rows and columns scaled to the magnitude 1, and numbers by which its determinant shrank."""
    scales = matrix.new_ones(())
    for axis in (-1, -2):
        largest = matrix.detach().abs().amax(axis, keepdim=True)
        scale = torch.where(largest > 0, largest, 1)
        matrix, scales = matrix / scale, scales * scale.squeeze(axis)
    return matrix, scales


def _triangle(matrix: Tensor) -> Tensor:
    """Numbers whose product is the determinant: the diagonal of R in A = Q R, that of U in A = P L U, with a sign.

    The derivatives of LU have no batching rule; those of QR do not tell how the phase of a complex Q changes.
    """
    if matrix.is_complex():
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        swapped = pivots != torch.arange(1, pivots.shape[-1] + 1, device=pivots.device)
        signs = torch.where(swapped, -1, 1)
    else:
        orthogonal, factors = torch.linalg.qr(matrix)
        sign: Tensor = torch.linalg.det(orthogonal.detach()).sgn()
        signs = torch.cat([sign.unsqueeze(-1), torch.ones_like(matrix[..., 1:, 0])], -1)
    diagonal: Tensor = factors.diagonal(dim1=-2, dim2=-1)
    return diagonal * signs


def _sign_and_log(matrix: Tensor) -> tuple[Tensor, Tensor]:
    diagonal = _triangle(matrix)
    return diagonal.sgn().prod(-1), diagonal.abs().log().sum(-1)
