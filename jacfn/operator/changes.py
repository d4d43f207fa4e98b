"""Operators made from others (L3): rows weighted or chosen, columns scaled or chosen, sums.

Each is a :class:`Source` around another one. It says what becomes of a block, and of a product: a product of the
whole is one of the part, with something done before or after.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._tree import LeafType
from jacfn.operator.block import Block, memory_of, row_bytes, rows_within
from jacfn.operator.columns import by_leaf, side_by_side
from jacfn.operator.passes import dense_leaf
from jacfn.operator.source import Columns, Held, Source
from jacfn.quasilinear.factors import Leaf


class Change(Source):
    """A source made from ``base`` block by block; ``kept`` are the tensors that it takes to make it."""

    def __init__(
        self,
        base: Source,
        count: int | None = None,
        kinds: Sequence[LeafType] | None = None,
        kept: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(base.count if count is None else count, base.kinds if kinds is None else kinds, base.room)
        self.base = base
        self.matrix_free = base.matrix_free
        self._kept = kept
        self._ends: list[int] = []  # how many blocks there are up to the end of each block of the base, once known

    def block(self, block: Block) -> Block | None:
        """What becomes of a block of the base; None where nothing is left of it."""
        raise NotImplementedError

    def pieces(self, block: Block) -> Iterator[Block]:
        """A block of the base in so few rows at once that what is made of them fits into the room."""
        return block.pieces(rows_within(block, self.room))

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """Changed, one after the other, from the block of the base on in which number ``skip`` lies."""
        first = bisect_right(self._ends, skip)
        number = self._ends[first - 1] if first else 0
        for place, block in enumerate(self.base.blocks(first), start=first):
            for piece in self.pieces(block):
                changed = self.block(piece)
                if changed is None:
                    continue
                if number >= skip:
                    yield changed
                number += 1
            if place == len(self._ends):
                self._ends.append(number)

    def memory(self) -> set[torch.UntypedStorage]:
        """That of the base, and what the change needs."""
        return self.base.memory() | memory_of(self._kept)


def settled(change: Change) -> Source:
    """The same with its blocks held, where the base holds its own and they are small; else made at each use."""
    base = change.base
    if not isinstance(base, Held) or 2 * base.held > base.room:
        return change
    return Held(list(change.blocks()), change.count, change.kinds, change.room, base.given)


class Scaled(Change):
    """``c J``."""

    def __init__(self, base: Source, factor: float | Tensor) -> None:
        super().__init__(base)
        self._factor = factor

    def block(self, block: Block) -> Block:
        """Every leaf scaled."""
        return block.over([leaf.scaled(self._factor) for leaf in block.leaves])

    def mv(self, stacks: Columns) -> Tensor:
        """Afterwards."""
        return self.base.mv(stacks) * self._factor

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Before."""
        return self.base.rmv(cotangents * self._factor)


class Weighted(Change):
    """``w J`` with a weight ``(M,)`` for each row, or a matrix ``(N, K, K)`` for the rows of each sample."""

    def __init__(self, base: Source, weights: Tensor) -> None:
        super().__init__(base, kept=[weights])
        self._weights = weights

    def block(self, block: Block) -> Block:
        """Rows weighted, or mixed."""
        if self._weights.ndim == 1:
            weights = self._weights[block.rows].view(block.grid)
            return block.over([leaf.weighted(weights) for leaf in block.leaves])
        k = self._weights.shape[1]
        if block.grid[1] != k or isinstance(block.rows, Tensor):
            raise JacfnError(
                f"weights (N, {k}, {k}) mix all rows of a sample, but this operator has only some of them at a time: "
                "weight before restricting rows, or let all rows of a sample be evaluated at once (a chunk_size of at "
                "least as many, or more memory)"
            )
        first = block.rows.start // k
        mixing = self._weights[first : first + block.grid[0]]
        return block.over([leaf.mixed(mixing) for leaf in block.leaves])

    def mv(self, stacks: Columns) -> Tensor:
        """Afterwards."""
        return apply_weights(self._weights, self.base.mv(stacks))

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Before."""
        return self.base.rmv(apply_weights(self._weights.mT if self._weights.ndim == 3 else self._weights, cotangents))


def apply_weights(weights: Tensor, stack: Tensor) -> Tensor:
    """``W u`` for ``u (M, S)`` with weights ``(M,)`` or ``(N, K, K)``."""
    if weights.ndim == 1:
        return weights.unsqueeze(1) * stack
    n, k, _ = weights.shape
    mixed: Tensor = weights @ stack.reshape(n, k, stack.shape[1])
    return mixed.flatten(0, 1)


class Restricted(Change):
    """The rows at ``places``, in this order."""

    def __init__(self, base: Source, places: Tensor) -> None:
        super().__init__(base, count=len(places), kept=[places])
        self._places = places

    def block(self, block: Block) -> Block | None:
        """The chosen rows of a block, each as if of a sample of its own."""
        inside = torch.full((self.base.count,), -1, device=self._places.device)
        inside[block.rows] = torch.arange(block.size, device=inside.device)
        local = inside[self._places]
        (kept,) = (local >= 0).nonzero(as_tuple=True)
        if not len(kept):
            return None
        local = local[kept]
        samples, rows = local // block.grid[1], local % block.grid[1]
        return Block(kept, (len(kept), 1), tuple(leaf.pick(samples, rows) for leaf in block.leaves))

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """Those with chosen rows; an empty one where there are none at all."""
        if len(self._places):
            yield from super().blocks(skip)
        elif not skip:
            for block in self.base.blocks():
                none = block.part(slice(0, 0), slice(0, block.grid[1]))
                yield dataclasses.replace(none, rows=slice(0, 0))
                return

    def mv(self, stacks: Columns) -> Tensor:
        """Chosen afterwards, where the base needs no blocks."""
        return self.base.mv(stacks)[self._places] if self.matrix_free else super().mv(stacks)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Zeros for the other rows, where the base needs no blocks."""
        if not self.matrix_free:
            return super().rmv(cotangents)
        whole = cotangents.new_zeros(self.base.count, cotangents.shape[1])
        return self.base.rmv(whole.index_add(0, self._places, cotangents))


