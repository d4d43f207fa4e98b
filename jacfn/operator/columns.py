"""Sums over blocks of something for every column (L3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from jacfn._torch import inside_transform
from jacfn._tree import LeafType


class ColumnSums:
    """``(lead, P)``: what blocks give for each leaf, added up in its columns.

    What carries derivatives is added out of place, leaf by leaf.
    """

    def __init__(self, kinds: Sequence[LeafType], lead: int) -> None:
        self._kinds, self._lead = kinds, lead
        self._bounds = list(pairwise(accumulate((kind.size for kind in kinds), initial=0)))
        self._out: Tensor | None = None
        self._recorded: dict[int, Tensor] = {}

    def add(self, parts: Iterable[Tensor]) -> None:
        """``(lead, *leaf)`` for one leaf after the other."""
        for leaf, part in enumerate(parts):
            part = part.reshape(self._lead, self._kinds[leaf].size)
            if not inside_transform() and not part.requires_grad:
                self._slot(leaf).add_(part)
            elif leaf in self._recorded:
                self._recorded[leaf] = self._recorded[leaf] + part
            else:
                self._recorded[leaf] = part

    def result(self) -> Tensor:
        """All columns."""
        if not self._recorded:
            return self._whole()
        leaves = []
        for leaf, kind in enumerate(self._kinds):
            recorded = self._recorded.get(leaf)
            if self._out is not None:
                recorded = self._slot(leaf) if recorded is None else recorded + self._slot(leaf)
            elif recorded is None:
                recorded = torch.zeros(self._lead, kind.size, dtype=kind.dtype, device=kind.device)
            leaves.append(recorded)
        return torch.cat(leaves, 1)

    def _slot(self, leaf: int) -> Tensor:
        low, high = self._bounds[leaf]
        return self._whole()[:, low:high]

    def _whole(self) -> Tensor:
        if self._out is None:
            width = self._bounds[-1][1] if self._bounds else 0
            like = self._kinds[0]
            self._out = torch.zeros(self._lead, width, dtype=like.dtype, device=like.device)
        return self._out


def by_leaf(flat: Tensor, kinds: Sequence[LeafType]) -> list[Tensor]:
    """``(S, *leaf)`` for each leaf, views of ``(S, P)``."""
    parts = torch.split(flat, [kind.size for kind in kinds], 1)
    return [part.view(len(flat), *kind.shape) for part, kind in zip(parts, kinds, strict=True)]


def side_by_side(stacks: Sequence[Tensor]) -> Tensor:
    """``(S, P)`` from ``(S, *leaf)`` for each leaf."""
    return torch.cat([stack.reshape(len(stack), stack.shape[1:].numel()) for stack in stacks], 1)
