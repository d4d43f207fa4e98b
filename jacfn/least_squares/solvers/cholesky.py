"""By the normal matrix (L4): ``(ĴᵀĴ + λ) z = -Ĵᵀ r``, summed up block by block."""

from __future__ import annotations

from torch import Tensor

from jacfn.least_squares.solvers.linear import Damped, Factored, Solver, System


class Cholesky(Solver):
    """Fast for many rows and few columns; squares the condition number."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.normal = system.rows.normal
        if system.scale is not None:
            d = system.scale.to(system.dtype)
            self.normal = self.normal / (d.unsqueeze(-1) * d.unsqueeze(-2))

    def damp(self, damping: Tensor) -> Damped:
        """One factorisation ``(P, P)``."""
        return _Damped(self.system, Factored(self.normal, damping))


class _Damped(Damped):
    def __init__(self, system: System, factored: Factored) -> None:
        self.system, self.factored, self.safe = system, factored, factored.safe

    def least(self, right: Tensor) -> Tensor:
        return -self.factored.solve(self.system.rmv(right))

    def inverse(self, g: Tensor) -> Tensor:
        return self.factored.solve(g)
