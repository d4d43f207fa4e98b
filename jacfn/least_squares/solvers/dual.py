"""By the Gram matrix (L4), for fewer rows than columns: ``z = -Ĵᵀ (ĴĴᵀ + λ)⁻¹ r``.

From ``(ĴᵀĴ + λ) Ĵᵀ = Ĵᵀ (ĴĴᵀ + λ)``. The Gram matrix comes from the factors of the layers, also with column scales.
"""

from __future__ import annotations

from torch import Tensor

from jacfn.least_squares.solvers.linear import Damped, Factored, Solver, System


class Dual(Solver):
    """Never forms the Jacobian."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.gram = system.rows.gram(system.scale).to(system.dtype)

    def damp(self, damping: Tensor) -> Damped:
        """One factorisation ``(M, M)``."""
        return _Damped(self.system, Factored(self.gram, damping), damping)


class _Damped(Damped):
    def __init__(self, system: System, factored: Factored, damping: Tensor) -> None:
        self.system, self.factored, self.damping, self.safe = system, factored, damping, factored.safe

    def least(self, right: Tensor) -> Tensor:
        return -self.system.rmv(self.factored.solve(right))

    def inverse(self, g: Tensor) -> Tensor:
        within = self.system.rmv(self.factored.solve(self.system.mv(g)))  # (ĴᵀĴ + λ)⁻¹ = (1 - Ĵᵀ (ĴĴᵀ + λ)⁻¹ Ĵ) / λ
        return (g - within) / self.damping.unsqueeze(-1)
