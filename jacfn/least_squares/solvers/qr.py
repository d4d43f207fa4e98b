"""By orthogonal factorisation (L4): the triangle ``R`` of ``Ĵ``, then that of ``[R; √λ]`` for each ``λ``.

The condition number is not squared. Blocks of rows are folded into ``R`` one after the other, together with the
residuals, so no orthogonal factor is kept (Moré, "The Levenberg-Marquardt algorithm", 1978; Golub and Van Loan,
"Matrix Computations", section 5.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn.least_squares.solvers.linear import Damped, Solver, System


class QR(Solver):
    """As accurate as the Jacobian allows; needs room for ``R``, and for ``Ĵ`` where it has fewer rows than columns."""

    def __init__(self, system: System) -> None:
        self.system = system
        m, p = system.rows.shape
        # Fewer rows than columns: Ĵᵀ = B Rᵀ with orthonormal columns B, and z = B w lies in the span of the rows.
        self.basis: Tensor | None = None
        if m < p:
            (_, dense), *more = [(rows, self._scaled(block)) for rows, block in system.rows.blocks()]
            dense = torch.cat([dense, *(block for _, block in more)], -2) if more else dense
            self.basis, triangle = torch.linalg.qr(dense.mT)
            self.corner = _with_column(triangle.mT, system.residual.to(triangle.dtype))
        else:
            self.corner = self._folded()

    def damp(self, damping: Tensor) -> Damped:
        """One factorisation of ``(2k, k)`` with ``k`` the lesser of ``M`` and ``P``."""
        k = self.corner.shape[-1] - 1
        root = damping.to(self.corner.dtype).sqrt()[..., None, None]
        below = root * torch.eye(k, k + 1, dtype=self.corner.dtype, device=self.corner.device)
        triangle = torch.linalg.qr(torch.cat([self.corner, below], -2), mode="r").R
        return _Damped(self, triangle[..., :k, :k], triangle[..., :k, k], damping)

    def _folded(self) -> Tensor:
        """The triangle of ``[Ĵ r]``, ``(..., P + 1, P + 1)``."""
        corner: Tensor | None = None
        for rows, block in self.system.rows.blocks():
            more = _with_column(self._scaled(block), self.system.residual[..., rows].to(self.system.dtype))
            corner = torch.linalg.qr(more if corner is None else torch.cat([corner, more], -2), mode="r").R
        assert corner is not None
        return corner

    def _scaled(self, block: Tensor) -> Tensor:
        block = block.to(self.system.dtype)
        return block if self.system.scale is None else block / self.system.scale.unsqueeze(-2)


class _Damped(Damped):
    """``SᵀS = RᵀR + λ``, and the residuals turned by the same rotations."""

    def __init__(self, solver: QR, triangle: Tensor, right: Tensor, damping: Tensor) -> None:
        self.system, self.basis = solver.system, solver.basis
        self.triangle, self.right, self.damping = triangle, right, damping
        pivots = triangle.diagonal(dim1=-2, dim2=-1).abs()
        rounding = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
        self.singular = (pivots.amin(-1) <= rounding * pivots.amax(-1)) & (damping == 0)

    def step(self) -> Tensor:
        return self._out(-_back(self.triangle, self.right))

    def least(self, right: Tensor) -> Tensor:
        return -self.inverse(self.system.rmv(right))

    def inverse(self, g: Tensor) -> Tensor:
        g = g.to(self.triangle.dtype)
        if self.basis is None:
            return self._twice(g)
        inside = _times(self.basis.mT, g)
        outside = (g - _times(self.basis, inside)) / self.damping.to(g.dtype).unsqueeze(-1)
        return self._out(self._twice(inside)) + outside

    def _twice(self, g: Tensor) -> Tensor:
        """``(SᵀS)⁻¹ g``."""
        first = torch.linalg.solve_triangular(self.triangle.mT, g.unsqueeze(-1), upper=False).squeeze(-1)
        return _back(self.triangle, first)

    def _out(self, w: Tensor) -> Tensor:
        return w if self.basis is None else _times(self.basis, w)


def _with_column(matrix: Tensor, column: Tensor) -> Tensor:
    return torch.cat([matrix, column.unsqueeze(-1)], -1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _back(triangle: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(triangle, right.unsqueeze(-1), upper=True)
    return solution.squeeze(-1)
