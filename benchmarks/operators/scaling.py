"""The kernel of ever more samples, and of ever wider networks: time, and memory at its peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import jacfn

from .. import tables, timing
from ..measure import SLOW, TOLERANCE, difference
from ..peers.tutorial import CONTRACTION, contraction, products
from ..resident import peak_growth
from ..works import Work, make_work, mlp_net
from . import children
from .compare import at_most, heading, prose, targets

SAMPLES = (64, 128, 256, 512, 1024, 2048)
WIDTHS = (256, 512, 1024, 2048, 4096)
#: A dense Jacobian larger than this is not made.
LARGEST = 2 << 30

OURS, THEIRS = "jacfn.ntk", CONTRACTION.name
WAYS: dict[str, Callable[[Work], Tensor]] = {
    OURS: lambda work: jacfn.ntk(work.fn, work.params, work.x),
    THEIRS: lambda work: contraction(work, work.x, work.x),
}

HOW = f"""\
Each figure from a new process, in which the way was called on a tiny network before. Peak: growth of the resident
size over the first call less the kernel itself. Time: median of calls after it, or one if it takes
more than {SLOW:g} s. {THEIRS} is left out
where a dense Jacobian is larger than {LARGEST >> 30} GiB. One pair of samples of each kernel is compared with the
tutorial's other algorithm."""


@dataclass(frozen=True)
class Point:
    """A network and a number of samples, and what was measured: way to ``{"seconds", "peak"}`` or ``{"error"}``."""

    about: str
    samples: int
    widths: tuple[int, ...]
    measured: dict[str, dict[str, Any]]

    @property
    def rows(self) -> int:
        """M."""
        return self.samples * self.widths[-1]

    @property
    def weights(self) -> int:
        """P."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths))

    @property
    def dense(self) -> int:
        """Bytes of a dense Jacobian."""
        return 4 * self.rows * self.weights

    def figure(self, way: str, what: str) -> float:
        """Seconds or peak bytes of a way; not a number where there is none."""
        return float(self.measured.get(way, {}).get(what, math.nan))


# --- one point, in a process of its own -----------------------------------------------------------


def child(way: str, samples: int, widths: Sequence[int], threads: int, seconds: float) -> dict[str, float]:
    """Measure one way at one point."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = WAYS[way]
    run(make_work("", "", mlp_net(3, 4, 4, 2), torch.randn(5, 3)))
    work = make_work("", "", mlp_net(*widths), torch.randn(samples, widths[0]))
    kernel, growth, _ = peak_growth(lambda: run(work))
    beyond = growth - kernel.numel() * kernel.element_size()
    pair = products(work, work.x[:1], work.x[-1:])
    error = difference({"": kernel[:1, -1:]}, {"": pair})
    if not error < TOLERANCE:
        raise AssertionError(f"wrong by {error:.1e}")
    del kernel
    _, again = timing.once(lambda: run(work))  # without what the first call sets up
    if again < SLOW:
        again = timing.median(lambda: run(work), seconds)
    return {"seconds": again, "peak": beyond, "difference": error}


def points(samples: Sequence[int], widths: Sequence[int], threads: int, seconds: float) -> list[list[Point]]:
    """Both curves: over the samples, over the widths."""

    def point(about: str, count: int, *sizes: int) -> Point:
        empty = Point(about, count, sizes, {})
        ways = [way for way in WAYS if way == OURS or empty.dense <= LARGEST]
        options = {"samples": count, "widths": sizes, "threads": threads, "seconds": seconds}
        result = Point(about, count, sizes, {way: children.run("scaling", way=way, **options) for way in ways})
        print("scaling:", *line(result), flush=True)
        return result

    over_samples = [point(f"N={n}, 784-256-128-10", n, 784, 256, 128, 10) for n in samples]
    over_widths = [point(f"N=64, 784-{width}-{width}-10", 64, 784, width, width, 10) for width in widths]
    return [over_samples, over_widths]


# --- saying what came out -------------------------------------------------------------------------

