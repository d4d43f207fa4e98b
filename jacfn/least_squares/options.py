"""The options of a fit (L4), checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, get_args

from jacfn._binding import check_positive
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._memory import Budget, parse_budget
from jacfn.least_squares import damping, scaling, solvers
from jacfn.operator.build import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """See :func:`jacfn.levenberg_marquardt`, whose arguments these are."""

    in_dims: Any = None
    solver: solvers.Name = "auto"
    damping: damping.Name = "nielsen"
    scaling: scaling.Scaling = "more"
    initial_damping: float = 1e-3
    geodesic: bool = False
    frozen: Iterable[str] | Callable[[str], bool] | None = None
    ftol: float | None = None
    xtol: float | None = None
    gtol: float | None = None
    solver_tolerance: float | None = None
    solver_steps: int | None = None
    method: Method = "auto"
    chunk_size: int | None = None
    memory: Budget = None

    def __post_init__(self) -> None:
        _one_of("solver", self.solver, solvers.NAMES)
        _one_of("damping", self.damping, damping.NAMES)
        _one_of("scaling", self.scaling, scaling.SCALINGS)
        _one_of("method", self.method, get_args(Method))
        for name in ("initial_damping", "ftol", "xtol", "gtol", "solver_tolerance"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or not 0 <= float(value) < float("inf")):
                raise JacfnValueError(f"{name} must be a finite number that is at least 0, got {value!r}")
        if not (self.frozen is None or callable(self.frozen) or isinstance(self.frozen, str)) and isinstance(
            self.frozen, Iterable
        ):
            object.__setattr__(self, "frozen", tuple(self.frozen))  # a generator gives its names once
        if not isinstance(self.geodesic, bool):
            raise JacfnTypeError(f"geodesic must be a bool, got {self.geodesic!r}")
        check_positive("solver_steps", self.solver_steps)
        check_positive("chunk_size", self.chunk_size)
        parse_budget(self.memory)

    @property
    def budget(self) -> int | None:
        """``memory`` in bytes."""
        return parse_budget(self.memory)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise JacfnValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
