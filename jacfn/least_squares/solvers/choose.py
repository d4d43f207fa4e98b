"""Which solver (L4): by name, or by shape, conditioning and budget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from jacfn.least_squares.rows import Rows
from jacfn.least_squares.solvers.cholesky import Cholesky
from jacfn.least_squares.solvers.dual import Dual
from jacfn.least_squares.solvers.krylov import Krylov, cgls, lsmr
from jacfn.least_squares.solvers.linear import Damped, Solver, System
from jacfn.least_squares.solvers.qr import QR

Name = Literal["auto", "qr", "cholesky", "dual", "cg", "lsmr"]
NAMES = get_args(Name)
KRYLOV = ("cg", "lsmr")

_DIRECT: dict[str, Callable[[System], Solver]] = {"qr": QR, "cholesky": Cholesky, "dual": Dual}
_ROOM = 2 << 30  # bytes for small matrices where no budget is given
_COPIES = 4  # the matrix, the damped one, its factor, a workspace
_EASY = 1 << 24  # floating-point operations below which the accurate factorisation costs next to nothing
_STEPS = 1000


def choose(m: int, p: int, itemsize: int, budget: int | None) -> Name:
    """``"lsmr"`` where the small matrix does not fit; ``"dual"`` for fewer rows than columns; else ``"cholesky"``.

    Where an orthogonal factorisation takes next to no time, ``"qr"``.
    """
    small = min(m, p)
    if not _fits(small * small * itemsize, budget):
        return "lsmr"
    if m * p * small <= _EASY and (m >= p or _fits(m * p * itemsize, budget)):  # rows of many columns are kept whole
        return "qr"
    return "dual" if m < p else "cholesky"


def _fits(size: int, budget: int | None) -> bool:
    """Whether a matrix of this many bytes has room, with its copies."""
    return _COPIES * size <= (_ROOM if budget is None else budget // 4)


def planned(name: Name, rows: Rows, budget: int | None) -> Name:
    """The solver that a linearisation is going to have."""
    return choose(*rows.shape, rows.small_dtype.itemsize, budget) if name == "auto" else name


def make(name: Name, system: System, budget: int | None, tolerance: float | None, steps: int | None) -> Solver:
    """The solver of this name for a linearisation."""
    if name in KRYLOV:
        tolerance = torch.finfo(system.residual.dtype).eps ** 0.5 if tolerance is None else tolerance
        steps = min(2 * system.small + 10, _STEPS) if steps is None else steps
        return Krylov(system, cgls if name == "cg" else lsmr, tolerance, steps)
    if name == "auto":
        chosen = planned(name, system.rows, budget)
        if chosen in ("cholesky", "dual"):
            return _Careful(system, chosen, budget)
        return make(chosen, system, budget, tolerance, steps)
    return _DIRECT[name](system)


class _Careful(Solver):
    """By the normal or the Gram matrix, and by QR where that is too badly conditioned and QR fits the budget."""

    def __init__(self, system: System, name: Name, budget: int | None) -> None:
        self.system = system
        self.quick = _DIRECT[name](system)
        held = system.rows.shape[1] * system.small * system.dtype.itemsize  # R, or the rows
        self.fits = _fits(held, budget)

    @functools.cached_property
    def accurate(self) -> QR:
        """Made when it is needed first."""
        return QR(self.system)

    def damp(self, damping: Tensor) -> Damped:
        """By the first that is safe."""
        quick = self.quick.damp(damping)
        return quick if not self.fits or bool(torch.as_tensor(quick.safe).all()) else self.accurate.damp(damping)
