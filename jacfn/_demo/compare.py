"""One Jacobian by four methods: that they agree, and what each of them costs."""

from __future__ import annotations

import dataclasses
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.autograd.functional import jacobian as torch_jacobian

from jacfn import jac_fwd, jac_quasilinear, jac_rev, make_functional
from jacfn._demo.fit import Params, as_matrix
from jacfn._demo.problems import Problem
from jacfn._memory import Chunks, PeakBytes, log

SAMPLES = 32  # enough to make the methods differ, few enough to wait for the slowest
RUNS, PATIENCE = 5, 1.0  # timed runs of each method, and the seconds after which no further one begins

CAPTION = """\
max diff: largest difference from torch.autograd.functional.jacobian. ms: median
of up to {runs} runs. peak MiB: the most that PyTorch's calls held at once beyond
inputs and result, counted storage by storage (a kernel's own workspace is not
seen); the budget of the first three is {memory}. chunk: samples at once x rows
of each at once (jac_fwd: columns), as derived from the budget."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a method, its result's shape as a matrix, and its figures."""

    method: str
    shape: tuple[int, int]
    difference: float | None  # None: the reference itself
    milliseconds: float
    peak: int  # bytes
    chunk: str


def compare(problem: Problem, memory: str) -> list[Row]:
    """Measure the three transforms and their oracle on the first training samples."""
    fn, params = make_functional(problem.network)
    batch_fn, _ = make_functional(problem.network, batched=True)
    x = problem.inputs[:SAMPLES]
    outputs = batch_fn(params, x).numel()

    def oracle() -> Params:
        """It wants tensors and no pytrees, and knows batches only."""

        def of_leaves(*leaves: Tensor) -> Any:
            return batch_fn(dict(zip(params, leaves, strict=True)), x)

        leaves = torch_jacobian(of_leaves, (*params.values(),))  # type: ignore[no-untyped-call]
        return dict(zip(params, leaves, strict=True))

    exact = as_matrix(oracle(), outputs)
    rows = []
    for transform in (jac_rev, jac_fwd, jac_quasilinear):
        jacobian = transform(fn, in_dims=(None, 0), memory=memory)
        rows.append(_measure(transform.__name__, partial(jacobian, params, x), exact))
    reference = dataclasses.replace(_measure("autograd.functional", oracle, exact), difference=None)
    return [*rows, reference]


def table(rows: list[Row]) -> Table:
    """The rows as a table for the terminal; :data:`CAPTION` says what it shows."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method")
    for heading in ("J (M x P)", "max diff", "ms", "peak MiB", "chunk"):
        table.add_column(heading, justify="right")
    for row in rows:
        shape = f"{row.shape[0]} x {row.shape[1]}"
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        figures = difference, f"{row.milliseconds:.1f}", f"{row.peak / 2**20:.2f}"
        table.add_row(row.method, shape, *figures, row.chunk)
    return table


def _measure(name: str, method: Callable[[], Params], exact: Tensor) -> Row:
    with _chunks_chosen() as chosen:
        J = as_matrix(method(), len(exact))
    difference = (J - exact).abs().max().item()
    chunk = chosen[-1] if chosen else "1 row"  # the oracle's loop
    return Row(name, (J.shape[0], J.shape[1]), difference, _milliseconds(method), _peak(method), chunk)


@contextmanager
def _chunks_chosen() -> Iterator[list[str]]:
    """The chunks of the evaluations inside, which jacfn logs."""
    chosen: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        chunks: Chunks = record.__dict__["jacfn_chunks"]
        chosen.append(f"{chunks.samples} x {chunks.rows}")
        return False  # for us alone

    level = log.level
    log.setLevel(logging.DEBUG)
    log.addFilter(listen)
    try:
        yield chosen
    finally:
        log.removeFilter(listen)
        log.setLevel(level)


def _milliseconds(method: Callable[[], object]) -> float:
    """Median time of a run."""
    times: list[float] = []
    while len(times) < RUNS and sum(times) < PATIENCE:
        _synchronise()
        start = time.perf_counter()
        method()
        _synchronise()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(method: Callable[[], Params]) -> int:
    """Bytes held at most during a run, less what the result holds of them."""
    gc.collect()  # nothing of an earlier run may be freed, and counted as freed, in this one
    with PeakBytes() as booked:
        result = method()
    size = sum(leaf.nbytes for leaf in result.values())
    return int(booked.peak - min(size, booked.now))