class SomeLeaves(Change):
    """The columns of the leaves ``chosen``."""

    def __init__(self, base: Source, chosen: Sequence[int]) -> None:
        super().__init__(base, kinds=[base.kinds[i] for i in chosen])
        self._chosen = chosen

    def block(self, block: Block) -> Block:
        """Without the other leaves."""
        return block.over([block.leaves[i] for i in self._chosen])

    def mv(self, stacks: Columns) -> Tensor:
        """Zeros for the other leaves, where the base needs no blocks."""
        if not self.matrix_free:
            return super().mv(stacks)
        lead = stacks[0].shape[0]
        whole = [torch.zeros(lead, *kind.shape, dtype=kind.dtype, device=kind.device) for kind in self.base.kinds]
        for i, stack in zip(self._chosen, stacks, strict=True):
            whole[i] = stack
        return self.base.mv(whole)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Those of the chosen leaves."""
        if not self.matrix_free:
            return super().rmv(cotangents)
        whole = by_leaf(self.base.rmv(cotangents), self.base.kinds)
        return side_by_side([whole[i] for i in self._chosen])


class ByColumns(Change):
    """``J C``: ``dense`` takes rows ``(..., *leaf)`` to the new columns, ``spread`` vectors back, before ``J v``.

    ``kept`` are weights or masks of the base's columns.
    """

    def __init__(
        self,
        base: Source,
        kinds: Sequence[LeafType],
        dense: Callable[[int, Tensor], Tensor],
        spread: Callable[[int, Tensor], Tensor],
        kept: Sequence[Tensor],
    ) -> None:
        super().__init__(base, kinds=kinds, kept=kept)
        self._dense, self._spread = dense, spread

    @property
    def squares(self) -> list[Tensor]:
        """The diagonal ``C Cᵀ``, in pieces of the base's leaves."""
        return [x.square() if x.is_floating_point() else x.to(self.kinds[0].dtype) for x in self._kept]

    def block(self, block: Block) -> Block:
        """Rows written out, leaf by leaf."""
        return block.over([self._leaf(i, leaf) for i, leaf in enumerate(block.leaves)])

    def pieces(self, block: Block) -> Iterator[Block]:
        """Those whose rows fit into the room."""
        return block.pieces(self.room // max(4 * row_bytes(self.base.kinds), 1))

    def _leaf(self, number: int, leaf: Leaf) -> Leaf:
        return dense_leaf(self._dense(number, leaf.dense()))

    def mv(self, stacks: Columns) -> Tensor:
        """Before."""
        return self.base.mv([self._spread(i, stack) for i, stack in enumerate(stacks)])

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Afterwards."""
        whole = by_leaf(self.base.rmv(cotangents), self.base.kinds)
        return side_by_side([self._dense(i, stack) for i, stack in enumerate(whole)])


def column_weighted(base: Source, weights: Sequence[Tensor]) -> Source:
    """``J diag(d)``, ``d`` in pieces of the leaves' shapes."""

    def scale(number: int, rows: Tensor) -> Tensor:
        return rows * weights[number]

    return ByColumns(base, base.kinds, scale, scale, weights)


def masked(base: Source, masks: Sequence[Tensor]) -> Source:
    """The columns where the masks are True; the leaves have one axis then."""
    kinds = [kind._replace(shape=(int(mask.sum()),)) for kind, mask in zip(base.kinds, masks, strict=True)]

    def chosen(number: int, rows: Tensor) -> Tensor:
        return rows[..., masks[number]]

    def spread(number: int, stack: Tensor) -> Tensor:
        kind = base.kinds[number]
        (places,) = masks[number].reshape(-1).nonzero(as_tuple=True)
        whole = stack.new_zeros(len(stack), kind.size).index_add(1, places, stack)
        return whole.reshape(len(stack), *kind.shape)

    return ByColumns(base, kinds, chosen, spread, masks)


class Converted(Change):
    """In another dtype, on another device, or without derivatives: ``convert`` applied to every tensor."""

    def __init__(self, base: Source, kinds: Sequence[LeafType], convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__(base, kinds=kinds)
        self._convert = convert

    def block(self, block: Block) -> Block:
        """Every tensor converted."""
        rows = block.rows.to(self.kinds[0].device) if isinstance(block.rows, Tensor) else block.rows
        leaves = tuple(leaf.map(self._convert) for leaf in block.leaves)
        return dataclasses.replace(block, rows=rows, leaves=leaves)

    def mv(self, stacks: Columns) -> Tensor:
        """Converted there and back, where the base needs no blocks."""
        if not self.matrix_free:
            return super().mv(stacks)
        there = [stack.to(kind.device, kind.dtype) for stack, kind in zip(stacks, self.base.kinds, strict=True)]
        return self._convert(self.base.mv(there))

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Converted there and back, where the base needs no blocks."""
        if not self.matrix_free:
            return super().rmv(cotangents)
        kind = self.base.kinds[0]
        return self._convert(self.base.rmv(cotangents.to(kind.device, kind.dtype)))


class Sum(Source):
    """``A + B`` for operators with the same rows and columns."""

    def __init__(self, a: Source, b: Source) -> None:
        super().__init__(a.count, a.kinds, min(a.room, b.room) // 2)  # blocks of both are there at once
        self._a, self._b = a, b
        self.matrix_free = a.matrix_free or b.matrix_free
        self._starts = {(0, 0, 0)}  # numbers of blocks of the sum, of a and of b that begin at the same row

    def memory(self) -> set[torch.UntypedStorage]:
        """That of both."""
        return self._a.memory() | self._b.memory()

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """Both are cut where either ends; what cannot be cut alike is sought, a few rows at a time."""
        number, i, j = max(start for start in self._starts if start[0] <= skip)
        first, second = self._a.blocks(i), self._b.blocks(j)
        mine: Block | None = None
        its: Block | None = None
        while True:
            if mine is None and its is None:
                self._starts.add((number, i, j))
            if mine is None:
                mine, i = next(first, None), i + 1
            if its is None:
                its, j = next(second, None), j + 1
            samples = _common(mine, its)
            if mine is None or its is None or samples is None:
                break
            samples = min(samples, max(rows_within(mine, 2 * self.room) // max(mine.grid[1], 1), 1))
            x, mine = _cut(mine, samples)
            y, its = _cut(its, samples)
            if number >= skip:
                yield _added(x, y)
            number += 1
        for block in first if mine is None else chain([mine], first):
            for piece in block.pieces(max(self.room // max(4 * row_bytes(self.kinds), 1), block.grid[1])):
                if number >= skip:
                    yield _added(piece, self._sought(piece))
                number += 1

    def _sought(self, block: Block) -> Block:
        """The same rows of the other, dense."""
        places = block.places(self.kinds[0].device)
        found = list(Restricted(self._b, places).blocks())
        order = torch.cat([part.places(places.device) for part in found]).argsort()
        leaves = []
        for parts in zip(*(part.leaves for part in found), strict=True):
            rows = torch.cat([part.dense() for part in parts])[order]
            leaves.append(dense_leaf(rows.reshape(*block.grid, *rows.shape[2:])))
        return block.over(leaves)

    def mv(self, stacks: Columns) -> Tensor:
        """One after the other."""
        return self._a.mv(stacks) + self._b.mv(stacks)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """One after the other."""
        return self._a.rmv(cotangents) + self._b.rmv(cotangents)


def _common(a: Block | None, b: Block | None) -> int | None:
    """With how many samples both have the same rows; None where they begin at others, or have others of a sample."""
    if a is None or b is None or a.grid[1] != b.grid[1]:
        return None
    samples = min(a.grid[0], b.grid[0])
    size = samples * a.grid[1]
    if isinstance(a.rows, Tensor) and isinstance(b.rows, Tensor):
        return samples if torch.equal(a.rows[:size], b.rows[:size]) else None
    if isinstance(a.rows, Tensor) or isinstance(b.rows, Tensor):
        return None
    return samples if a.rows.start == b.rows.start else None


def _cut(block: Block, samples: int) -> tuple[Block, Block | None]:
    """So many samples, and the rest."""
    n, r = block.grid
    if samples >= n:
        return block, None
    return block.part(slice(0, samples), slice(0, r)), block.part(slice(samples, n), slice(0, r))


def _added(a: Block, b: Block) -> Block:
    return a.over([mine.plus(its) for mine, its in zip(a.leaves, b.leaves, strict=True)])
