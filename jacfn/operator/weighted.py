"""Inner products of rows with weights on the columns (L3): ``J diag(w) Jᵀ`` without ``J``.

A weight for each element of a layer's matrix is no product of a part for ``x`` and one for ``delta``. At one position
``J[n,r] = delta[n,r] xᵀ[n]``, so::

    J[n,r] · w · J[m,s] = sum_o delta[n,r,o] delta[m,s,o] z[n,m,o],    z[n,m,o] = sum_i w[o,i] x[n,i] x[m,i]

``z`` is shared by all pairs of outputs: ``2·N·M·O·(I + R·S)`` operations where dense rows take ``2·N·M·R·S·O·I``. All
else goes by products of the factors with weighted dense rows, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from jacfn._torch import inside_transform
from jacfn.operator.block import Block, as_places, rows_within
from jacfn.operator.changes import ByColumns
from jacfn.operator.source import Source
from jacfn.quasilinear.factors import Leaf, Matmul
from jacfn.quasilinear.factors.terms import Product, only_product


def gram_by_columns(source: Source) -> Tensor | None:
    """``J C Cᵀ Jᵀ`` of ``J C``; None of anything else, and where derivatives are carried, which go by dense rows."""
    if not isinstance(source, ByColumns):
        return None
    squares = source.squares
    if inside_transform() or any(x.requires_grad for x in squares) or not next(source.base.blocks()).in_place:
        return None
    return weighted_gram(source.base, squares)


def weighted_gram(source: Source, weights: Sequence[Tensor]) -> Tensor:
    """``(M, M)``, in new memory; ``weights`` in pieces of the leaves' shapes. Derivatives are not recorded."""
    kind = source.kinds[0]
    out = torch.zeros(source.count, source.count, dtype=kind.dtype, device=kind.device)
    for number, x in enumerate(source.blocks()):
        for y in chain([x], source.blocks(number + 1)):
            for piece in x.pieces(rows_within(x, source.room)):
                _add_pair(out, piece, y, weights, source.room, mirrored=y is not x)
    return out


def _add_pair(out: Tensor, x: Block, y: Block, weights: Sequence[Tensor], room: int, *, mirrored: bool) -> None:
    """The products of the rows of two blocks to their place, and to the transposed one."""
    if isinstance(x.rows, slice) and isinstance(y.rows, slice):
        target = out[x.rows, y.rows]
        _add(target.view(*x.grid, *y.grid), x, y, weights, room)
        if mirrored:
            out[y.rows, x.rows] = target.T
        return
    target = out.new_zeros(x.size, y.size)
    _add(target.view(*x.grid, *y.grid), x, y, weights, room)
    left, right = as_places(x.rows, out.device), as_places(y.rows, out.device)
    out[left[:, None], right] = target
    if mirrored:
        out[right[:, None], left] = target.T


def _add(out: Tensor, x: Block, y: Block, weights: Sequence[Tensor], room: int) -> None:
    """``(*grid, *grid')``, leaf by leaf."""
    for a, b, w in zip(x.leaves, y.leaves, weights, strict=True):
        p, q = _one_position(a), _one_position(b)
        if p is not None and q is not None and p.matches(q):
            _add_products(out, p, q, w)
        else:
            _add_rows(out, a, b, w, room)


def _one_position(leaf: Leaf) -> Product | None:
    product = only_product(leaf.terms)
    return product if product is not None and product.positions == 1 and isinstance(product.form, Matmul) else None


def _add_products(out: Tensor, a: Product, b: Product, w: Tensor) -> None:
    """By ``z``, for one sample of ``b`` after the other."""
    n, r, m, s = out.shape
    groups, o, i = a.x.shape[1], a.delta.shape[4], a.x.shape[3]
    swapped = isinstance(a.form, Matmul) and a.form.swapped
    w = w.reshape(groups, i, o).transpose(1, 2) if swapped else w.reshape(groups, o, i)
    for group in range(groups):
        x, delta = a.x[:, group, 0], a.delta[:, :, group, 0].transpose(0, 1)  # (N, I), (N, R, O)
        for sample in range(m):
            z = x @ (w[group] * b.x[sample, group, 0]).T  # (N, O) <- (N, I) x (I, O)
            left = (delta * z.unsqueeze(1)).reshape(n * r, o)
            out[:, :, sample] += (left @ b.delta[:, sample, group, 0].T).view(n, r, s)


def _add_rows(out: Tensor, a: Leaf, b: Leaf, w: Tensor, room: int) -> None:
    """By products of ``a`` with weighted rows of ``b``."""
    for samples, pieces in b.parts(room // 2):
        for rows in pieces:
            dense = b.part(samples, rows).dense() * w  # (n, r, *leaf)
            out[:, :, samples, rows] += a.mv(dense.flatten(0, 1), room // 2).view(*out.shape[:2], *dense.shape[:2])
