"""How a fit went (L4)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor

from jacfn.least_squares.state import State


class Record(NamedTuple):
    """A fit after a step: numbers, or tensors ``(B,)`` for many problems."""

    step: int
    cost: Any
    gradient_norm: Any
    damping: Any
    ratio: Any
    accepted: Any
    seconds: float


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What is recorded of a state."""

    cost: Tensor
    gradient_norm: Tensor
    damping: Tensor
    ratio: Tensor
    accepted: Tensor

    @classmethod
    def of(cls, state: State) -> Numbers:
        """As it stands."""
        return cls(state.cost, state.gradient_norm, state.damping, state.ratio, state.accepted)

    def record(self, step: int, seconds: float) -> Record:
        """Python's numbers for one problem."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        numbers = {name: x if x.ndim else x.item() for name, x in fields.items()}
        return Record(step=step, seconds=seconds, **numbers)
