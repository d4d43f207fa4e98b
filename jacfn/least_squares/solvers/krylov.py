"""By products alone (L4): conjugate gradients and LSMR on ``Ĵ``, which is never formed.

Hestenes and Stiefel (1952) in the form for least squares, CGLS; Fong and Saunders, "LSMR: An iterative algorithm for
sparse least-squares problems" (2011, arXiv:1006.0758). Without preconditioning beyond the column scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jacfn.least_squares.solvers.linear import Damped, Solver, System

Iteration = Callable[[System, Tensor, Tensor, float, int], Tensor]

_norm = torch.linalg.vector_norm


class Krylov(Solver):
    """Products with ``Ĵ`` and ``Ĵᵀ``, a pair in each iteration."""

    def __init__(self, system: System, iteration: Iteration, tolerance: float, steps: int) -> None:
        self.system, self.iteration, self.tolerance, self.steps = system, iteration, tolerance, steps

    def damp(self, damping: Tensor) -> Damped:
        """Nothing yet."""
        return _Damped(self, damping)


class _Damped(Damped):
    def __init__(self, solver: Krylov, damping: Tensor) -> None:
        self.solver, self.system, self.damping = solver, solver.system, damping.to(solver.system.residual.dtype)

    def least(self, right: Tensor) -> Tensor:
        return self.solver.iteration(self.system, -right, self.damping, self.solver.tolerance, self.solver.steps)

    def inverse(self, g: Tensor) -> Tensor:
        """By conjugate gradients on the normal equations."""
        z, residual = torch.zeros_like(g), g
        direction, size = residual, residual.dot(residual)
        enough = self.solver.tolerance**2 * size
        for _ in range(self.solver.steps):
            if not size > enough:
                break
            image = self.system.rmv(self.system.mv(direction)) + self.damping * direction
            length = size / direction.dot(image)
            z, residual = z + length * direction, residual - length * image
            size, last = residual.dot(residual), size
            direction = residual + size / last * direction
        return z


def cgls(system: System, right: Tensor, damping: Tensor, tolerance: float, steps: int) -> Tensor:
    """The minimiser of ``‖Ĵ z - right‖² + λ ‖z‖²`` by conjugate gradients.

    The gradient is formed from the residual in each iteration, not updated, which keeps it as accurate as LSMR's. Each
    step is the best one along its direction: where rounding has spoilt the conjugacy of the directions, the usual
    ``‖g‖²`` in the place of ``gᵀd`` would lead uphill. It ends, too, where the gradient is rounding alone.
    """
    residual, gradient = right, system.rmv(right)
    z, direction, size = torch.zeros_like(gradient), gradient, gradient.dot(gradient)
    enough = tolerance**2 * size
    eps, top = torch.finfo(right.dtype).eps, torch.zeros_like(size)  # top: of ‖Ĵ‖, from below
    for _ in range(steps):
        rounding = eps * (top * _norm(residual) + damping * _norm(z))
        if not size > torch.maximum(enough, rounding**2):  # also where it is not a number
            break
        image = system.mv(direction)
        top = torch.maximum(top, _norm(image) / _norm(direction))
        length = gradient.dot(direction) / (image.dot(image) + damping * direction.dot(direction))
        z, residual = z + length * direction, residual - length * image
        gradient = system.rmv(residual) - damping * z
        size, last = gradient.dot(gradient), size
        direction = gradient + size / last * direction
    return z


def lsmr(system: System, right: Tensor, damping: Tensor, tolerance: float, steps: int) -> Tensor:
    """The same by LSMR: Golub-Kahan bidiagonalisation of ``[Ĵ; √λ]``, the norm of the gradient falls monotonically.

    ``λ`` joins as further rows: the left vectors have a part in the rows and one in the columns.
    """
    root = damping.sqrt()

    def split(u: Tensor, below: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        beta = torch.hypot(_norm(u), _norm(below))
        return (u / beta, below / beta, beta) if beta > 0 else (u, below, beta)

    def norm_of(v: Tensor) -> tuple[Tensor, Tensor]:
        alpha = _norm(v)
        return (v / alpha, alpha) if alpha > 0 else (v, alpha)

    u, below, beta = split(right, right.new_zeros(system.rows.shape[1]))
    v, alpha = norm_of(system.rmv(u) + root * below)
    z, outer, inner = torch.zeros_like(v), v, torch.zeros_like(v)  # x, h and h̄ of the paper
    zeta_bar, alpha_bar = alpha * beta, alpha
    rho = rho_bar = c_bar = torch.ones_like(alpha)
    s_bar = torch.zeros_like(alpha)
    enough = tolerance * zeta_bar
    for _ in range(steps):
        if not zeta_bar.abs() > enough:
            break
        u, below, beta = split(system.mv(v) - alpha * u, root * v - alpha * below)
        v, alpha = norm_of(system.rmv(u) + root * below - beta * v)
        rho_old, rho = rho, torch.hypot(alpha_bar, beta)
        c, s = alpha_bar / rho, beta / rho
        theta, alpha_bar = s * alpha, c * alpha
        theta_bar, rho_bar_old = s_bar * rho, rho_bar
        rho_bar = torch.hypot(c_bar * rho, theta)
        c_bar, s_bar = c_bar * rho / rho_bar, theta / rho_bar
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        inner = outer - theta_bar * rho / (rho_old * rho_bar_old) * inner
        z = z + zeta / (rho * rho_bar) * inner
        outer = v - theta / rho * outer
    return z
