"""Damped Gauss-Newton (Levenberg-Marquardt) on the Jacobian of :func:`jacfn.jac_quasilinear`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jacfn import jac_quasilinear, make_functional
from jacfn._demo.problems import Problem

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Where the fit stands after one trial step.

    Attributes:
        number: How many steps were tried.
        loss: Mean squared residual on the training samples.
        held_loss: The same on the held-out samples.
        score: The problem's score on the held-out samples.
        damping: The damping of the next step.
    """

    number: int
    loss: float
    held_loss: float
    score: float
    damping: float


@dataclass(frozen=True)
class Fit:
    """The steps, the first being the start, and the Jacobian as a matrix at the start and at the end."""

    steps: list[Step]
    first: Tensor
    last: Tensor


def fit(problem: Problem, steps: int, memory: str, report: Callable[[Step], None]) -> Fit:
    """Minimise half the squared residuals plus weight decay, ``½‖f(θ) - y‖² + ½α‖θ‖²``.

    A trial step ``s`` solves ``(JᵀJ + (α + λ) I) s = -g`` with ``g = Jᵀr + αθ``. It is taken when it lowers
    the objective; the damping λ then follows the gain: the decrease over the one that the linear model
    promised (Nielsen, "Damping parameter in Marquardt's method", 1999). Otherwise λ grows, and J serves
    again.
    """
    fn, params = make_functional(problem.network)
    batch_fn, _ = make_functional(problem.network, batched=True)
    jacobian = jac_quasilinear(fn, in_dims=(None, 0), memory=memory, return_value=True)
    decay = problem.weight_decay

    def linearise(theta: Tensor) -> tuple[Tensor, Tensor]:
        tree, value = jacobian(unravel(theta, params), problem.inputs)
        return as_matrix(tree, value.numel()), (value - problem.targets).flatten()

    def objective(theta: Tensor) -> float:
        residual = batch_fn(unravel(theta, params), problem.inputs) - problem.targets
        return float(0.5 * (residual.square().sum() + decay * theta.dot(theta)))

    def note() -> None:
        answers = batch_fn(unravel(theta, params), problem.held_inputs)
        held_loss = (answers - problem.held_targets).square().mean().item()
        score = problem.score(answers, problem.held_targets)
        history.append(Step(len(history), residual.square().mean().item(), held_loss, score, damping))
        report(history[-1])

    history: list[Step] = []
    theta, damping, growth = ravel(params), 10.0, 2.0
    J, residual = linearise(theta)
    first, cost = J, objective(theta)
    note()
    for _ in range(steps):
        gradient = J.T @ residual + decay * theta
        step = damped_step(J, gradient, decay + damping)
        promised = 0.5 * step.dot(damping * step - gradient).item()
        if promised <= 1e-12 * cost:  # no decrease left that rounding would not hide
            break
        trial_cost = objective(theta + step)
        gain = (cost - trial_cost) / promised
        if gain > 0:  # a trial that is not finite compares False: a rejection
            theta, cost = theta + step, trial_cost
            damping, growth = damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0
            J, residual = linearise(theta)
        else:
            damping, growth = damping * growth, 2 * growth
        note()
    return Fit(history, first, J)


def damped_step(J: Tensor, gradient: Tensor, shift: float) -> Tensor:
    """The solution of ``(JᵀJ + shift I) s = -gradient``, through the smaller of ``JᵀJ`` and ``JJᵀ``.

    For fewer rows than columns: ``(JᵀJ + c I)⁻¹ = (I - Jᵀ (JJᵀ + c I)⁻¹ J) / c``.
    """
    rows, columns = J.shape
    if rows < columns:
        return (J.T @ _solve(J @ J.T, shift, J @ gradient) - gradient) / shift
    return -_solve(J.T @ J, shift, gradient)


def _solve(gram: Tensor, shift: float, right: Tensor) -> Tensor:
    """``(gram + shift I)⁻¹ right`` for a positive semi-definite ``gram``, which is overwritten."""
    gram.diagonal().add_(shift)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(gram))[:, 0]


def as_matrix(tree: Params, rows: int) -> Tensor:
    """A Jacobian pytree as one matrix, columns in the order of the weights."""
    return torch.cat([leaf.reshape(rows, -1) for leaf in tree.values()], 1)  # (N*K, P) <- (N, K, *in)


def ravel(params: Params) -> Tensor:
    """All weights in one vector."""
    return torch.cat([leaf.flatten() for leaf in params.values()])


def unravel(theta: Tensor, params: Params) -> Params:
    """The weights in the vector ``theta``, named and shaped as ``params``."""
    pieces = torch.split(theta, [leaf.numel() for leaf in params.values()])
    return {name: piece.view_as(leaf) for (name, leaf), piece in zip(params.items(), pieces, strict=True)}
