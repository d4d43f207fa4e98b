"""Which rows or columns of a Jacobian are asked for, and their one-hot basis (L0).

One side of a Jacobian (its outputs or its inputs) is a list of leaves that are raveled one behind the other. A
:class:`Side` says which of these places are wanted, in which order, and into which leaves the result falls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import optree
import torch
from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._tree import LeafType

Places = npt.NDArray[np.int64]  # in NumPy: places are read, which tensors under a transform cannot be
Selection = Any  # None, an int, a slice, a 1-D integer tensor, or a pytree of these


@dataclasses.dataclass(frozen=True)
class Side:
    """The wanted places of one side. ``index`` is None when every place is wanted in its own order."""

    leaves: tuple[LeafType, ...]
    index: Places | None  # (total,): places in the raveled side
    shapes: tuple[tuple[int, ...], ...]  # of the result's leaves on this side
    spec: optree.PyTreeSpec | None  # of the result on this side; None: one axis, no structure

    @property
    def total(self) -> int:
        """The number of wanted places: rows (columns) of the result."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The range of wanted places that falls into each leaf of the result."""
        return list(pairwise(accumulate((math.prod(shape) for shape in self.shapes), initial=0)))

    def chunks(self, size: int | None) -> list[tuple[int, int]]:
        """The wanted places in ranges of at most ``size``; none where nothing is wanted."""
        size = self.total if size is None else size
        return [(start, min(start + size, self.total)) for start in range(0, self.total, max(size, 1))]

    def probes(self, size: int | None) -> list[tuple[int, int]]:
        """A few of the chunks, among them the dearest in memory: the first two, the last, the largest leaf's first."""
        ranges = self.chunks(size)
        if len(ranges) <= 4:
            return ranges
        length = ranges[0][1]
        offsets = list(accumulate((leaf.size for leaf in self.leaves), initial=0))
        largest = max(range(len(self.leaves)), key=lambda i: self.leaves[i].size)
        place = offsets[largest] if self.index is None else 0
        last = len(ranges) - 1
        picked = {0, 1, min(place // length, last), min(place // length + 1, last), last}
        return [ranges[i] for i in sorted(picked)]

    def basis(self, start: int, stop: int) -> list[Tensor | None]:
        """One-hot stacks ``(stop - start, *leaf)`` for a range of places; None for a leaf with none of them."""
        offsets = pairwise(accumulate((leaf.size for leaf in self.leaves), initial=0))
        if self.index is None:
            return [
                _one_hot_range(leaf, start, stop, low, high)
                for leaf, (low, high) in zip(self.leaves, offsets, strict=True)
            ]
        wanted = self.index[start:stop]
        return [_one_hot(leaf, wanted, low, high) for leaf, (low, high) in zip(self.leaves, offsets, strict=True)]

    def split(self, start: int, stop: int) -> list[tuple[int, slice, slice]]:
        """Where a range of places falls: (result leaf, its part of the range, its places within the leaf)."""
        parts = []
        for leaf, (low, high) in enumerate(self.bounds):
            first, last = max(start, low), min(stop, high)
            if first < last:
                parts.append((leaf, slice(first - start, last - start), slice(first - low, last - low)))
        return parts


@dataclasses.dataclass(frozen=True)
class Given(Side):
    """A stack of vectors given by the caller in the place of the one-hot basis: ``stacks[i]`` is ``(S, *leaf)``."""

    stacks: tuple[Tensor, ...] = ()

    def basis(self, start: int, stop: int) -> list[Tensor | None]:
        """The vectors from ``start`` to ``stop``."""
        return [stack[start:stop] for stack in self.stacks]


def select(leaves: Sequence[LeafType], spec: optree.PyTreeSpec, wanted: Selection, name: str) -> Side:
    """The side with these leaves, restricted to ``wanted``; ``name`` ("rows", "columns") is for errors."""
    leaves = tuple(leaves)
    if wanted is None:
        return Side(leaves, None, tuple(leaf.shape for leaf in leaves), spec)
    if _is_selector(wanted):
        places = _resolve(wanted, sum(leaf.size for leaf in leaves), name)
        return Side(leaves, places, ((len(places),),), None)
    offset, parts = 0, []
    wanted_leaves = _tree.flatten_like(spec, wanted, name)
    for leaf, part, path in zip(leaves, wanted_leaves, _tree.leaf_names(spec), strict=True):
        parts.append(_resolve(part, leaf.size, name + path) + offset)
        offset += leaf.size
    return Side(leaves, np.concatenate(parts), tuple((len(part),) for part in parts), spec)


def frozen(wanted: Selection) -> Selection:
    """The selection with tensors of places as arrays, which can be read inside transforms and on fake tensors."""
    leaves, spec = _tree.flatten(wanted)
    return _tree.unflatten(
        spec,
        [
            leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) and leaf.dtype in _INTEGERS else leaf
            for leaf in leaves
        ],
    )


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def selection_key(wanted: Selection) -> Hashable:
    """Something that tells selections of different sizes apart, for the cache of memory plans; None: cannot tell."""
    if isinstance(wanted, np.ndarray):
        return "array", wanted.tobytes()
    return repr(wanted) if wanted is None or isinstance(wanted, (int, slice, range)) else None


def _is_selector(wanted: Selection) -> bool:
    return isinstance(wanted, (int, slice, range, Tensor)) or hasattr(wanted, "__array__")


def _resolve(wanted: Selection, size: int, name: str) -> Places:
    """The wanted places of ``size``, none of them negative."""
    advice = "an int, a slice, a 1-D LongTensor, or a pytree with one of these for each leaf"
    if not _is_selector(wanted) or isinstance(wanted, bool):
        raise JacfnTypeError(f"{name} must be {advice}, got {type(wanted).__name__}")
    if isinstance(wanted, slice):
        return np.arange(size)[wanted]
    if isinstance(wanted, Tensor):  # what `frozen` has left alone
        hint = "; pass mask.nonzero().squeeze(1)" if wanted.dtype == torch.bool else ""
        raise JacfnTypeError(f"{name} must hold integers, got {wanted.dtype}{hint}")
    places = np.asarray(wanted)
    if places.size and places.dtype.kind not in "iu":
        raise JacfnTypeError(f"{name} must hold integers, got {places.dtype}")
    if places.ndim > 1:
        raise JacfnValueError(f"{name} must be {advice}, got a tensor of shape {places.shape}")
    places = places.reshape(-1).astype(np.int64)
    if places.size and not -size <= places.min() <= places.max() < size:
        raise JacfnValueError(
            f"{name} must lie in [-{size}, {size}), since that side has {size} element(s); got values from "
            f"{places.min()} to {places.max()}"
        )
    return np.where(places < 0, places + size, places)


def _one_hot_range(leaf: LeafType, start: int, stop: int, low: int, high: int) -> Tensor | None:
    """Rows ``start`` to ``stop`` of the identity, columns ``low`` to ``high``."""
    if max(start, low) >= min(stop, high):
        return None
    stack = torch.zeros(stop - start, high - low, dtype=leaf.dtype, device=leaf.device)
    stack.diagonal(start - low).fill_(1)
    return stack.view(stop - start, *leaf.shape)


def _one_hot(leaf: LeafType, wanted: Places, low: int, high: int) -> Tensor | None:
    """A row for each wanted place; all zeros where the place is not in this leaf."""
    (inside,) = ((wanted >= low) & (wanted < high)).nonzero()
    if inside.size == 0:
        return None
    stack = torch.zeros(len(wanted), high - low, dtype=leaf.dtype, device=leaf.device)
    rows, places = (torch.as_tensor(i, device=leaf.device) for i in (inside, wanted[inside] - low))
    stack[rows, places] = 1
    return stack.view(len(wanted), *leaf.shape)
