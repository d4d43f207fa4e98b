"""Geodesic acceleration (L4): a step bent along the curvature of the residuals.

Transtrum and Sethna, "Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares minimization"
(2012, arXiv:1201.5885). The second derivative of the residuals along the step comes from the rules of a forward
Laplacian, or, where those do not cover the function, from a difference of values, as in the GNU Scientific Library.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn.least_squares.model import Model, norm
from jacfn.least_squares.problem import Problem
from jacfn.least_squares.solvers import Damped

_LENGTH = 0.1  # of the difference, in steps
_MOST = 0.75  # of twice the acceleration over the velocity: beyond, the expansion is not to be trusted


def bent(problem: Problem, x: Tensor, model: Model, damped: Damped, z: Tensor) -> tuple[Tensor, Tensor]:
    """``z + a/2`` and whether ``2 ‖a‖ <= 0.75 ‖z‖``, where ``a`` answers to the second derivative along ``z``."""
    h = model.system.unscale(z).to(x.dtype)
    second, length = problem.curvature(x, h), norm(z)
    short = torch.zeros_like(length, dtype=torch.bool)
    if second is None:
        second = _difference(problem, x, model, h)
        # Near the end a step is too short for a difference to tell its curvature from rounding, and needs no bend.
        short = length <= torch.finfo(x.dtype).eps ** 0.25 * model.length(x)
    acceleration = damped.least(second).to(z.dtype)
    calm = 2 * norm(acceleration) <= _MOST * length
    return torch.where((calm & ~short).unsqueeze(-1), z + 0.5 * acceleration, z), calm | short


def _difference(problem: Problem, x: Tensor, model: Model, h: Tensor) -> Tensor:
    """``r(x + t h) = r + t J h + ½ t² r'' + ...`` gives ``r'' = 2/t ((r(x + t h) - r) / t - J h)``."""
    ahead = problem.residuals(x + _LENGTH * h)
    return 2 / _LENGTH * ((ahead - model.residual) / _LENGTH - model.rows.mv(h))
