"""How derivatives are taken, and what of a budget they get (L4)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator

from jacfn._errors import JacfnValueError
from jacfn._memory import Budget, TooSmallError, mebibytes, parse_budget
from jacfn.operator.build import Method

_SHARE = 3 / 8  # of the budget


@dataclasses.dataclass(frozen=True)
class Passes:
    """How derivatives are taken, as :func:`jacfn.jacobian_operator` has it."""

    method: Method = "auto"
    chunk_size: int | None = None
    memory: Budget = None

    @property
    def share(self) -> int | None:
        """Of the budget, for one linearisation: that of the point before is there while the next is made."""
        budget = parse_budget(self.memory)
        return None if budget is None else max(int(_SHARE * budget), 1)  # the rest is for the matrices of the solver

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Where only that is given, an error about it speaks of the whole."""
        try:
            yield
        except TooSmallError as error:
            budget = parse_budget(self.memory)
            assert budget is not None
            raise JacfnValueError(
                f"memory={mebibytes(budget)} is too small for the fit, which has two linearisations at a time and a "
                f"solver: give at least {mebibytes(math.ceil(error.need / _SHARE))}"
            ) from error
