"""A problem linearised at a point (L4)."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from jacfn.least_squares.options import Options
from jacfn.least_squares.problem import Problem
from jacfn.least_squares.rows import Rows
from jacfn.least_squares.scaling import scales
from jacfn.least_squares.solvers import KRYLOV, Solver, System, make, planned


@dataclasses.dataclass(frozen=True)
class Model:
    """``½ ‖r + J h‖²``; everything with an axis of problems in front where there are many.

    Attributes:
        residual: ``r``, ``(..., M)``.
        rows: ``J``.
        cost: ``½ ‖r‖²`` in float64.
        gradient: ``Jᵀ r``, ``(..., P)``.
        norms: of the columns of ``J``, ``(..., P)``.
        scale: ``D``, or None for the identity.
    """

    residual: Tensor
    rows: Rows
    cost: Tensor
    gradient: Tensor
    norms: Tensor
    scale: Tensor | None
    options: Options

    @functools.cached_property
    def solver(self) -> Solver:
        """Made when the first step is asked for, and kept for the steps that follow a rejected one."""
        options = self.options
        return make(options.solver, self.system, options.budget, options.solver_tolerance, options.solver_steps)

    @property
    def system(self) -> System:
        """What it solves."""
        return System(self.rows, self.residual, self.scale)

    @property
    def planned(self) -> str:
        """The name of that solver."""
        return planned(self.options.solver, self.rows, self.options.budget)

    @property
    def scaled_gradient(self) -> Tensor:
        """``Ĵᵀ r``."""
        return self.system.unscale(self.gradient)

    @property
    def largest(self) -> Tensor:
        """The largest squared norm of a column of ``Ĵ``."""
        return self.system.unscale(self.norms).amax(-1).double().square()

    @property
    def angle(self) -> Tensor:
        """The largest cosine of an angle between ``r`` and a column of ``J``."""
        length = (2 * self.cost).sqrt().unsqueeze(-1)
        cosines = self.gradient.double().abs() / (self.norms.double() * length)
        return torch.where(self.gradient == 0, 0.0, cosines).amax(-1)

    @property
    def finite(self) -> Tensor:
        """Whether everything is."""
        return self.cost.isfinite() & (self.gradient.isfinite() & self.norms.isfinite()).all(-1)

    def length(self, h: Tensor) -> Tensor:
        """``‖D h‖``."""
        return norm(h if self.scale is None else h * self.scale)

    def promised(self, z: Tensor, damping: Tensor) -> Tensor:
        """What the cost loses by the step ``z`` if the model holds: ``½ ‖Ĵz‖² + λ ‖z‖²`` by the normal equations.

        Both parts are positive: nothing cancels.
        """
        curved = 0.5 * self.rows.squared_image(self.system.unscale(z))
        if self.planned in KRYLOV:  # truncated iterations do not solve them: -ĝᵀz - ½ ‖Ĵz‖²
            return -(self.scaled_gradient * z).sum(-1).double() - curved
        return curved + damping * z.double().square().sum(-1)


def linearised(problem: Problem, x: Tensor, options: Options, scale: Tensor | None) -> Model:
    """At ``x``; ``scale`` is that of the point before."""
    residual, rows = problem.linearise(x)
    # The diagonal of the normal matrix has the norms, too, where that is going to be made.
    normal = planned(options.solver, rows, options.budget) == "cholesky"
    norms = rows.normal.diagonal(dim1=-2, dim2=-1).sqrt().to(x.dtype) if normal else rows.column_norms()
    now = scales(options.scaling, norms, scale)
    return Model(residual, rows, half_square(residual), rows.rmv(residual), norms, now, options)


def half_square(vector: Tensor) -> Tensor:
    """``½ ‖v‖²`` in float64."""
    return 0.5 * vector.double().square().sum(-1)


def norm(vector: Tensor) -> Tensor:
    """``‖v‖`` in float64."""
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, dtype=torch.float64)
    return length
