"""A solution as text (L4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnError
from jacfn._explain.table import aligned

_MOST = 30  # parameters in the table; of more only the leaves


def summary(solution: Any) -> str:
    """Parameters with their standard errors, then how the fit went."""
    problem = solution.state.problem
    m, p = solution.state.model.rows.shape
    if problem.lead:
        return _of_many(solution, m, p)
    lines = [
        f"{m} residuals, {p} parameters, cost {solution.cost:.6g}, largest gradient {solution.gradient_norm:.3g}",
        f"{solution.steps} steps, {solution.nfev} evaluations of fn, {solution.njev} of its Jacobian, "
        f"{solution.seconds:.3g} s",
        f"ended: {solution.reason}",
        "\n",
    ]
    return "\n".join(lines) + (_parameters(solution) if p <= _MOST else _leaves(solution))


def _parameters(solution: Any) -> str:
    note = ""
    try:
        errors = _tree.flatten(solution.standard_errors())[0]
    except JacfnError as error:
        errors, note = None, f"\nno standard errors: {error}"
    rows = []
    problem = solution.state.problem
    leaves = _tree.flatten(solution.params)[0]
    columns = iter(problem.columns)
    for number in problem.free:
        values = leaves[number].flatten().tolist()
        margins = [None] * len(values) if errors is None else errors[number].flatten().tolist()
        for value, margin in zip(values, margins, strict=True):
            rows.append([next(columns) or "params", f"{value:.8g}", "-" if margin is None else f"{margin:.3g}"])
    return aligned(["parameter", "value", "standard error"], rows, right={1, 2}) + note


def _leaves(solution: Any) -> str:
    problem = solution.state.problem
    leaves: list[Tensor] = _tree.flatten(solution.params)[0]
    rows = [
        [problem.names[i] or "params", str(tuple(leaves[i].shape)), f"{leaves[i].norm().item():.4g}"]
        for i in problem.free
    ]
    return aligned(["leaf", "shape", "norm"], rows, right={2})


def _of_many(solution: Any, m: int, p: int) -> str:
    reasons = solution.reason
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    rows = [[str(count), str(reason)] for reason, count in counts.items()]
    head = (
        f"{len(reasons)} problems of {m} residuals and {p} parameters, {int(solution.steps.max())} steps at most, "
        f"{solution.seconds:.3g} s\n\n"
    )
    return head + aligned(["problems", "ended"], rows, right={0})
