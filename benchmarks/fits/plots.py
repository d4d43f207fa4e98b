"""Loss against time, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .race import OURS, Raced


def plot(raced: Mapping[str, Raced], title: str, path: Path) -> None:
    """The first run of each way left, the second right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    peers = [name for name in raced if not name.startswith(OURS)]
    colours = dict(zip(peers, plt.get_cmap("tab10").colors[1:], strict=False))
    for axes, which in zip(panels, ("cold", "warm"), strict=True):
        for name, result in raced.items():
            trace = getattr(result, which)
            if not trace.stepped:
                continue
            ours = name.startswith(OURS)
            style = {"color": "tab:blue" if ours else colours.get(name, "0.5"), "linewidth": 2.2 if ours else 1.2}
            dashes = "--" if ours and name != OURS else "-"
            axes.step(trace.seconds, trace.losses, dashes, where="post", label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="seconds", title={"cold": "first run", "warm": "second run"}[which])
        axes.set_xlim(left=1e-3)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared residual, lowest so far")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"saved {path}")
