"""Operators made from others (L3): rows weighted or chosen, columns scaled or chosen, sums.

Each is a :class:`Source` around another one. It says what becomes of a block, and of a product: a product of the
whole is one of the part, with something done before or after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._tree import LeafType
from jacfn.operator.block import Block, held_bytes
from jacfn.operator.columns import by_leaf, side_by_side
from jacfn.operator.passes import dense_leaf
from jacfn.operator.source import Columns, Held, Source
from jacfn.quasilinear.factors import Leaf


class Change(Source):
    """A source made from ``base`` block by block."""

    def __init__(self, base: Source, count: int | None = None, kinds: Sequence[LeafType] | None = None) -> None:
        super().__init__(base.count if count is None else count, base.kinds if kinds is None else kinds, base.room)
        self.base = base
        self.matrix_free = base.matrix_free

    def block(self, block: Block) -> Block | None:
        """What becomes of a block of the base; None where nothing is left of it."""
        raise NotImplementedError

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """Changed, one after the other: so few rows at once that what is made of them fits into the room."""
        changed = (self.block(piece) for block in self.base.blocks() for piece in _small(block, self.room))
        for number, block in enumerate(block for block in changed if block is not None):
            if number >= skip:
                yield block

    @property
    def held(self) -> int:
        """By the base."""
        return self.base.held


def _small(block: Block, room: int) -> Iterator[Block]:
    """Pieces of a block that hold a quarter of the room each, or one sample."""
    held = held_bytes([block])
    n, r = block.grid
    most = max(block.size * room // max(4 * held, 1), r if n > 1 else block.size)
    return block.pieces(most)


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
        super().__init__(base)
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
        super().__init__(base, count=len(places))
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
    """The columns of the leaves ``kept``."""

    def __init__(self, base: Source, kept: Sequence[int]) -> None:
        super().__init__(base, kinds=[base.kinds[i] for i in kept])
        self._kept = kept

    def block(self, block: Block) -> Block:
        """Without the other leaves."""
        return block.over([block.leaves[i] for i in self._kept])

    def mv(self, stacks: Columns) -> Tensor:
        """Zeros for the other leaves, where the base needs no blocks."""
        if not self.matrix_free:
            return super().mv(stacks)
        lead = stacks[0].shape[0]
        whole = [torch.zeros(lead, *kind.shape, dtype=kind.dtype, device=kind.device) for kind in self.base.kinds]
        for i, stack in zip(self._kept, stacks, strict=True):
            whole[i] = stack
        return self.base.mv(whole)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """Those of the kept leaves."""
        if not self.matrix_free:
            return super().rmv(cotangents)
        whole = by_leaf(self.base.rmv(cotangents), self.base.kinds)
        return side_by_side([whole[i] for i in self._kept])


class ByColumns(Change):
    """Something done to the columns: ``dense`` to rows ``(..., *leaf)``, ``spread`` to vectors before ``J v``."""

    def __init__(
        self,
        base: Source,
        kinds: Sequence[LeafType],
        dense: Callable[[int, Tensor], Tensor],
        spread: Callable[[int, Tensor], Tensor],
    ) -> None:
        super().__init__(base, kinds=kinds)
        self._dense, self._spread = dense, spread

    def block(self, block: Block) -> Block:
        """Rows written out, leaf by leaf."""
        return block.over([self._leaf(i, leaf) for i, leaf in enumerate(block.leaves)])

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """In pieces whose rows fit into the room."""
        width = sum(kind.size * kind.dtype.itemsize for kind in self.base.kinds)
        pieces = (piece for block in self.base.blocks() for piece in block.pieces(self.room // max(4 * width, 1)))
        for number, piece in enumerate(pieces):
            if number >= skip:
                yield self.block(piece)

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

    return ByColumns(base, base.kinds, scale, scale)


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

    return ByColumns(base, kinds, chosen, spread)


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
        super().__init__(a.count, a.kinds, a.room)
        self._a, self._b = a, b
        self.matrix_free = a.matrix_free or b.matrix_free

    @property
    def held(self) -> int:
        """By both."""
        return self._a.held + self._b.held

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """Where both come in the same blocks, one by one; else the rows of each block of the one are sought."""
        for number, block in enumerate(self._a.blocks(skip), start=skip):
            other = next(self._b.blocks(number), None)
            if other is None or other.grid != block.grid or not _same_rows(other, block):
                block, other = self._sought(block)
            leaves = [mine.plus(its) for mine, its in zip(block.leaves, other.leaves, strict=True)]
            yield block.over(leaves)

    def _sought(self, block: Block) -> tuple[Block, Block]:
        """Both as rows of their own, in the order of the first."""
        places = block.places(self.kinds[0].device)
        found = list(Restricted(self._b, places).blocks())
        order = torch.cat([part.places(places.device) for part in found]).argsort()
        leaves = []
        for parts in zip(*(part.leaves for part in found), strict=True):
            rows = torch.cat([part.dense() for part in parts])[order]
            leaves.append(dense_leaf(rows.reshape(*block.grid, *rows.shape[2:])))
        return block, block.over(leaves)

    def mv(self, stacks: Columns) -> Tensor:
        """One after the other."""
        return self._a.mv(stacks) + self._b.mv(stacks)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """One after the other."""
        return self._a.rmv(cotangents) + self._b.rmv(cotangents)


def _same_rows(a: Block, b: Block) -> bool:
    if isinstance(a.rows, Tensor) or isinstance(b.rows, Tensor):
        return isinstance(a.rows, Tensor) and isinstance(b.rows, Tensor) and torch.equal(a.rows, b.rows)
    return a.rows == b.rows
