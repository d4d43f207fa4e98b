"""Loss against time: every way starts from the same weights and goes on until its time is up, or ends by itself."""

from __future__ import annotations

import gc
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

import jacfn
from jacfn.least_squares import State

from .. import tables
from ..measure import _one_line as one_line
from ..operators.compare import at_least, heading, prose, targets
from ..peers import optimizers, pypose, scipy_fits, torch_levenberg_marquardt
from .problems import IN_DIMS, Problem

#: Losses whose times are in the table.
MARKS = (1e-4, 1e-5, 1e-6, 1e-7)
#: Points of a trace whose losses are evaluated.
POINTS = 300
#: Seconds after which a way without a step is given up.
FIRST = 60.0

OURS, GEODESIC = "jacfn", "jacfn (geodesic)"
QR, CHOLESKY = "torch-levenberg-marquardt (qr)", "torch-levenberg-marquardt (cholesky)"
SCIPY_LM, PYPOSE = "scipy lm (torch.func Jacobian)", "pypose LM"


class OutOfTimeError(Exception):
    """Thrown out of whatever is running."""


class Recorder:
    """Takes copies of weights, with the seconds since it was made; the losses are evaluated afterwards."""

    def __init__(self, limit: float) -> None:
        self.limit, self.begin = limit, time.perf_counter()
        self.seconds: list[float] = []
        self.weights: list[Tensor] = []

    def __call__(self, weights: Tensor) -> None:
        """Record; throws when the time is up, but not before there is a step."""
        self.seconds.append(time.perf_counter() - self.begin)
        self.weights.append(weights.detach().clone())
        if self.seconds[-1] > self.limit and self.stepped:
            raise OutOfTimeError

    @property
    def stepped(self) -> bool:
        """Whether the weights have left the start."""
        return moved(self.weights)


def moved(weights: Sequence[Tensor]) -> bool:
    """Whether not all are the first."""
    return any(not torch.equal(some, weights[0]) for some in weights)


@contextmanager
def first_step(record: Recorder) -> Iterator[None]:
    """Throws where no step has been made in time; compiled code comes to its end before."""

    def ring(*_: object) -> None:
        if not record.stepped:
            raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, FIRST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Trace:
    """Seconds, and the lowest loss until then."""

    seconds: np.ndarray
    losses: np.ndarray
    records: int
    stepped: bool = True

    @property
    def lowest(self) -> float:
        """The lowest loss of all."""
        return float(self.losses[-1])

    def until(self, loss: float) -> float:
        """Seconds until a loss is reached; infinity if it is not."""
        reached = np.flatnonzero(self.losses <= loss)
        return float(self.seconds[reached[0]]) if len(reached) else math.inf

    @property
    def goal(self) -> float:
        """A loss 1 % above the lowest one."""
        return 1.01 * self.lowest

    def over(self, other: Trace) -> float:
        """Its seconds to its goal / the seconds of another to that."""
        return self.until(self.goal) / other.until(self.goal)


def trace(problem: Problem, seconds: Sequence[float], weights: Sequence[Tensor]) -> Trace:
    """Evaluate what was recorded: all points, or some that are spread evenly over the logarithm of the time."""
    chosen = np.arange(len(seconds))
    if len(chosen) > POINTS:
        marks = np.geomspace(max(seconds[0], 1e-4), seconds[-1], POINTS)
        chosen = np.unique(np.append(np.searchsorted(seconds, marks).clip(max=len(seconds) - 1), len(seconds) - 1))
    losses = [problem.loss(weights[i]) for i in chosen]
    lowest = np.fmin.accumulate(np.nan_to_num(losses, nan=np.inf))
    return Trace(np.asarray(seconds)[chosen], lowest, len(seconds), moved(weights))


# --- the ways -------------------------------------------------------------------------------------

Way = Callable[[Problem, Recorder], None]


def _ours(**options: object) -> Way:
    def run(problem: Problem, record: Recorder) -> None:
        def callback(state: State) -> None:
            record(state.x)

        jacfn.levenberg_marquardt(
            problem.residual,
            problem.work.params,
            *problem.data,
            in_dims=IN_DIMS,
            max_steps=10**6,
            ftol=0,
            xtol=0,
            gtol=0,
            callback=callback,
            **options,
        )

    return run


WAYS: dict[str, Way] = {
    OURS: _ours(),
    GEODESIC: _ours(geodesic=True),
    QR: torch_levenberg_marquardt.fit("qr"),
    CHOLESKY: torch_levenberg_marquardt.fit("cholesky"),
    "scipy trf (torch.func Jacobian)": scipy_fits.fit("trf"),
    SCIPY_LM: scipy_fits.fit("lm"),
    PYPOSE: pypose.fit,
    "torch LBFGS (strong Wolfe)": optimizers.lbfgs,
    "torch Adam": optimizers.adam,
}
#: The ways by Levenberg and Marquardt: those of the race with few samples.
ALIKE = (OURS, GEODESIC, QR, CHOLESKY, SCIPY_LM, PYPOSE)
#: Samples beyond which PyPose is left out: at 20,000 it takes more than 24 GiB before its first step.
MOST_OF_PYPOSE = 5_000
#: The ways that are raced from several starts.
PAIR = (OURS, CHOLESKY)


def dry_run(problem: Problem) -> None:
    """What every way needs of PyTorch, which imports it at first use."""
    vmap(jacrev(problem.residual), IN_DIMS)(problem.work.params, problem.work.x[:2], problem.y[:2])


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raced:
    """The first run of a way in this process, and a second one."""

    cold: Trace
    warm: Trace


