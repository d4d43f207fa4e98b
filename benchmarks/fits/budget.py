"""A fit whose dense Jacobian would not fit in memory, inside a budget: what it takes beyond its inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: memory that is no method's

import jacfn
from jacfn._memory import parse_budget

from .. import tables
from ..operators import children
from ..operators.compare import heading, prose, targets
from ..resident import peak_growth
from .problems import IN_DIMS, large

#: Steps of the fit, and iterations of the linear solver in each.
STEPS, ITERATIONS = 3, 5
#: Solvers that are run; the first one sets the target.
SOLVERS = ("cg", "lsmr")
#: A fit that takes more seconds than this is given up.
LIMIT = 600


def child(samples: int, widths: list[int], solver: str, budget: str, threads: int) -> dict[str, Any]:
    """Fit, in a process where nothing was computed before."""
    torch.set_num_threads(threads)
    problem = large(samples, tuple(widths))

    def fit() -> jacfn.Solution:
        return jacfn.levenberg_marquardt(
            problem.residual,
            problem.work.params,
            *problem.data,
            in_dims=IN_DIMS,
            solver=solver,
            solver_steps=ITERATIONS,
            max_steps=STEPS,
            memory=budget,
        )

    solution, growth, seconds = peak_growth(fit)
    return {
        "about": f"{problem.work.about}, {problem.work.rows} x {problem.work.columns}",
        "dense": problem.work.floor_bytes,
        "beyond": growth,
        "seconds": seconds / solution.steps,
        "costs": [solution.history[0].cost, solution.cost],
        "counts": f"{solution.steps} steps, {solution.njev} Jacobians",
    }


def measure(problem: dict[str, Any], budget: str, threads: int) -> dict[str, dict[str, Any]]:
    """A process for each solver: what it measured, or ``{"error": ...}``."""
    measured = {}
    for solver in SOLVERS:
        options = {"solver": solver, "budget": budget, "threads": threads, **problem}
        measured[solver] = children.run("budget", module="benchmarks.least_squares", limit=LIMIT, **options)
        print("budget:", solver, measured[solver], flush=True)
    return measured


HOW = f"""\
levenberg_marquardt with memory= and {ITERATIONS} iterations of the solver in each of {STEPS} steps, in a new process.
peak: growth of the resident size over the whole fit, so with the solution, the libraries' code pages and threads.
seconds: of a step, the first call's planning included."""

HEADER = ("solver", "fit: J, rows x columns", "dense J, GiB", "peak, MiB", "seconds", "cost before", "after", "counts")


def section(measured: dict[str, dict[str, Any]], budget: str) -> str:
    """The table and the targets."""
    limit = parse_budget(budget)
    wanted = []
    for solver, m in measured.items():
        share = m.get("beyond", float("inf")) / limit
        verdict = "met" if share <= 1 else "missed"
        wanted.append([f"peak of the fit by {solver} inside memory={budget!r}", "<= 1", f"{share:.2f}", verdict])
    table = tables.grid(HEADER, [_row(solver, m) for solver, m in measured.items()])
    return "\n\n".join([heading(f"A fit in {budget}"), prose(HOW), table, targets(wanted)])


def _row(solver: str, m: dict[str, Any]) -> list[str]:
    if "error" in m:
        return [solver, m["error"], *["-"] * 6]
    sizes = [tables.significant(m["dense"] / 2**30), tables.significant(m["beyond"] / 2**20)]
    costs = [f"{cost:.4g}" for cost in m["costs"]]
    return [solver, m["about"], *sizes, tables.significant(m["seconds"]), *costs, m["counts"]]
