"""What a fit gives (L4)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn.least_squares import statistics, table
from jacfn.least_squares.history import Record
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.state import State
from jacfn.least_squares.with_scipy import quantile


@dataclasses.dataclass(frozen=True, repr=False)
class Solution:
    """The end of a fit: made by :func:`jacfn.levenberg_marquardt`.

    Numbers are Python's for one problem, and tensors ``(B,)`` for many.

    Attributes:
        state: the last state, from which :class:`jacfn.LevenbergMarquardt` can go on.
        history: a record after each step, the start being the first.
        seconds: the time that it took.

    Example:
        >>> import torch
        >>> from jacfn import levenberg_marquardt
        >>> t = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> line = levenberg_marquardt(lambda p: p[0] + p[1] * t - t**2, torch.zeros(2, dtype=torch.float64))
        >>> line.params, line.cost, line.reason.converged
        (tensor([-0.1250,  1.0000], dtype=torch.float64), 0.02734375, True)
        >>> line.standard_errors()
        tensor([0.1046, 0.1708], dtype=torch.float64)
    """

    state: State
    history: tuple[Record, ...]
    seconds: float

    @property
    def params(self) -> Any:
        """The pytree of parameters, with those that were frozen."""
        return self.state.params

    @functools.cached_property
    def value(self) -> Any:
        """``fn`` at the solution: the residuals, without weights."""
        return self.state.problem.value(self.state.x)

    @property
    def cost(self) -> Any:
        """``½ Σ w fn(params)²``."""
        return _number(self.state.cost)

    @property
    def gradient_norm(self) -> Any:
        """The largest element of ``|Jᵀ r|``."""
        return _number(self.state.gradient_norm)

    @property
    def steps(self) -> Any:
        """Trial steps."""
        return _number(self.state.steps)

    @property
    def nfev(self) -> Any:
        """How often ``fn`` was evaluated, at the start and for each trial step (twice with geodesic acceleration)."""
        return _number(self.state.nfev)

    @property
    def njev(self) -> Any:
        """How often the Jacobian was evaluated, which is once and for each accepted step."""
        return _number(self.state.njev)

    @property
    def reason(self) -> Any:
        """The :class:`jacfn.Reason` why it ended, or a list of them."""
        codes = self.state.code.tolist()
        return [Reason(code) for code in codes] if isinstance(codes, list) else Reason(codes)

    @property
    def converged(self) -> Any:
        """Whether a test of convergence was met."""
        code = self.state.code
        return _number((code >= Reason.COST) & (code <= Reason.ROUNDING))

    @property
    def rank(self) -> Any:
        """The rank of the Jacobian, to rounding, which is how many directions the data determine."""
        return _number(statistics.spectrum(self.state.model).rank)

    def covariance(self, *, variance: float | Tensor | None = None, pseudo: bool = False) -> Tensor:
        """The covariance of the free parameters, flat: ``(P, P)``, or ``(B, P, P)`` for many problems; float64.

        Args:
            variance: of a residual (default: ``2 cost / (M - P)``); 1 where the weights are the inverse variances.
            pseudo: where the Jacobian is singular, the covariance within the directions that the data determine.

        Raises:
            JacfnError: the Jacobian is singular (of many problems, that one's entries are not numbers instead), or
                there are no degrees of freedom.

        Cost: an orthogonal factorisation of the Jacobian, ``2 M P²`` operations.
        """
        return statistics.covariance(self.state.model, self.state.problem.columns, variance, pseudo)

    def standard_errors(self, *, variance: float | Tensor | None = None, pseudo: bool = False) -> Any:
        """The roots of the variances, with the structure of the parameters; 0 for frozen ones."""
        variances = self.covariance(variance=variance, pseudo=pseudo).diagonal(dim1=-2, dim2=-1)
        return self._tree(variances.sqrt())

    def confidence_interval(self, level: float = 0.95, *, variance: float | Tensor | None = None) -> tuple[Any, Any]:
        """Lower and upper ends, each with the structure of the parameters (needs SciPy).

        By Student's distribution; by the normal one where the variance is given.
        """
        m, p = self.state.model.rows.shape
        leaves, spec = _tree.flatten(self.params)
        margins = _tree.flatten(self.standard_errors(variance=variance))[0]
        times = quantile(level, m - p if variance is None else math.inf)
        low = [leaf - times * margin for leaf, margin in zip(leaves, margins, strict=True)]
        high = [leaf + times * margin for leaf, margin in zip(leaves, margins, strict=True)]
        return _tree.unflatten(spec, low), _tree.unflatten(spec, high)

    def summary(self) -> str:
        """A table of the parameters and of how the fit went."""
        return table.summary(self)

    def __repr__(self) -> str:
        """In a line."""
        return f"Solution(cost={self.cost}, steps={self.steps}, reason={self.reason!r})"

    def _tree(self, flat: Tensor) -> Any:
        """Of the free parameters, with zeros for the frozen ones."""
        problem = self.state.problem
        whole = [torch.zeros_like(leaf) for leaf in problem.bound.leaves]
        for i, leaf in zip(problem.free, problem.free_leaves(flat), strict=True):
            whole[i] = leaf.to(whole[i].dtype)
        return _tree.unflatten(problem.bound.spec, whole)


def _number(x: Tensor) -> Any:
    return x if x.ndim else x.item()
