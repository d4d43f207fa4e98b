"""scipy.optimize.least_squares with residuals in torch and Jacobians of torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

if TYPE_CHECKING:
    from ..fits.problems import Problem

Record = Callable[[Tensor], None]


def fit(method: str) -> Callable[[Problem, Record], None]:
    """By ``"trf"`` or ``"lm"``; every evaluation of the residuals is recorded."""

    def run(problem: Problem, record: Record) -> None:
        from scipy.optimize import least_squares

        start = problem.start

        def residuals(x: Any) -> Any:
            weights = torch.from_numpy(x).to(start.dtype)
            record(weights)
            with torch.no_grad():
                return problem.residuals(weights).double().numpy()

        def of_sample(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return problem.residual(problem.params(weights), x, y)

        jacobian = vmap(jacrev(of_sample), (None, 0, 0))

        def rows(x: Any) -> Any:
            leaf = jacobian(torch.from_numpy(x).to(start.dtype), *problem.data)
            return leaf.reshape(-1, len(x)).double().numpy()

        tolerance = 1e-15  # the method lm takes none below the rounding unit
        options = {"ftol": tolerance, "xtol": tolerance, "gtol": tolerance, "max_nfev": 10**6}
        least_squares(residuals, start.double().numpy(), rows, method=method, x_scale="jac", **options)

    return run
