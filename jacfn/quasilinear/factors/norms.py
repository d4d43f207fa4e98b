"""Sums of squares over rows and columns of a matrix product's Jacobian (L2), without its elements.

One position, ``J[n,r,g,o,i] = delta[r,n,g,o] x[n,g,i]``: the squared norm of a row is the sum over the groups of
``|delta|² |x|²``; the sum over the rows of the elements of two such Jacobians is ``(sum_r delta delta')ᵀ (x x')``.
Several positions: the squared norm of a row is the sum over pairs of them of ``(delta_t · delta_s)(x_t · x_s)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn.quasilinear.factors.cuts import cuts


def row_squares(delta: Tensor, x: Tensor, in_place: bool) -> Tensor:
    """``(N, R)`` for one position, ``delta`` ``(R, N, G, 1, O)`` and ``x`` ``(N, G, 1, I)``."""
    return (squares(delta, in_place) * squares(x, in_place)).sum((2, 3)).T


def squares(x: Tensor, in_place: bool) -> Tensor:
    """The sums of squares along the last axis; in place of nothing, but as a norm, which has no temporary."""
    return torch.linalg.vector_norm(x, dim=-1).square_() if in_place else x.square().sum(-1)


def pairs_are_cheaper(delta: Tensor, x: Tensor, room: int) -> bool:
    """Whether pairs of positions take fewer operations than the elements of the Jacobian, and find room."""
    r, _, _, t, o = delta.shape
    i = x.shape[-1]
    return t * (i + r * o) < r * o * i and _bytes_of_pairs(x) <= room


def row_squares_by_pairs(delta: Tensor, x: Tensor, room: int) -> Tensor:
    """``(N, R)`` for several positions, ``delta`` ``(R, N, G, T, O)`` and ``x`` ``(N, G, T, I)``."""
    r, n = delta.shape[:2]
    each = max(_bytes_of_pairs(x), 1)
    rows_at_once = min(max(room // each, 1), max(r, 1))
    blocks = []
    for samples in cuts(n, room // (each * rows_at_once)):
        inputs = x[samples] @ x[samples].mT  # (N, G, T, T)
        pieces = (delta[rows, samples] for rows in cuts(r, rows_at_once))
        blocks.append(torch.cat([((piece @ piece.mT) * inputs).sum((2, 3, 4)).T for piece in pieces], 1))
    return torch.cat(blocks)


def _bytes_of_pairs(x: Tensor) -> int:
    """For one row of one sample, with its product."""
    return 3 * x.shape[1] * x.shape[2] ** 2 * x.element_size()


def column_products(deltas: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], room: int) -> Tensor:
    """``(G, O, I)`` for one position: the sum over samples and rows of the products of the elements of both."""
    first, second = (delta.squeeze(3) for delta in deltas)  # (R, N, G, O)
    r, n, g, o = first.shape
    pieces = cuts(r, room // max(2 * n * g * o * first.element_size(), 1))
    both = sum(((first[rows] * second[rows]).sum(0) for rows in pieces), first.new_zeros(n, g, o))
    x = inputs[0].squeeze(2) * inputs[1].squeeze(2)  # (N, G, I)
    # (G, O, I) <- (G, O, N) x (G, N, I)
    return both.permute(1, 2, 0) @ x.transpose(0, 1)
