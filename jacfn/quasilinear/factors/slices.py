"""Columns of the Jacobian of a leaf, some at a time, for all rows (L2).

Inner products of rows add up over slices of columns, so that no whole rows are needed and nothing is made twice. A
slice has the columns that are made together: outputs of a matrix product, columns of a table. Their order is of no
meaning, but it is the same for both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jacfn.quasilinear.factors.cuts import cuts
from jacfn.quasilinear.factors.gather import scattered
from jacfn.quasilinear.factors.matmul import AsIs, Matmul
from jacfn.quasilinear.factors.terms import Product

Slices = Iterator[tuple[Tensor, Tensor]]  # (N, R, c) of the one side, (N', R', c) of the other

_LARGEST = 16 << 20  # bytes: malloc maps larger ones anew each time
_FEWEST = 512  # columns, though: so many that a product does not spend its time on reading its result
_PLAIN = Matmul(AsIs())


def product_slices(a: Product, b: Product | None, room: int, in_place: bool) -> Slices:
    """Of matrix products with the same axes; ``b`` None for those of ``a`` twice."""
    sizes = a.x.shape[1], a.delta.shape[4], a.x.shape[3]  # G, O, I
    most = _columns([x.delta for x in (a, b) if x is not None], room // 2)
    for groups, outputs, inputs in _box_cuts(sizes, most):
        left, right = (
            None if x is None else (x.delta[:, :, groups, :, outputs], x.x[:, groups, :, inputs]) for x in (a, b)
        )
        assert left is not None
        dense = _dense(*left, room, in_place)
        yield dense, dense if right is None else _dense(*right, room, in_place)


def _dense(delta: Tensor, x: Tensor, room: int, in_place: bool) -> Tensor:
    """``(N, R, G·O·I)``; so many samples at once that copies of the factors find room."""
    (r, n, g, t, o), i = delta.shape, x.shape[-1]
    if not in_place:
        return _PLAIN.rows(delta, x).reshape(n, r, g * o * i)
    out = delta.new_empty(n, r, g, o, i)
    each = r * g * (t * (o + i) + o * i) * delta.element_size()
    for samples in cuts(n, room // max(2 * each, 1)):
        _PLAIN.write(delta[:, samples], x[samples], out[samples])
    return out.view(n, r, g * o * i)


def dense_slices(a: Tensor, b: Tensor | None, room: int) -> Slices:
    """Of dense rows ``(N, R, *leaf)``: all at once where they need not be copied."""
    given = [x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in (a, b) if x is not None]
    size = given[0].shape[2]
    most = size if all(x.is_contiguous() for x in given) else _columns(given, room)
    for columns in cuts(size, most):
        yield given[0][..., columns], given[-1][..., columns]


def gather_slices(sources: Sequence[Tensor], indices: Sequence[Tensor], room: int) -> Slices:
    """Of one table, or of two: what ``(N, R, T, D)`` adds to the rows ``(N, T)``, for the rows that occur."""
    rows, places = torch.unique(torch.cat([index.flatten() for index in indices]), return_inverse=True)
    first = places[: indices[0].numel()].view(indices[0].shape)
    last = places[places.numel() - indices[-1].numel() :].view(indices[-1].shape)
    most = _columns(sources, room // 2)
    for table, columns in _box_cuts((len(rows), sources[0].shape[-1]), most):
        left = _scattered(sources[0][..., columns], first, table)
        yield left, left if len(sources) == 1 else _scattered(sources[-1][..., columns], last, table)


def _scattered(source: Tensor, index: Tensor, table: slice) -> Tensor:
    """``(N, R, c)``: a range of the rows of a table."""
    size = table.stop - table.start
    inside = (index >= table.start) & (index < table.stop)
    source = source * inside[:, None, :, None]
    rows = scattered(source, (index - table.start).clamp(0, size - 1), size)
    return rows.reshape(*rows.shape[:2], size * rows.shape[3])


def _columns(given: Sequence[Tensor], room: int) -> int:
    """How many columns of all rows of these, ``(N, R, ...)`` or ``(R, N, ...)``, find room."""
    rows = max(sum(x.shape[0] * x.shape[1] for x in given), 1) * given[0].element_size()
    return min(room, max(_LARGEST, _FEWEST * rows)) // rows


def _box_cuts(sizes: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most ``most`` elements (at least one) that together fill a box: the last axes stay whole at first."""
    if not sizes:
        yield ()
        return
    inner = max(math.prod(sizes[1:]), 1)
    for piece in cuts(sizes[0], most // inner):
        for others in _box_cuts(sizes[1:], max(most, 1) if inner > most else inner):
            yield (piece, *others)
