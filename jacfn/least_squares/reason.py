"""Why a fit ended (L4)."""

from __future__ import annotations

import enum


class Reason(enum.IntEnum):
    """Why a fit ended; ``converged`` for the first four.

    Example:
        >>> from jacfn import Reason
        >>> Reason.STEP.converged, Reason.MAX_STEPS.converged
        (True, False)
        >>> print(Reason.COST)
        the cost no longer changes (ftol)
    """

    RUNNING = 0
    COST = 1
    STEP = 2
    GRADIENT = 3
    ROUNDING = 4
    DAMPING = 5
    NON_FINITE = 6
    MAX_STEPS = 7
    MAX_EVALUATIONS = 8
    MAX_TIME = 9
    CALLBACK = 10
    BATCHES = 11

    @property
    def converged(self) -> bool:
        """Whether a test of convergence was met."""
        return Reason.COST <= self <= Reason.ROUNDING

    def __str__(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Reason.RUNNING: "it has not ended",
    Reason.COST: "the cost no longer changes (ftol)",
    Reason.STEP: "the step is small (xtol)",
    Reason.GRADIENT: "the residuals are orthogonal to the columns of the Jacobian (gtol)",
    Reason.ROUNDING: "what the model promises is lost in the rounding of the cost",
    Reason.DAMPING: "no step lowers the cost, however short: check the derivatives and the smoothness of fn",
    Reason.NON_FINITE: "the residuals or the Jacobian are not finite",
    Reason.MAX_STEPS: "max_steps is reached",
    Reason.MAX_EVALUATIONS: "max_evaluations is reached",
    Reason.MAX_TIME: "max_time is over",
    Reason.CALLBACK: "the callback said so",
    Reason.BATCHES: "there are no more batches",
}