def race(problem: Problem, limit: float, ways: Mapping[str, Way] = WAYS) -> tuple[dict[str, Raced], dict[str, str]]:
    """Two runs of every way; and the reasons of those that cannot run."""
    dry_run(problem)
    raced: dict[str, Raced] = {}
    failed: dict[str, str] = {}
    for name, way in ways.items():
        try:
            cold, warm = run(problem, way, limit), None
            if cold.records > 2:  # else a single step takes longer than the time
                warm = run(problem, way, limit)
            raced[name] = Raced(cold, warm or cold)
            print(f"race: {name}: {cold.lowest:.2e}, {raced[name].warm.lowest:.2e}", flush=True)
        except Exception as error:
            failed[name] = one_line(error)
            print(f"race: {name} fails: {failed[name]}", flush=True)
        gc.collect()
    return raced, failed


def run(problem: Problem, way: Way, limit: float) -> Trace:
    """One run of a way."""
    record = Recorder(limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        try:
            record(problem.start)
            with first_step(record):
                way(problem, record)
        except OutOfTimeError:
            pass
    return trace(problem, record.seconds, record.weights)


# --- saying what came out -------------------------------------------------------------------------

HOW = f"""\
The mean of the squared residuals, evaluated in float64 at the weights that each way had so far; the lowest until then.
All start from the same weights, with tolerances of zero, and end when the time is up or by themselves. Residuals and
Jacobians are float32 everywhere; SciPy's vectors and factorisations are float64. Times are those of the second run of
each way in its process; the first one, in which JAX compiles and jacfn learns the structure of the network, has a
column. records: points that were recorded: steps, or evaluations of the residuals. to lowest: seconds to a loss 1 %
above the lowest one. jacfn there: seconds that jacfn takes to get as low as that. A way that has not made its first
step when it is {FIRST:g} s old is given up."""

FEW = """\
The race of the ways by Levenberg and Marquardt at fewer samples, where PyPose can run: each row of its Jacobian takes a
backward pass of the whole batch, so that its time and its memory grow with the square of the number of samples. Above
5,000 it is left out."""

SEEDS = """\
The race from the weights that each seed gives the network. lowest: the lowest loss. to lowest: seconds of
torch-levenberg-marquardt (cholesky) to a loss 1 % above its lowest one. jacfn there: seconds that jacfn takes to get
as low as that. ratio: of these two. All are of the second runs; the last column is the ratio in the first ones."""


def header() -> list[str]:
    """Of the table."""
    times = [f"s to {mark:g}" for mark in MARKS]
    first = f"first run: s to {MARKS[1]:g}"
    return ["way", "records", "lowest loss", *times, first, "to lowest", "jacfn there"]


def rows(raced: Mapping[str, Raced]) -> Iterator[list[str]]:
    """Of the table, the lowest loss first."""
    ours = raced.get(OURS)
    for name, result in sorted(raced.items(), key=lambda item: item[1].warm.lowest):
        warm = result.warm
        if not warm.stepped:
            yield [f"{name}: no step within {FIRST:g} s", *["-"] * (len(header()) - 1)]
            continue
        marks = [_seconds(warm.until(mark)) for mark in MARKS]
        there = _seconds(ours.warm.until(warm.goal)) if ours else "-"
        first = _seconds(result.cold.until(MARKS[1]))
        yield [name, str(warm.records), f"{warm.lowest:.2e}", *marks, first, _seconds(warm.until(warm.goal)), there]


def _seconds(value: float) -> str:
    return "-" if math.isinf(value) else tables.significant(value)


def section(
    problem: Problem, raced: Mapping[str, Raced], failed: Mapping[str, str], limit: float, how: str = HOW
) -> str:
    """The table and the targets."""
    title = heading(f"Loss against time: {problem.work.about}, {len(problem.work.x)} samples, {limit:g} s")
    notes = [f"{name}: {reason}" for name, reason in failed.items()]
    table = "\n".join([tables.grid(header(), list(rows(raced))), *notes])
    return "\n\n".join([title, prose(how), table, targets(list(_targets(raced)))])


def _targets(raced: Mapping[str, Raced]) -> Iterator[list[str]]:
    """A lower loss in less time: for each peer, to its own lowest loss, from a warm and from a cold start."""
    ours = raced.get(OURS)
    for name, result in raced.items():
        if ours is None or name.startswith(OURS):
            continue
        for which in ("warm", "cold"):
            theirs, mine = getattr(result, which), getattr(ours, which)
            if theirs.lowest < theirs.losses[0]:
                yield at_least(f"time of {name} to its lowest loss / jacfn to that, {which}", 1, theirs.over(mine))


def seeds_section(raced: Mapping[int, Mapping[str, Raced]], limit: float) -> str:
    """A row for each seed, and the lowest of the ratios as a target."""
    header = ["seed", "jacfn: lowest", "theirs: lowest", "to lowest", "jacfn there", "ratio", "first runs"]
    body, ratios = [], []
    for seed, ways in raced.items():
        if not ways.keys() >= set(PAIR):
            body.append([str(seed), *["-"] * (len(header) - 1)])
            continue
        ours, theirs = (ways[name] for name in PAIR)
        ratios.append(theirs.warm.over(ours.warm))
        losses = [f"{result.warm.lowest:.2e}" for result in (ours, theirs)]
        times = [result.warm.until(theirs.warm.goal) for result in (theirs, ours)]
        both = [tables.significant(ratio) for ratio in (ratios[-1], theirs.cold.over(ours.cold))]
        body.append([str(seed), *losses, *map(_seconds, times), *both])
    wanted = at_least(f"lowest ratio over {len(ratios)} seeds", 1, min(ratios, default=math.nan))
    title = heading(f"The race from {len(raced)} starts, {limit:g} s")
    return "\n\n".join([title, prose(SEEDS), tables.grid(header, body), targets([wanted])])
