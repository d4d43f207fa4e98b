"""Where a fit stands (L4)."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from jacfn.least_squares.damping import Level
from jacfn.least_squares.model import Model
from jacfn.least_squares.problem import Problem
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.termination import Trial


@dataclasses.dataclass(frozen=True)
class State:
    """A fit between two steps: immutable, made by ``init`` and ``step`` of :class:`jacfn.LevenbergMarquardt`.

    Numbers are tensors without axes for one problem, and ``(B,)`` for many.

    Attributes:
        problem: what is minimised.
        x: the free parameters, flat.
        model: the linearisation at ``x``.
        level: the damping.
        steps: trial steps so far.
        nfev: evaluations of ``fn`` without derivatives, and the start.
        njev: evaluations of the Jacobian: one, and one for each accepted step (and each to where it is not finite).
        accepted: whether the last step was taken.
        ratio: what the cost lost in the last step over what the model promised.
        first: the first step from ``x``; not numbers before it.
        code: the :class:`jacfn.Reason` why the fit has ended, 0 while it runs.
    """

    problem: Problem
    x: Tensor
    model: Model
    level: Level
    steps: Tensor
    nfev: Tensor
    njev: Tensor
    accepted: Tensor
    ratio: Tensor
    first: Trial
    code: Tensor

    @property
    def params(self) -> Any:
        """The pytree of parameters."""
        return self.problem.params(self.x)

    @property
    def cost(self) -> Tensor:
        """``½ Σ w fn(params)²``, float64."""
        return self.model.cost

    @property
    def gradient_norm(self) -> Tensor:
        """The largest element of ``|Jᵀ r|``."""
        return self.model.gradient.abs().amax(-1).double()

    @property
    def damping(self) -> Tensor:
        """``λ``."""
        return self.level.value

    @property
    def running(self) -> Tensor:
        """Whether no test has ended it."""
        return self.code == Reason.RUNNING
