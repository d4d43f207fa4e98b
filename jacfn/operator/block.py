"""Some rows of a Jacobian, leaf by leaf (L3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from jacfn._memory import empty
from jacfn._torch import base_tensor
from jacfn._tree import LeafType
from jacfn.quasilinear.factors import Leaf

Rows = slice | Tensor  # places among the rows of an operator: a range, or a LongTensor


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of a Jacobian: ``grid = (N, R)``, the same R rows of each of N samples, samples outermost."""

    rows: Rows
    grid: tuple[int, int]
    leaves: tuple[Leaf, ...]

    @property
    def size(self) -> int:
        """How many rows."""
        return self.grid[0] * self.grid[1]

    @property
    def in_place(self) -> bool:
        """Whether results may be written into memory: not so where they carry derivatives."""
        return all(leaf.in_place for leaf in self.leaves)

    def places(self, device: torch.device) -> Tensor:
        """The rows as a LongTensor."""
        return as_places(self.rows, device)

    def mv(self, stacks: Sequence[Tensor], room: int) -> Tensor:
        """``J v``, ``(rows, S)``, for a stack ``(S, *leaf)`` for each leaf."""
        terms = [leaf.mv(stack, room) for leaf, stack in zip(self.leaves, stacks, strict=True)]
        return sum(terms[1:], terms[0]).flatten(0, 1)

    def rmv(self, cotangents: Tensor, room: int) -> Iterator[Tensor]:
        """``Jᵀ u``, ``(S, *leaf)`` for one leaf after the other, for ``(rows, S)``."""
        cotangents = cotangents.reshape(*self.grid, cotangents.shape[1])
        return (leaf.rmv(cotangents, room) for leaf in self.leaves)

    def dense(self) -> Tensor:
        """``(rows, P)`` in new memory."""
        return torch.cat([leaf.dense().reshape(self.size, leaf.size) for leaf in self.leaves], 1)

    def materialized(self, room: int) -> Tensor:
        """The same, written once into memory for large results where it carries no derivatives."""
        if not self.in_place:
            return self.dense()
        like = self.leaves[0]
        out = empty(LeafType((self.size, sum(leaf.size for leaf in self.leaves)), like.dtype, like.device))
        self.write(out, room)
        return out

    def write(self, out: Tensor, room: int) -> None:
        """The same into ``out``, every element once, with temporaries of ``room`` bytes."""
        low = 0
        for leaf in self.leaves:
            high = low + leaf.size
            leaf.write(out[:, low:high].view(leaf.shape), room)
            low = high

    def part(self, samples: slice, rows: slice) -> Block:
        """These rows of these samples, as views; ``rows`` are all but where there is one sample."""
        first, r = samples.start * self.grid[1] + rows.start, rows.stop - rows.start
        n = samples.stop - samples.start
        inside = slice(first, first + n * r)
        if isinstance(self.rows, Tensor):
            places: Rows = self.rows[inside]
        else:
            places = slice(self.rows.start + inside.start, self.rows.start + inside.stop)
        return Block(places, (n, r), tuple(leaf.part(samples, rows) for leaf in self.leaves))

    def pieces(self, most: int) -> Iterator[Block]:
        """The block in pieces of at most ``most`` rows (at least one): whole samples where they fit."""
        n, r = self.grid
        if self.size <= max(most, 1):
            yield self
        elif most >= r:
            for low in range(0, n, most // r):
                yield self.part(slice(low, min(low + most // r, n)), slice(0, r))
        else:
            for sample in range(n):
                for low in range(0, r, max(most, 1)):
                    yield self.part(slice(sample, sample + 1), slice(low, min(low + max(most, 1), r)))

    def over(self, leaves: Sequence[Leaf]) -> Block:
        """The same rows over other columns."""
        return dataclasses.replace(self, leaves=tuple(leaves))


def held_bytes(blocks: Sequence[Block], given: Sequence[Tensor] = ()) -> int:
    """Of all tensors that the blocks hold, shared ones once, without those that are views of what was given."""
    return sum(storage.nbytes() for storage in memory_of(tensors_of(blocks)) - memory_of(given))


def tensors_of(blocks: Sequence[Block]) -> Iterator[Tensor]:
    """All that they hold."""
    return (x for block in blocks for leaf in block.leaves for x in leaf.tensors())


def memory_of(tensors: Iterable[Tensor]) -> set[torch.UntypedStorage]:
    """Views of the same memory count once."""
    return {base_tensor(x).untyped_storage() for x in tensors}


def rows_within(block: Block, room: int) -> int:
    """How many of its rows hold a quarter of the room; those of one sample at least."""
    n, r = block.grid
    return max(block.size * room // max(4 * held_bytes([block]), 1), r if n > 1 else block.size)


def row_bytes(kinds: Sequence[LeafType]) -> int:
    """Of one dense row."""
    return sum(kind.size * kind.dtype.itemsize for kind in kinds)


def in_order(places: Sequence[Rows], parts: Sequence[Tensor]) -> Tensor:
    """What blocks gave for their rows, in the order of the rows."""
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if not any(isinstance(rows, Tensor) for rows in places):
        return whole  # ranges come one after the other
    return whole[torch.cat([as_places(rows, whole.device) for rows in places]).argsort()]


def as_places(rows: Rows, device: torch.device) -> Tensor:
    """As a LongTensor."""
    return rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop, device=device)
