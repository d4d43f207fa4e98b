"""What a damped linear solve is (L4).

With column scales ``D``, ``Ĵ = J D⁻¹`` and ``z = D h``, a step minimises ``‖Ĵ z + r‖² + λ ‖z‖²``. A :class:`Solver` is
made once for a linearisation and reduces ``Ĵ`` to what serves every ``λ``: a rejected step costs no new Jacobian and no
new reduction.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from jacfn.least_squares.rows import Rows


@dataclasses.dataclass(frozen=True)
class System:
    """A linearisation: rows ``J``, residuals ``r (..., M)`` and column scales ``D (..., P)`` (None: the identity)."""

    rows: Rows
    residual: Tensor
    scale: Tensor | None

    @property
    def small(self) -> int:
        """The lesser of ``M`` and ``P``."""
        return min(self.rows.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of small matrices."""
        return self.rows.small_dtype

    def mv(self, z: Tensor) -> Tensor:
        """``Ĵ z``."""
        return self.rows.mv(self.unscale(z).to(self.residual.dtype))

    def rmv(self, u: Tensor) -> Tensor:
        """``Ĵᵀ u``."""
        return self.unscale(self.rows.rmv(u.to(self.residual.dtype)))

    def unscale(self, z: Tensor) -> Tensor:
        """``D⁻¹ z``."""
        return z if self.scale is None else z / self.scale


class Damped(abc.ABC):
    """The system for one ``λ``."""

    system: System
    safe: Tensor | bool = True  # whether it is well enough conditioned for this way of solving it, for each problem
    singular: Tensor | bool = False  # whether it is, to rounding: then a step is rounding, magnified

    def step(self) -> Tensor:
        """The minimiser ``z (..., P)`` of ``‖Ĵ z + r‖² + λ ‖z‖²``."""
        return self.least(self.system.residual)

    @abc.abstractmethod
    def least(self, right: Tensor) -> Tensor:
        """The same with a vector ``(..., M)`` in the place of ``r``."""

    @abc.abstractmethod
    def inverse(self, g: Tensor) -> Tensor:
        """``(ĴᵀĴ + λ)⁻¹ g``."""


class Solver(abc.ABC):
    """A linearisation, reduced."""

    @abc.abstractmethod
    def damp(self, damping: Tensor) -> Damped:
        """With ``λ``, one for each problem."""


def _shifted(matrix: Tensor, damping: Tensor) -> Tensor:
    """``A + λ I``."""
    result = matrix.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(damping.to(matrix.dtype).unsqueeze(-1))
    return result


class Factored:
    """``A + λ I = L Lᵀ``."""

    def __init__(self, matrix: Tensor, damping: Tensor) -> None:
        self.factor, failed = torch.linalg.cholesky_ex(_shifted(matrix, damping))
        pivots = self.factor.diagonal(dim1=-2, dim2=-1).square()
        # The ratio of the pivots bounds the condition number from below; where it nears the rounding unit, digits
        # of the solution are lost that an orthogonal factorisation would keep.
        rounding = 100 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        self.safe: Tensor = (failed == 0) & (pivots.amin(-1) > rounding * pivots.amax(-1))
        self.works: Tensor = failed == 0

    def solve(self, right: Tensor) -> Tensor:
        """``(A + λ I)⁻¹ right``; not a number where there is no factorisation."""
        x = torch.cholesky_solve(right.to(self.factor.dtype).unsqueeze(-1), self.factor).squeeze(-1)
        return torch.where(self.works.unsqueeze(-1), x, torch.nan)
