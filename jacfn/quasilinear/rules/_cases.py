"""Example calls that rules carry with them (L2): the sweep test and the coverage table are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(*args: Any, **kwargs: Any) -> Call:
    """A call with these arguments."""
    return Call(args, kwargs)


class Random:
    """Random tensors of one dtype; the same seed gives the same numbers, rounded to the dtype."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        """Numbers of both signs, between a half and one and a half in magnitude: safe to divide by."""
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64) * 2 - 1
        return (uniform + uniform.sign() / 2).to(self._dtype)

    def below(self, size: int, *shape: int) -> Tensor:
        """Integers from 0 to ``size - 1``."""
        return torch.randint(size, shape, generator=self._generator)


Cases = Callable[[Random], Sequence[Call]]
