"""A fit whose dense Jacobian would not fit in memory, inside a budget: what it takes beyond its inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: memory that is no method's

import jacfn
from jacfn._memory import parse_budget

from .. import tables
from ..memory import ALLOCATOR
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
    return {solver: _in_child(solver=solver, budget=budget, threads=threads, **problem) for solver in SOLVERS}


def _in_child(**arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.least_squares", "--child", json.dumps(arguments)]
    try:
        done = subprocess.run(
            command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print("budget:", arguments["solver"], measured, flush=True)
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
