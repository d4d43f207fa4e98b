"""One picture of all timed parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import report, tables
from .compare import Compared, Part


def plot(results: Mapping[Part, Sequence[Compared]], path: Path) -> None:
    """A panel for each part: bars of the ratios, a group for each work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = {part: [m for m in measured if part.unit in m.seconds] for part, measured in results.items()}
    drawn = {part: measured for part, measured in drawn.items() if measured}
    if not drawn:
        return
    figure, panels = plt.subplots(len(drawn), figsize=(10, 3.2 * len(drawn)), layout="constrained", squeeze=False)
    for axes, (part, measured) in zip(panels[:, 0], drawn.items(), strict=True):
        _panel(axes, part, measured)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"saved {path}")


def _panel(axes: object, part: Part, measured: Sequence[Compared]) -> None:
    from matplotlib import pyplot as plt

    shown = [method for method in part.methods if method.name != part.unit]
    for i, method in enumerate(shown):
        shade = plt.get_cmap("Blues")(0.8) if method.ours else plt.get_cmap("Greys")(0.9 - 0.7 * i / len(shown))
        places = [(k, part.ratio(m, method.name)) for k, m in enumerate(measured) if method.name in m.seconds]
        bars = report.ratio_bars(axes, places, i, len(shown), color=shade, label=method.name)
        axes.bar_label(bars, [tables.significant(ratio) for _, ratio in places], padding=2, fontsize="x-small")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.margins(x=0.02, y=0.15)
    axes.set_yscale("log")
    axes.set_xticks(range(len(measured)), [f"{m.work.name}\n{m.work.rows} x {m.work.columns}" for m in measured])
    axes.set_title(part.title, fontsize="medium", loc="left")
    axes.set_ylabel(f"time / time of\n{part.unit}", fontsize="small")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
