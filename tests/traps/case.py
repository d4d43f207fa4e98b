"""A function of two numbers with one operation inside, so that few differences tell all about its derivatives."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

D = torch.float64
INPUTS = 2
HERE = torch.tensor([0.4, -0.7], dtype=D)
NEARBY = torch.tensor([0.45, -0.63], dtype=D)  # another sample


@dataclasses.dataclass(frozen=True)
class Case:
    """``operation`` at ``point``, the tensor that it gets where the two numbers are ``HERE``.

    The numbers enter by a curved function, and what comes out is read by one, so that derivatives of all orders of the
    operation matter, those of its derivative formula by the cotangent too.
    """

    name: str  # as people write it
    group: str
    operation: Callable[[Tensor], Any]
    point: Tensor

    @functools.cached_property
    def directions(self) -> Tensor:
        """``(2, *point)``: where each of the numbers moves the point to, at most by a half."""
        places = torch.arange(1, INPUTS * self.point.numel() + 1, dtype=D)
        return torch.sin(places * math.sqrt(5)).reshape(INPUTS, *self.point.shape) / 2

    def __call__(self, numbers: Tensor) -> Tensor:
        """A scalar, of ``(2,)``."""
        moved = torch.sin(numbers) - torch.sin(HERE)
        x = self.point + (moved.reshape(INPUTS, *(1,) * self.point.ndim) * self.directions).sum(0)
        outputs = self.operation(x)
        return sum(_read(y) for y in (outputs if isinstance(outputs, tuple) else (outputs,)))


def _read(y: Tensor) -> Tensor:
    weights = torch.cos(torch.arange(y.numel(), dtype=D)).reshape(y.shape)
    return (weights * (y + y * y / 4)).sum()


def values(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Numbers spread evenly between two, in no order."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return (low + (high - low) * (order.to(D) + 0.5) / count).reshape(shape)


def group(name: str, point: Tensor, operations: dict[str, Callable[[Tensor], Any]]) -> list[Case]:
    """Operations that get the same point."""
    return [Case(title, name, operation, point) for title, operation in operations.items()]
