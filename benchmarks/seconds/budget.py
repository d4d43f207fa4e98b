"""Parts of a Hessian with nearly 8,000 rows in a budget in which the whole would not fit, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: memory that is not jacfn's
from torch import Tensor

import jacfn
from jacfn._memory import parse_budget

from .. import tables
from ..operators import children
from ..operators.compare import heading, prose
from ..resident import peak_growth
from ..works import make_work
from .works import Loss, build, flat, tanh_net, unflat

#: Columns that are compared with PyTorch's.
CHECKED = 3
TOLERANCE = 1e-3

Run = Callable[[], Tensor]


def places(work: Loss, layer: int) -> slice:
    """The weights and biases of a layer in the raveled parameters."""
    sizes = [weight.numel() for weight in work.params.values()]
    bounds = list(pairwise(accumulate(sizes, initial=0)))[2 * layer : 2 * layer + 2]
    return slice(bounds[0][0], bounds[-1][1])


def _diagonal(work: Loss, budget: str) -> tuple[Run, slice, slice]:
    diagonal = jacfn.hessian_diag(work.loss, memory=budget)
    everything = slice(0, work.columns)
    return lambda: flat(diagonal(work.params))[0], everything, everything


def _block(first: int, second: int) -> Callable[[Loss, str], tuple[Run, slice, slice]]:
    def make(work: Loss, budget: str) -> tuple[Run, slice, slice]:
        rows, columns = places(work, first), places(work, second)
        hessian = jacfn.hessian(work.loss, rows=rows, columns=columns, memory=budget)
        return lambda: hessian(work.params), rows, columns

    return make


#: Name to a call that computes it, its rows and its columns.
OPERATIONS: dict[str, Callable[[Loss, str], tuple[Run, slice, slice]]] = {
    "hessian_diag": _diagonal,
    "hessian, first layer": _block(0, 0),
    "hessian, last layer": _block(2, 2),
    "hessian, first layer x last": _block(0, 2),
}


def child(operation: str, budget: str, threads: int) -> dict[str, Any]:
    """Measure the first call on the work and a second one, then compare some columns."""
    torch.set_num_threads(threads)
    tiny = Loss(**vars(make_work("", "", tanh_net(3, 4, 4), torch.randn(5, 3))))
    OPERATIONS[operation](tiny, budget)[0]()  # sets libraries up
    work = build("weights")
    run, rows, columns = OPERATIONS[operation](work, budget)
    calls = []
    for _ in range(2):
        result, growth, seconds = peak_growth(run)
        size = result.numel() * result.element_size()
        calls.append((growth - size, seconds))
    about = f"{work.about}, {work.columns} weights"
    error = _difference(work, result, rows, columns)
    if not error < TOLERANCE:
        raise AssertionError(f"wrong by {error:.1e}")
    beyond = [beyond for beyond, _ in calls]
    return {"about": about, "result": size, "beyond": beyond, "seconds": calls[1][1], "difference": error}


def _difference(work: Loss, result: Tensor, rows: slice, columns: slice) -> float:
    """The largest from PyTorch's, relative to the largest entry: of some columns, or of places on the diagonal."""
    fn, x = unflat(work), flat(work.params)
    gradient = torch.func.grad(lambda x: fn(x).squeeze())
    chosen = torch.linspace(columns.start, columns.stop - 1, CHECKED).long()
    errors = []
    for column in chosen:
        direction = torch.zeros_like(x)
        direction[0, column] = 1
        wanted = torch.func.jvp(gradient, (x,), (direction,))[1][0]
        got = result[..., column - columns.start]
        errors.append((got - (wanted[rows] if result.ndim == 2 else wanted[column])).abs().max() / wanted.abs().max())
    return float(torch.stack(errors).max())


# --- the table ------------------------------------------------------------------------------------

HEADER = ("operation", "result", "budget", "first call", "again", "inside", "seconds", "difference")

HOW = f"""\
In MiB: the growth of the resident size at its peak over a call with memory=, less the result; a new process for each,
in which libraries were set up by the same on a tiny network. again: a second call, whose are the seconds. difference:
largest from a jvp of the gradient in {CHECKED} columns, relative to the largest entry of the column."""


def lines(budget: str, threads: int) -> Iterator[list[str]]:
    """Measure each operation: rows of the table."""
    for operation in OPERATIONS:
        options = {"operation": operation, "budget": budget, "threads": threads}
        row = line(children.run("hessian", module="benchmarks.second_order", **options), operation, budget)
        print("hessian:", *row, flush=True)
        yield row


def line(measured: dict[str, Any], operation: str, budget: str) -> list[str]:
    """A row of the table; a child that failed has its error there."""
    limit = parse_budget(budget)
    if "error" in measured:
        return [f"{operation}: {measured['error']}", "-", f"{limit / 2**20:.0f}", "-", "-", "no", "-", "-"]
    cells = [tables.significant(size / 2**20) for size in (measured["result"], limit, *measured["beyond"])]
    inside = "yes" if max(measured["beyond"]) <= limit else "no"
    return [operation, *cells, inside, f"{measured['seconds']:.2f}", f"{measured['difference']:.1e}"]


def section(rows: list[list[str]], budget: str) -> str:
    """The table, and how many are inside."""
    inside = sum(row[HEADER.index("inside")] == "yes" for row in rows)
    work = build("weights")
    whole = f"The whole Hessian of {work.about}, would take {4 * work.columns**2 / 2**20:.0f} MiB."
    verdict = "met" if inside == len(rows) else "missed"
    text = f"peak beyond the result inside memory={budget!r}"
    wanted = [[text, f"{len(rows)} of {len(rows)}", f"{inside} of {len(rows)}", verdict]]
    grids = [tables.grid(HEADER, rows), tables.grid(["target", "wanted", "measured", ""], wanted)]
    return "\n\n".join([heading("Parts of a Hessian in a budget"), prose(f"{HOW} {whole}"), *grids])
