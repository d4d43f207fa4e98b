"""Memory budgets: what an operator and a use of it take beyond the result, for each method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: memory that is no method's
from torch import Tensor

import jacfn
from jacfn._memory import parse_budget

from .. import tables
from ..memory import WORKS as LARGE
from ..memory import _biases_only as biases_only
from ..resident import peak_growth
from ..works import Work, make_work, mlp_net
from . import children
from .compare import heading, prose

METHODS = ("rev", "fwd", "quasilinear", "products")


def _mv(jacobian: jacfn.JacobianOperator, vector: Tensor) -> Tensor:
    return jacobian @ vector


OPERATIONS: dict[str, Callable[[jacfn.JacobianOperator, Tensor], Tensor]] = {
    "materialize": lambda jacobian, vector: jacobian.materialize(),
    "gram": lambda jacobian, vector: jacobian.gram(),
    "mv": _mv,
    "row_norms": lambda jacobian, vector: jacobian.row_norms(),
}


def _wide() -> Work:
    net = biases_only(mlp_net(64, 4096, 4096, 10))
    return make_work("wide", "biases of MLP 64-4096-4096-10", net, torch.randn(512, 64))


def _deep() -> Work:
    net = biases_only(mlp_net(*[8] * 32, 1, activation=torch.nn.Tanh))
    return make_work("deep", "biases of 32 layers of 8", net, torch.randn(8192, 8))


#: Works with fewer rows, whose Gram matrix can be had.
FEWER_ROWS: dict[str, Callable[[], Work]] = {"wide": _wide, "deep": _deep}


def build(name: str, method: str, operation: str) -> Work:
    """The named work in the size for the method and the operation: forward mode goes through the columns."""
    torch.manual_seed(0)
    if operation == "gram" and method != "fwd" and name in FEWER_ROWS:
        return FEWER_ROWS[name]()
    return LARGE[name][method == "fwd"]()


# --- one measurement, in a process of its own -----------------------------------------------------


def child(work: str, method: str, operation: str, budget: str, threads: int) -> dict[str, Any]:
    """Measure the first call in this process, and a second one."""
    torch.set_num_threads(threads)
    measured = build(work, method, operation)
    vector = torch.randn(measured.columns)

    def call() -> Tensor:
        jacobian = jacfn.jacobian_operator(
            measured.fn, measured.params, measured.x, in_dims=measured.in_dims, method=method, memory=budget
        )
        return OPERATIONS[operation](jacobian, vector)

    calls = []
    for _ in range(2):
        result, growth, seconds = peak_growth(call)
        size = result.numel() * result.element_size()
        calls.append((growth - size, seconds))
        del result
    about = f"{measured.about}, N={len(measured.x)}: {measured.rows} x {measured.columns}"
    return {"about": about, "result": size, "beyond": [beyond for beyond, _ in calls], "seconds": calls[1][1]}


# --- the table ------------------------------------------------------------------------------------

HEADER = (
    "work: J, rows x columns",
    "operation",
    "method",
    "result",
    "budget",
    "first call",
    "again",
    "inside",
    "seconds",
)

HOW = """\
In MiB: the growth of the resident size at its peak over the making of the operator with memory= and one use of it, less
the result. A new process for each, in which nothing was computed before: in the first call, the libraries' code pages
and threads count too. again: the same a second time. Forward mode has smaller works, and so has gram where its result
would be too large. seconds: of the second call."""


def lines(works: Sequence[str], operations: Sequence[str], budget: str, threads: int) -> Iterator[list[str]]:
    """Measure each method and operation on each work: rows of the table."""
    for work in works:
        for operation in operations:
            for method in METHODS:
                options = {"work": work, "method": method, "operation": operation, "budget": budget, "threads": threads}
                row = line(children.run("memory", **options), **options)
                print("memory:", *row, flush=True)
                yield row


def line(measured: dict[str, Any], *, work: str, method: str, operation: str, budget: str, **_: Any) -> list[str]:
    """A row of the table; a method that raised has its error there."""
    limit = parse_budget(budget)
    if "error" in measured:
        return [f"{work}: {measured['error']}", operation, method, "-", f"{limit / 2**20:.0f}", "-", "-", "no", "-"]
    sizes = [measured["result"], limit, *measured["beyond"]]
    inside = "yes" if max(measured["beyond"]) <= limit else "no"
    cells = [tables.significant(size / 2**20) for size in sizes]
    return [measured["about"], operation, method, *cells, inside, f"{measured['seconds']:.2f}"]


def section(rows: Sequence[list[str]], budget: str) -> str:
    """The table, and how many are inside."""
    outside = [row for row in rows if row[HEADER.index("inside")] != "yes"]
    verdict = "met" if not outside else "missed"
    target = [f"peak beyond the result inside memory={budget!r}", f"{len(rows)} of {len(rows)}"]
    target += [f"{len(rows) - len(outside)} of {len(rows)}", verdict]
    wanted = tables.grid(["target", "wanted", "measured", ""], [target])
    return "\n\n".join([heading("Memory budgets"), prose(HOW), tables.grid(HEADER, rows), wanted])
