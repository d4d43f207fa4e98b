"""Inner products of the rows of operators, block by block (L3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from jacfn.operator.block import Block, Rows, as_places
from jacfn.operator.gram import Contraction, add_gram, gram_of, mirror, shifts
from jacfn.operator.source import Source
from jacfn.operator.sums import InPlace

Progress = Callable[[int, int], None] | None


def inner_products(a: Source, b: Source | None, contraction: Contraction, outputs: int, progress: Progress) -> Tensor:
    """All inner products of rows of ``a`` with rows of ``b`` (None: with those of ``a``, each pair once).

    ``full``: ``(M, M')``. ``trace`` and ``diagonal``, for functions with ``outputs`` rows for each sample:
    ``(N, N')``, the sum over equal rows of two samples, or ``(N, N', K)``.
    """
    kind, other = a.kinds[0], a if b is None else b
    zeros = partial(
        torch.zeros, _shape(a.count, other.count, contraction, outputs), dtype=kind.dtype, device=kind.device
    )
    total = a.count * (a.count + 1) // 2 if b is None else a.count * other.count
    done, out, recorded = 0, None, None
    for number, x in enumerate(a.blocks()):
        for y in _partners(a, b, number, x):
            pair = _pair(x, y, contraction, outputs, symmetric=b is None)
            if pair is not None and x.in_place and y.in_place:
                out = zeros() if out is None else out
                pair.add_to(out, a.room)
            elif pair is not None:
                recorded = pair.recorded(recorded, zeros, a.room)
            done += x.size * (x.size + 1) // 2 if b is None and x is y else x.size * y.size
            if progress is not None:
                progress(done, total)
    if recorded is not None:
        return recorded if out is None else out + recorded
    return zeros() if out is None else out


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two blocks, and where their inner products belong: in ``left x right`` (and ``diagonal``: ``outputs``)."""

    x: Block
    y: Block
    contraction: Contraction
    left: Rows
    right: Rows
    outputs: slice
    same: bool  # a block with itself
    mirrored: bool  # the products belong in the transposed place, too

    def add_to(self, out: Tensor, room: int) -> None:
        """Add them in place."""
        plain = isinstance(self.left, slice) and isinstance(self.right, slice) and not self.mirrored
        target = self._view(out) if plain else out.new_zeros(self._lengths())
        beside = shifts(self.x.leaves, self.y.leaves)
        for number, (p, q) in enumerate(zip(self.x.leaves, self.y.leaves, strict=True)):
            if number not in beside.values():
                add_gram(target, p, None if self.same else q, self.contraction, room, shifted=number in beside)
        if self.same:
            mirror(target, self.contraction)
        if not plain:
            for index, product in self._parts(self._flat(target)):
                out[index] += product

    def recorded(self, total: Tensor | None, zeros: Callable[[], Tensor], room: int) -> Tensor:
        """``total`` with them, by operations that record derivatives."""
        terms = [gram_of(p, q, self.contraction, room) for p, q in zip(self.x.leaves, self.y.leaves, strict=True)]
        product = self._flat(sum(terms[1:], terms[0]))
        whole = zeros() if total is None else total
        if total is None and product.shape == whole.shape and isinstance(self.left, slice):
            return product
        for index, part in self._parts(product):
            whole = whole.index_put(index, part, accumulate=True)
        return whole

    def _lengths(self) -> tuple[int, ...]:
        (n, r), (m, s) = self.x.grid, self.y.grid
        return {"full": (n, r, m, s), "trace": (n, m), "diagonal": (n, m, r)}[self.contraction]

    def _view(self, out: Tensor) -> Tensor:
        if self.contraction == "full":
            return out[self.left, self.right].view(*self.x.grid, *self.y.grid)
        return out[self.left, self.right] if self.contraction == "trace" else out[self.left, self.right, self.outputs]

    def _flat(self, product: Tensor) -> Tensor:
        return product.flatten(2, 3).flatten(0, 1) if self.contraction == "full" else product

    def _parts(self, product: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """With the index of its place, and mirrored."""
        device = product.device
        rows, columns = as_places(self.left, device), as_places(self.right, device)
        if self.contraction == "diagonal":
            last = as_places(self.outputs, device)
            yield (rows[:, None, None], columns[:, None], last), product
            if self.mirrored:
                yield (columns[:, None, None], rows[:, None], last), product.transpose(0, 1)
        else:
            yield (rows[:, None], columns), product
            if self.mirrored:
                yield (columns[:, None], rows), product.T


def _pair(x: Block, y: Block, contraction: Contraction, outputs: int, *, symmetric: bool) -> _Pair | None:
    """None where two samples have no rows in common, and such are asked for."""
    same = symmetric and x is y
    mirrored = symmetric and not same
    if contraction == "full":
        return _Pair(x, y, contraction, x.rows, y.rows, slice(0), same, mirrored)
    (samples, rows), (others, columns) = _in_samples(x, outputs), _in_samples(y, outputs)
    common = slice(max(rows.start, columns.start), min(rows.stop, columns.stop))
    if common.start >= common.stop:
        return None
    x, y = _common(x, rows, common), _common(y, columns, common)
    return _Pair(x, y, contraction, samples, others, common, same, mirrored)


def _in_samples(block: Block, outputs: int) -> tuple[slice, slice]:
    """The samples of a block, and which rows of each it has."""
    assert isinstance(block.rows, slice)
    first, low = divmod(block.rows.start, outputs)
    return slice(first, first + block.grid[0]), slice(low, low + block.grid[1])


def _common(block: Block, rows: slice, common: slice) -> Block:
    if rows == common:
        return block
    return block.part(slice(0, block.grid[0]), slice(common.start - rows.start, common.stop - rows.start))


def add_normal(out: Tensor, block: Block, weighted: Block | None, room: int) -> None:
    """Add ``JᵀJ`` to the upper triangle of ``out``, or ``JᵀWJ`` to all of it, by rows that fit into the room."""
    p = len(out)
    sums = InPlace(out.view(p, 1, p, 1), "full", weighted is None, room)
    most = max(room // max(4 * p * out.element_size(), 1), 1)
    for piece, other in zip(block.pieces(most), (weighted or block).pieces(most), strict=True):
        rows = piece.dense().T.unsqueeze(0)  # (1, P, rows): inner products of columns
        sums.add_slices(rows, rows if weighted is None else other.dense().T.unsqueeze(0))


def _partners(a: Source, b: Source | None, number: int, x: Block) -> Iterator[Block]:
    if b is not None:
        return b.blocks()
    return _itself_and(x, a, number)


def _itself_and(x: Block, a: Source, number: int) -> Iterator[Block]:
    yield x
    yield from a.blocks(number + 1)


def _shape(m: int, other: int, contraction: Contraction, outputs: int) -> tuple[int, ...]:
    if contraction == "full":
        return m, other
    samples = m // max(outputs, 1), other // max(outputs, 1)
    return samples if contraction == "trace" else (*samples, outputs)
