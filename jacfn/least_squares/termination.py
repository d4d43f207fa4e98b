"""When a fit has converged (L4).

On cost, step and scaled gradient as in MINPACK (Moré, 1978, section 7), after accepted steps alone: rejected ones are
short because they are damped, not because the minimum is near. What is promised and the length of an accepted step
count as if it had not been damped, by the least that damping can have taken from them. Tolerances default to ten
rounding units.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from jacfn.least_squares.model import Model
from jacfn.least_squares.options import Options
from jacfn.least_squares.reason import Reason


@dataclasses.dataclass(frozen=True)
class Trial:
    """A step: what the model promised that the cost would lose, and its length ``‖D h‖``."""

    promised: Tensor
    length: Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A step, in numbers: one for each problem.

    Attributes:
        taken: whether it was accepted.
        before: the cost before.
        actual: what the cost lost.
        trial: the step.
        first: the first step from this point.
        reach: ``‖D x‖``.
        damping: the ``λ`` of the step.
        next_damping: the next one.
        largest: the largest squared norm of a column of ``Ĵ``.
    """

    taken: Tensor
    before: Tensor
    actual: Tensor
    trial: Trial
    first: Trial
    reach: Tensor
    damping: Tensor
    next_damping: Tensor
    largest: Tensor


def at_point(model: Model, options: Options) -> Tensor:
    """Codes for a new linearisation."""
    code = torch.zeros_like(model.cost, dtype=torch.int64)
    code = code.masked_fill(model.angle <= _tolerance(options.gtol, model.residual.dtype), Reason.GRADIENT)
    return code.masked_fill(~model.finite, Reason.NON_FINITE)


def after_step(outcome: Outcome, options: Options, dtype: torch.dtype) -> Tensor:
    """Codes for a step."""
    eps = torch.finfo(dtype).eps
    ftol, xtol = _tolerance(options.ftol, dtype), _tolerance(options.xtol, dtype)
    actual, before, promised, length = outcome.actual, outcome.before, outcome.trial.promised, outcome.trial.length
    free = 1 + outcome.damping / outcome.largest  # an undamped step is longer by about this, or by more
    still = (actual <= ftol * before) & (free * promised <= ftol * before) & (actual <= 2 * promised)
    short = free * length <= xtol * (outcome.reach + xtol)
    # No shorter step can tell more. It is the rounding's fault where the model was trusted with little from the start.
    hidden = ~outcome.taken & ((promised <= eps * before) | (length <= eps * outcome.reach))
    known = (outcome.first.promised <= eps**0.5 * before) | (outcome.first.length <= eps**0.5 * outcome.reach)
    overflow = ~outcome.taken & ~(eps**2 * outcome.next_damping < outcome.largest)
    code = torch.zeros_like(before, dtype=torch.int64)
    code = code.masked_fill(hidden | overflow, Reason.DAMPING)
    code = code.masked_fill(hidden & known, Reason.ROUNDING)
    code = code.masked_fill(outcome.taken & short, Reason.STEP)
    return code.masked_fill(outcome.taken & still, Reason.COST)


def _tolerance(given: float | None, dtype: torch.dtype) -> float:
    return 10 * torch.finfo(dtype).eps if given is None else given
