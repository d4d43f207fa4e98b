"""What a run of the dense benchmark says: its table, the targets and the plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import tables
from .measure import SOME_COLUMNS, Measured
from .methods import BASELINE, METHODS, Method

HOW = f"""\
ratio: time of {BASELINE} / time of the method, above 1 is faster. Each time is the smaller of two medians:
all methods are timed first to last, then last to first; the last block shows both. Results are pytrees with
leaves (N, *out, *in), checked before they are timed: the last line has the largest difference of any method
from {BASELINE}, relative to a leaf's largest entry. floor: time to fill a buffer of the result's size,
already in memory (warm) or new (cold). Attention runs on PyTorch's MATH backend, which vmap can batch."""

# --- the table ------------------------------------------------------------------------------------


Ratio = Callable[[Measured, str], float]
#: What no method can be faster than: its name, and the seconds.
Floor = tuple[str, Callable[[Measured], float]]
FLOORS: tuple[Floor, ...] = (("warm fill", lambda m: m.floor[0]), ("cold fill", lambda m: m.floor[1]))


def table(
    results: Sequence[Measured],
    methods: Sequence[Method] = METHODS,
    ratio: Ratio = Measured.ratio,
    floors: Sequence[Floor] = FLOORS,
) -> str:
    """Ratios, milliseconds, floors and both medians as one table, with its notes beneath."""
    numbers: dict[str, int] = {}

    def cell(measured: Measured, method: str, show: Callable[[Measured, str], str]) -> str:
        text = show(measured, method) if method in measured.seconds else "-"
        note = measured.notes.get(method)
        return f"{text} [{numbers.setdefault(note, len(numbers) + 1)}]" if note else f"{text}    "

    def block(title: str, show: Callable[[Measured, str], str]) -> Iterator[list[str]]:
        yield []
        yield [title, *("" for _ in results)]
        for method in methods:
            yield ["  " + method.name, *(cell(m, method.name, show) for m in results)]

    rows = [
        *block("ratio", lambda m, method: tables.significant(ratio(m, method))),
        *block("milliseconds", lambda m, method: tables.milliseconds(m.best(method))),
        *(
            [f"  floor, {name}", *(tables.milliseconds(seconds(m)) + "    " for m in results)]
            for name, seconds in floors
        ),
        *block("both medians", _both),
        [],
        ["largest difference", *(f"{max(m.differences.values()):.1e}    " for m in results)],
    ]
    header = ["J, rows x columns", *(f"{m.work.name} {m.work.rows}x{m.work.columns}    " for m in results)]
    notes = [f"[{number}] {note}" for note, number in numbers.items()]
    return "\n".join([tables.grid(header, rows[1:]), *notes])


def _both(measured: Measured, method: str) -> str:
    there, back = measured.seconds[method]
    return tables.milliseconds(there) if there == back else "/".join(map(tables.milliseconds, (there, back)))


# --- the targets ----------------------------------------------------------------------------------

#: Least ratio of jac_quasilinear to the baseline.
LEAST_RATIO = {"mlp": 1.0, "cnn": 1.2, "transformer": 0.8, "lm": 0.8, "conv3d": 0.8}
#: Least ratio of the whole Jacobian of the LM net in forward mode to a few of its columns.
LEAST_COLUMNS = 20.0
#: Least ratio of the naive loop on the conv3d net to jacfn.
LEAST_LOOP = 400.0


def targets(results: Sequence[Measured]) -> str:
    """The named targets of the works that were run, measured and met or missed."""
    return tables.grid(["target", "wanted", "measured", ""], [row for m in results for row in _targets(m)])


def _targets(m: Measured) -> Iterator[list[str]]:
    name = m.work.name
    if name in LEAST_RATIO:
        text = f"{name}: jac_quasilinear as fast as {BASELINE}"
        yield target(text, LEAST_RATIO[name], m.ratio("jacfn.jac_quasilinear"))
    if m.columns is not None:
        # The faster of PyTorch's two forward modes, so that the target is not met by a slow opponent.
        whole = min(m.best(method) for method in ("vmap(jacfwd)", "jacfwd of the batch"))
        text = f"{name}: all {m.work.columns} columns by torch's jacfwd / {SOME_COLUMNS} by jac_fwd"
        yield target(text, LEAST_COLUMNS, whole / min(m.columns))
    if name == "conv3d":
        ours = min((method.name for method in METHODS if method.ours), key=m.best)
        yield target(f"{name}: naive loop / {ours}", LEAST_LOOP, m.best("naive loop") / m.best(ours))


def target(text: str, wanted: float, measured: float) -> list[str]:
    """A row of the table of targets; what could not be measured is not a number, and missed."""
    verdict = "met" if measured >= wanted else "missed"
    return [text, f"{wanted:g}x", "-" if math.isnan(measured) else f"{tables.significant(measured)}x", verdict]


# --- the plot -------------------------------------------------------------------------------------


def ratio_bars(axes: Any, bars: Sequence[tuple[int, float]], place: int, count: int, *, color: Any, label: str) -> Any:
    """Bars from 1 to each ratio, for ``(group, ratio)``, in the given one of ``count`` places of a group."""
    width = 0.85 / count
    return axes.bar(
        [group + (place - (count - 1) / 2) * width for group, _ in bars],
        [height - 1 for _, height in bars],
        width,
        bottom=1,
        color=color,
        label=label,
    )


def plot(
    results: Sequence[Measured],
    path: Path,
    methods: Sequence[Method] = METHODS,
    ratio: Ratio = Measured.ratio,
    label: str = f"times as fast as {BASELINE}",
    unit: str = BASELINE,
) -> None:
    """Bars of the ratios, one group for each work; ``unit`` is the method whose ratio is 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(2.2 * len(results) + 4, 4.5), layout="constrained")
    shown = [method for method in methods if method.name != unit]
    for i, method in enumerate(shown):
        colour = (
            plt.get_cmap("Blues")(0.9 - 0.2 * i) if method.ours else plt.get_cmap("Greys")(0.95 - 0.75 * i / len(shown))
        )
        bars = [(k, ratio(m, method.name)) for k, m in enumerate(results) if method.name in m.seconds]
        container = ratio_bars(axes, bars, i, len(shown), color=colour, label=method.name)
        if method.ours:
            labels = [tables.significant(height) for _, height in bars]
            axes.bar_label(container, labels, padding=3, fontsize="x-small", rotation=90)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.margins(x=0.02, y=0.12)
    axes.set_yscale("log")
    names = [f"{m.work.name}\n{m.work.rows} x {m.work.columns}" for m in results]
    axes.set_xticks(range(len(results)), names)
    axes.set_ylabel(label)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"saved {path}")