HEADER = (
    "MLP",
    "J, rows x columns",
    "J, MiB",
    "kernel, MiB",
    f"{OURS}, ms",
    "peak, MiB",
    f"{THEIRS}, ms",
    "peak, MiB",
    "times as long",
)


def line(point: Point) -> list[str]:
    """A row of the table."""
    sizes = [f"{point.dense / 2**20:.0f}", tables.significant(4 * point.rows**2 / 2**20)]
    figures = [
        text
        for way in WAYS
        for text in (
            tables.milliseconds(point.figure(way, "seconds")),
            tables.significant(point.figure(way, "peak") / 2**20),
        )
    ]
    ratio = point.figure(THEIRS, "seconds") / point.figure(OURS, "seconds")
    return [point.about, f"{point.rows} x {point.weights}", *sizes, *figures, tables.significant(ratio)]


def section(curves: Sequence[Sequence[Point]]) -> str:
    """Both curves as a table, errors, and targets."""
    rows = [row for curve in curves for row in ([], *map(line, curve))][1:]
    errors = [
        f"{point.about}, {way}: {measured['error']}"
        for curve in curves
        for point in curve
        for way, measured in point.measured.items()
        if "error" in measured
    ]
    texts = [
        heading("NTK of more samples, and of wider networks"),
        prose(HOW),
        "\n".join([tables.grid(HEADER, rows), *errors]),
    ]
    if wanted := list(_targets(*curves)):
        texts.append(targets(wanted))
    return "\n\n".join(texts)


def _targets(over_samples: Sequence[Point], over_widths: Sequence[Point]) -> Iterator[list[str]]:
    """The structured algorithm takes time with N² and with P, and has no Jacobian in memory."""
    if len(over_samples) >= 3:
        low, high = over_samples[-3], over_samples[-1]
        square = (high.samples / low.samples) ** 2
        yield at_most(f"{OURS}: time at N={high.samples} / N={low.samples}", 1.25 * square, _growth(low, high))
    if len(over_widths) >= 2:
        low, high = over_widths[0], over_widths[-1]
        text = f"{OURS}: time at width {high.widths[1]} / {low.widths[1]}, weights {high.weights / low.weights:.0f}x"
        yield at_most(text, round(high.weights / low.weights), _growth(low, high))
    for curve in (over_samples, over_widths):
        if curve:
            share = curve[-1].figure(OURS, "peak") / curve[-1].dense
            yield at_most(f"{OURS}: peak / dense J, {curve[-1].about}", 0.1, share)


def _growth(low: Point, high: Point) -> float:
    return high.figure(OURS, "seconds") / low.figure(OURS, "seconds")


def plot(curves: Sequence[Sequence[Point]], path: Path) -> None:
    """Time above, peak below; over the samples left, over the widths right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex="col")
    for column, (curve, label) in enumerate(zip(curves, ("samples N", "width"), strict=True)):
        x = [point.samples if column == 0 else point.widths[1] for point in curve]
        for way, colour in ((OURS, "tab:blue"), (THEIRS, "0.5")):
            axes[0, column].plot(x, [1e3 * p.figure(way, "seconds") for p in curve], "o-", color=colour, label=way)
            peaks = [max(p.figure(way, "peak"), 2**20) / 2**20 for p in curve]
            axes[1, column].plot(x, peaks, "o-", color=colour, label=way)
        axes[1, column].plot(x, [p.dense / 2**20 for p in curve], "--", color="0.3", label="dense J")
        axes[1, column].plot(x, [4 * p.rows**2 / 2**20 for p in curve], ":", color="0.3", label="kernel")
        axes[1, column].set_xlabel(label)
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(x, map(str, x))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].set(ylabel="milliseconds", title="MLP 784-256-128-10")
    axes[0, 1].set(title="MLP 784-width-width-10, N = 64")
    axes[1, 0].set(ylabel="MiB at the peak, beyond the kernel")
    axes[1, 1].legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"saved {path}")
