"""The vectors that an operator takes and gives (L3): pytrees of a function's inputs or outputs, or flat ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._tree import LeafType


class Form(NamedTuple):
    """How a vector was given."""

    tree: bool  # a pytree
    stacked: bool  # several of them, on axis 0


@dataclasses.dataclass(frozen=True)
class Vectors:
    """One side of an operator.

    Attributes:
        kinds: what each leaf looks like, without the samples.
        spec: the structure of pytrees; None where there are only flat vectors.
        samples: the length of the axis that every leaf leads with, None if it has none.
    """

    kinds: tuple[LeafType, ...]
    spec: optree.PyTreeSpec | None
    samples: int | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the leaves of a pytree."""
        lead = () if self.samples is None else (self.samples,)
        return [(*lead, *kind.shape) for kind in self.kinds]

    @property
    def width(self) -> int:
        """The elements of one sample."""
        return sum(kind.size for kind in self.kinds)

    @property
    def size(self) -> int:
        """The length of a flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def parse(self, given: Any, what: str) -> tuple[Tensor, Form]:
        """``(S, size)`` from what was given; ``what`` names it in errors."""
        if isinstance(given, Tensor) and not self._is_leaf(given):
            if given.ndim not in (1, 2) or given.shape[-1] != self.size:
                raise JacfnValueError(f"{what} must be {self._wanted()}, got a tensor of shape {tuple(given.shape)}")
            self._check_kind(given, what)
            return given.reshape(len(given) if given.ndim == 2 else 1, self.size), Form(False, given.ndim == 2)
        if self.spec is None:
            raise JacfnTypeError(f"{what} must be {self._wanted()}, got {type(given).__name__}")
        leaves = _tree.flatten_like(self.spec, given, what)
        names = _tree.leaf_names(self.spec)
        stacked = {
            self._check_leaf(leaf, shape, what + name)
            for leaf, shape, name in zip(leaves, self.shapes, names, strict=True)
        }
        if len(stacked) > 1:
            raise JacfnValueError(f"{what}: all leaves must be stacks of the same length, or none")
        return self._flat(leaves, stacked.pop()), Form(True, leaves[0].ndim > len(self.shapes[0]))

    def build(self, stack: Tensor, form: Form) -> Any:
        """From ``(S, size)``, in the form in which the other side was given."""
        stack = stack if form.stacked else stack[0]
        if not form.tree or self.spec is None:
            return stack
        lead = stack.shape[:-1]
        return _tree.unflatten(
            self.spec,
            [part.reshape((*lead, *shape)) for part, shape in zip(self.parts(stack), self.shapes, strict=True)],
        )

    def parts(self, stack: Tensor) -> list[Tensor]:
        """``(..., n)`` for each leaf, from ``(..., size)``: samples are outermost in the flat order."""
        sizes = [kind.size for kind in self.kinds]
        if self.samples is None:
            return list(torch.split(stack, sizes, -1))
        by_sample = stack.reshape(*stack.shape[:-1], self.samples, self.width)
        return [part.flatten(-2) for part in torch.split(by_sample, sizes, -1)]

    def stacks(self, flat: Tensor) -> list[Tensor]:
        """``(S, *leaf)`` for each leaf, from ``(S, size)``."""
        return [part.reshape(len(flat), *shape) for part, shape in zip(self.parts(flat), self.shapes, strict=True)]

    def _flat(self, leaves: Sequence[Tensor], stack: int | None) -> Tensor:
        lead = [1 if stack is None else stack]
        if self.samples is not None:
            lead.append(self.samples)
        rows = [leaf.reshape(*lead, kind.size) for leaf, kind in zip(leaves, self.kinds, strict=True)]
        whole = torch.cat(rows, -1) if len(rows) > 1 else rows[0]
        return whole if self.samples is None else whole.flatten(1)

    def _is_leaf(self, given: Tensor) -> bool:
        """Whether a tensor is a pytree of one leaf."""
        if self.spec is None or not optree.treespec_is_leaf(self.spec):
            return False
        (shape,) = self.shapes
        flat = given.shape == (self.size,)  # though it may look like a stack of numbers
        return tuple(given.shape) == shape or (not flat and tuple(given.shape[1:]) == shape)

    def _check_leaf(self, leaf: Any, shape: tuple[int, ...], what: str) -> int | None:
        """The length of the stack, None for a single vector."""
        if (
            not isinstance(leaf, Tensor)
            or tuple(leaf.shape[leaf.ndim - len(shape) :]) != shape
            or (leaf.ndim - len(shape) not in (0, 1))
        ):
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise JacfnValueError(
                f"{what} must have shape {shape}, or ({', '.join(['S', *map(str, shape)])}) for a stack, got {got}"
            )
        self._check_kind(leaf, what)
        return len(leaf) if leaf.ndim > len(shape) else None

    def _check_kind(self, given: Tensor, what: str) -> None:
        kind = self.kinds[0]
        if given.dtype != kind.dtype or given.device != kind.device:
            raise JacfnTypeError(
                f"{what} must be {kind.dtype} on {kind.device} as the operator is, got {given.dtype} on {given.device}"
            )

    def _wanted(self) -> str:
        flat = f"flat, of shape ({self.size},) or (S, {self.size})"
        return flat if self.spec is None else f"a pytree of structure {self.spec}, or {flat}"
