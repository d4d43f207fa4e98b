"""What the timed parts have in common: results are compared, then timed, then set beside the targets."""

from __future__ import annotations

import gc
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import report, tables, timing
from ..measure import SLOW, Measured, check
from ..measure import _one_line as one_line
from ..methods import Method, Run
from ..works import Work

#: Floors by name, in seconds, of a work; the number is the least time for each median.
Floors = Callable[[Work, float], Mapping[str, float]]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: ways to one result, on some works.

    Attributes:
        name: As the command line takes it.
        title: What is computed.
        how: What the reader must know about the table.
        works: The works it is made for.
        methods: The ways; each returns the same tensors by name.
        baseline: The name of the way with which all results are compared.
        unit: The name of the way whose ratio is 1.
        targets: From what was measured on a work to rows of the table of targets.
        floors: What no way can be faster than.
    """

    name: str
    title: str
    how: str
    works: tuple[str, ...]
    methods: tuple[Method, ...]
    baseline: str
    unit: str
    targets: Callable[[Compared], Iterable[list[str]]]
    floors: Floors = lambda work, seconds: {}

    def ratio(self, measured: Measured, method: str) -> float:
        """How many times the time of the unit a method takes."""
        return over(measured, method, self.unit)


@dataclass
class Compared(Measured):
    """What was measured on one work, with the part's own floors by name, in seconds."""

    floors: Mapping[str, float] = field(default_factory=dict)


# --- measuring ------------------------------------------------------------------------------------


def compare(part: Part, work: Work, seconds: float) -> Compared:
    """Check every way on one work, then time it; one that raises or is wrong gets a note instead."""
    print(f"\n{part.name}: {work.about}, N={len(work.x)}: J is {work.rows} x {work.columns}", flush=True)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"backpack|opacus|curvlinops|torchjd|benchmarks\.peers|torch\.fx")
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of functorch
        measured = Compared(work, (math.nan, math.nan), floors=part.floors(work, seconds / 4))
        runs = dict(_checked(part, measured))
        measured.seconds |= timing.both_orders(runs, seconds)
    return measured


def _checked(part: Part, measured: Compared) -> Iterator[tuple[str, Run]]:
    """The ways that are right and quick enough to be timed by repeats."""
    work = measured.work
    reference = next(method for method in part.methods if method.name == part.baseline).make(work)()
    for method in part.methods:
        if reason := method.skip(work):
            measured.notes[method.name] = "skipped: " + reason
            continue
        try:
            run = method.make(work)
            result, taken = timing.once(run)
            if taken < SLOW:  # then libraries are set up and structures learnt: again
                result, taken = timing.once(run)
            check(measured, method.name, result, reference)
        except Exception as error:
            measured.notes[method.name] = f"{method.name} fails: {one_line(error)}"
            print(f"  {measured.notes[method.name]}", flush=True)
            continue
        finally:
            result = None
            gc.collect()  # a failure leaves its frames behind, and with them what they held
        if taken < SLOW or method.ours or method.name == part.baseline:  # all ratios rest on these
            yield method.name, run
        else:
            measured.seconds[method.name] = (taken, taken)
            measured.notes[method.name] = "1 run"


def over(measured: Measured, method: str, unit: str) -> float:
    """The time of one way over that of another; not a number where either is missing."""
    there = {method, unit} <= measured.seconds.keys()
    return measured.best(method) / measured.best(unit) if there else math.nan


# --- saying what came out -------------------------------------------------------------------------


def section(part: Part, results: Sequence[Compared]) -> str:
    """A part's title, table and targets."""
    names = {name: None for measured in results for name in measured.floors}
    floors = [(name, lambda m, name=name: m.floors.get(name, math.nan)) for name in names]
    table = report.table(results, part.methods, part.ratio, floors)
    rows = [row for measured in results for row in part.targets(measured)]
    return "\n\n".join([heading(part.title), prose(part.how), table, *([targets(rows)] if rows else [])])


def heading(title: str) -> str:
    """A part's title, underlined."""
    return f"{title}\n{'=' * len(title)}"


def prose(text: str) -> str:
    """Text in lines of a readable length, whatever names were put into it."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def targets(rows: Sequence[list[str]]) -> str:
    """The table of targets."""
    return tables.grid(["target", "wanted", "measured", ""], rows)


def at_least(text: str, wanted: float, measured: float) -> list[str]:
    """A row of the table of targets; what could not be measured is not a number, and missed."""
    return _target(text, f">= {wanted:g}x", measured, measured >= wanted)


def at_most(text: str, wanted: float, measured: float) -> list[str]:
    """The same for a figure that must not be larger."""
    return _target(text, f"<= {wanted:g}x", measured, measured <= wanted)


def _target(text: str, wanted: str, measured: float, met: bool) -> list[str]:
    figure = "-" if math.isnan(measured) else f"{tables.significant(measured)}x"
    return [text, wanted, figure, "met" if met else "missed"]
