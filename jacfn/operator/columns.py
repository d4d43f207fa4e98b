"""Sums over blocks of something for every column (L3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from jacfn._torch import inside_transform
from jacfn._tree import LeafType


class ColumnSums:
    """``(lead, P)``: what blocks give for each leaf, added up in its columns.

    What carries derivatives is added out of place.
    """

    def __init__(self, kinds: Sequence[LeafType], lead: int) -> None:
        self._sizes = [kind.size for kind in kinds]
        self._like, self._lead = kinds[0], lead
        self._total: Tensor | None = None

    def add(self, parts: Iterable[Tensor]) -> None:
        """``(lead, *leaf)`` for one leaf after the other."""
        flat = (part.reshape(self._lead, size) for part, size in zip(parts, self._sizes, strict=True))
        if self._total is None:
            self._total = torch.cat(list(flat), 1)
            return
        low = 0
        recorded: list[Tensor] = []
        for part, size in zip(flat, self._sizes, strict=True):
            if recorded or self._total.requires_grad or part.requires_grad or inside_transform():
                recorded.append(torch.nn.functional.pad(part, (low, sum(self._sizes) - low - size)))
            else:
                self._total[:, low : low + size] += part
            low += size
        for part in recorded:
            self._total = self._total + part

    def result(self) -> Tensor:
        """All columns."""
        if self._total is not None:
            return self._total
        return torch.zeros(self._lead, sum(self._sizes), dtype=self._like.dtype, device=self._like.device)


def by_leaf(flat: Tensor, kinds: Sequence[LeafType]) -> list[Tensor]:
    """``(S, *leaf)`` for each leaf, views of ``(S, P)``."""
    parts = torch.split(flat, [kind.size for kind in kinds], 1)
    return [part.view(len(flat), *kind.shape) for part, kind in zip(parts, kinds, strict=True)]


def side_by_side(stacks: Sequence[Tensor]) -> Tensor:
    """``(S, P)`` from ``(S, *leaf)`` for each leaf."""
    return torch.cat([stack.reshape(len(stack), stack.shape[1:].numel()) for stack in stacks], 1)


def root(squares: Tensor) -> Tensor:
    """With derivative 0 at 0, as norms have it; sums that cancel may come out below it."""
    zero = squares <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
