"""Where an operator's rows come from (L3): factors that are held, or passes made anew for each use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Tracking
from jacfn._products import Linearisation, push
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.operator.block import Block, in_order, memory_of, tensors_of
from jacfn.operator.columns import ColumnSums
from jacfn.operator.given import Given

Columns = list[Tensor]  # a stack (S, *leaf) for each leaf


class Source:
    """Rows of a Jacobian in blocks.

    Attributes:
        count: the number of rows.
        kinds: what each leaf of the columns looks like.
        room: bytes that a contraction may take for its temporaries.
        matrix_free: products are cheaper without blocks.
    """

    matrix_free = False

    def __init__(self, count: int, kinds: Sequence[LeafType], room: int) -> None:
        self.count, self.kinds, self.room = count, tuple(kinds), room

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """The blocks, without the first ``skip``."""
        raise NotImplementedError

    def memory(self) -> set[torch.UntypedStorage]:
        """What is held between uses, without what the caller gave."""
        return set()

    @property
    def held(self) -> int:
        """Its bytes."""
        return sum(storage.nbytes() for storage in self.memory())

    def mv(self, stacks: Columns) -> Tensor:
        """``J v``, ``(M, S)``."""
        rows, parts = [], []
        for block in self.blocks():
            rows.append(block.rows)
            parts.append(block.mv(stacks, self.room))
        return in_order(rows, parts)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """``Jᵀ u``, ``(S, P)``, for ``(M, S)``."""
        sums = ColumnSums(self.kinds, cotangents.shape[1])
        for block in self.blocks():
            sums.add(block.rmv(cotangents[block.rows], self.room))
        return sums.result()


class Held(Source):
    """Blocks that were made once and are kept; they may have views of what was ``given``."""

    def __init__(
        self,
        blocks: Sequence[Block],
        count: int,
        kinds: Sequence[LeafType],
        room: int,
        given: Given,
    ) -> None:
        super().__init__(count, kinds, room)
        self._blocks, self.given = list(blocks), given

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """As they are."""
        self._watched.check()
        return iter(self._blocks[skip:])

    @functools.cached_property
    def _watched(self) -> Given:
        """What factors are views of: other tensors may change."""
        return self.given.sharing(memory_of(tensors_of(self._blocks)))

    def memory(self) -> set[torch.UntypedStorage]:
        """Of the factors."""
        return memory_of(tensors_of(self._blocks)) - memory_of(self.given.arguments)


class Streamed(Source):
    """Blocks that are made anew at each use, from what was ``given``; ``make(skip)`` makes them."""

    def __init__(
        self,
        make: Callable[[int], Iterator[Block]],
        count: int,
        kinds: Sequence[LeafType],
        room: int,
        given: Given,
    ) -> None:
        super().__init__(count, kinds, room)
        self._make, self._given = make, given

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """By passes through fn."""
        self._given.check()
        return self._make(skip)


class Products(Streamed):
    """The same, with products by jvp and vjp, a block of samples at a time."""

    matrix_free = True

    def __init__(
        self,
        bound: Bound,
        samples: int | None,
        tracking: Tracking,
        make: Callable[[int], Iterator[Block]],
        count: int,
        room: int,
        given: Given,
    ) -> None:
        super().__init__(make, count, bound.leaf_types, room, given)
        self._bound, self._samples, self._tracking = bound, samples, tracking

    def mv(self, stacks: Columns) -> Tensor:
        """One forward-mode pass a vector."""
        if not len(stacks[0]):
            return torch.zeros(self.count, 0, dtype=self.kinds[0].dtype, device=self.kinds[0].device)
        parts = []
        for block in self._parts():
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._tracking != "off"):
                out, _, _ = push(self._call(block), block.leaves, stacks, "error")
            lead = 1 if block.samples is None else block.samples
            first = 1 if block.samples is None else 2
            flat = [leaf.reshape(len(leaf), lead, math.prod(leaf.shape[first:])) for leaf in out]
            parts.append(torch.cat(flat, -1).flatten(1).T)  # (rows, S)
        return torch.cat(parts)

    def rmv(self, cotangents: Tensor) -> Tensor:
        """One pass, then one reverse-mode pass a vector."""
        sums, low = ColumnSums(self.kinds, cotangents.shape[1]), 0
        if not cotangents.shape[1]:
            return sums.result()
        asked = torch.is_grad_enabled() and (cotangents.requires_grad or inside_transform())
        tracking: Tracking = "on" if asked and self._tracking != "off" else self._tracking
        for block in self._parts():
            call = self._call(block)
            linear = Linearisation(lambda *leaves, call=call: call(leaves), block.leaves, "error", tracking)
            lead, samples = (0, 1) if block.samples is None else (1, block.samples)
            sizes = [math.prod(leaf.shape[lead:]) for leaf in linear.value]
            high = low + samples * sum(sizes)
            stack = cotangents[low:high].T.reshape(cotangents.shape[1], samples, sum(sizes))
            pieces = [
                piece.reshape(len(stack), *leaf.shape)
                for piece, leaf in zip(torch.split(stack, sizes, -1), linear.value, strict=True)
            ]
            sums.add(linear.pull(pieces))
            low = high
        return sums.result()

    @staticmethod
    def _call(block: Bound) -> Callable[[Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]]:
        """Fn on all samples of the block, as a function of the leaves: its outputs and aux."""
        call = block.vmapped(block.call, "error")
        return lambda leaves: call(list(leaves), block.data)

    def _parts(self) -> Iterator[Bound]:
        self._given.check()
        if self._bound.samples is None:
            yield self._bound
            return
        step = self._samples or 1
        for start in range(0, max(self._bound.samples, 1), step):
            yield self._bound.block(start, min(step, self._bound.samples - start))
