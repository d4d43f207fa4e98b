"""Measuring: every method on a work is checked against the reference, then timed."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from . import timing
from .methods import BASELINE, METHODS, Jacobian, Method, Run, named, some_columns
from .works import Work, flat

#: A result further than this from the reference, relative to a leaf's largest entry, stops the benchmark.
TOLERANCE = 1e-3
#: A method that takes more seconds than this is called once; the call that is checked is then its time.
SLOW = 4.0
#: Rows from which the time of a slow loop is scaled up.
SOME_ROWS = 40
#: Columns of the target for chosen columns.
SOME_COLUMNS = 8


@dataclass
class Measured:
    """What was measured on one work.

    Attributes:
        work: The work.
        seconds: Method to its two medians.
        notes: Method to what the reader must know about its figure, or why there is none.
        differences: Method to the largest relative difference from the reference.
        floor: Seconds to fill a buffer of the result's size, warm and cold.
        columns: Seconds of the chosen columns alone, two medians; None where that is not asked.
    """

    work: Work
    floor: tuple[float, float]
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    columns: tuple[float, float] | None = None

    def best(self, method: str) -> float:
        """The method's figure, in seconds."""
        return timing.best(self.seconds[method])

    def ratio(self, method: str) -> float:
        """How many times faster than the baseline the method is."""
        return self.best(BASELINE) / self.best(method)


# --- measuring ------------------------------------------------------------------------------------


def difference(jac: Jacobian, reference: Jacobian) -> float:
    """Largest difference from the reference, relative to the largest entry of the leaf."""
    if list(jac) != list(reference) or any(jac[k].shape != reference[k].shape for k in reference):
        raise AssertionError("the result has another structure than the reference")
    return max(float((jac[k] - reference[k]).abs().max() / reference[k].abs().max()) for k in reference)


def check(measured: Measured, name: str, jac: Jacobian, reference: Jacobian) -> None:
    """Record and print how far a result is from the reference; stop if it is wrong."""
    error = difference(jac, reference)
    print(f"  {name:32} max relative difference {error:.1e}", flush=True)
    if not error < TOLERANCE:  # also if it is NaN
        raise AssertionError(f"{name} on {measured.work.name}: wrong by {error:.1e}")
    measured.differences[name] = error


def measure(
    work: Work,
    seconds: float,
    patience: float,
    methods: Sequence[Method] = METHODS,
    *,
    columns: bool = False,
    tolerant: bool = False,
) -> Measured:
    """Check every method on one work, then time it.

    Args:
        work: The work.
        seconds: Least time for each median.
        patience: Seconds that a loop may take before only its first rows are timed.
        methods: What to run; the baseline is among them.
        columns: Time a few chosen columns too.
        tolerant: A method that raises or is wrong gets a note, where otherwise it stops the benchmark.
    """
    print(f"\n{work.about}, N={len(work.x)}: J is {work.rows} x {work.columns}", flush=True)
    measured = Measured(work, timing.fill(work.floor_bytes, seconds / 4))
    reference = named(BASELINE)[0].make(work)()
    runs: dict[str, timing.Run] = {}
    for method in methods:
        if reason := method.skip(work):
            measured.notes[method.name] = "skipped: " + reason
            continue
        try:
            if method.first_rows is not None:
                _time_loop(measured, method, reference, patience)
            elif (run := _check_quick(measured, method, reference)) is not None:
                runs[method.name] = run
        except Exception as error:
            if not tolerant:
                raise
            measured.notes[method.name] = f"{method.name} fails: {_one_line(error)}"
            print(f"  {measured.notes[method.name]}", flush=True)
        gc.collect()  # a failure leaves its frames behind, and with them what they held
    if columns:
        runs["columns"] = _checked_columns(measured, reference)
    del reference
    measured.seconds |= timing.both_orders(runs, seconds)
    measured.columns = measured.seconds.pop("columns", None)
    return measured


def _one_line(error: Exception, width: int = 110) -> str:
    """The kind of an error and the first line of what it says."""
    text = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    return text if len(text) <= width else text[: width - 3] + "..."


def _check_quick(measured: Measured, method: Method, reference: Jacobian) -> Run | None:
    """Check a method; what is to be timed if it is quick enough. If not, this call is its time."""
    run = method.make(measured.work)
    if method.compiled:
        _, seconds = timing.once(run)
        print(f"  {method.name:32} first call {seconds:.1f} s", flush=True)
    jac, seconds = timing.once(run)
    check(measured, method.name, jac, reference)
    if seconds < SLOW or method.ours or method.name == BASELINE:  # all ratios rest on these
        return run
    measured.seconds[method.name] = (seconds, seconds)
    measured.notes[method.name] = "1 run"
    return None


def _time_loop(measured: Measured, method: Method, reference: Jacobian, patience: float) -> None:
    """Time a loop once: whole if that takes less than ``patience`` seconds, else its first rows, scaled."""
    work = measured.work
    assert method.first_rows is not None
    some = min(SOME_ROWS, work.rows)
    method.first_rows(work, work.outputs)()  # sets libraries up
    jac, seconds = timing.once(method.first_rows(work, some))
    seconds *= work.rows / some
    note = f"1 run of {some} rows, scaled to all"
    if seconds < patience or some == work.rows:
        jac, seconds = timing.once(method.make(work))
        note = "1 run"
    else:
        reference = _first_rows(reference, work, some)
    check(measured, method.name, jac, reference)
    measured.seconds[method.name] = (seconds, seconds)
    measured.notes[method.name] = note


def _first_rows(jac: Jacobian, work: Work, rows: int) -> Jacobian:
    """The first rows of a Jacobian pytree, samples and outputs merged into one axis."""
    return {name: leaf.reshape(work.rows, *work.params[name].shape)[:rows] for name, leaf in jac.items()}


def _checked_columns(measured: Measured, reference: Jacobian) -> timing.Run:
    """Forward mode for a few columns, spread over all weights, after a check against the reference."""
    work = measured.work
    chosen = torch.linspace(0, work.columns - 1, SOME_COLUMNS).long()
    run = some_columns(work, chosen)
    result = {"columns": run().reshape(work.rows, -1)}
    wanted = {"columns": flat(reference, work.rows)[:, chosen]}
    check(measured, f"jacfn.jac_fwd, {SOME_COLUMNS} columns", result, wanted)
    return run
