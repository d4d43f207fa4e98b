"""The picture of a fit."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from jacfn._demo.fit import Fit

BLUE, ORANGE, GREY = "#1f6fb2", "#d9741a", "#8a8a8a"


def save(fit: Fit, about: str, path: Path) -> None:
    """Write the losses and the singular values of J as one PNG, all of it or nothing."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")  # no pyplot: no global state, no display
    FigureCanvasAgg(figure)
    figure.suptitle(about)
    left, right = figure.subplots(1, 2)
    _losses(left, fit)
    _singular_values(right, fit)
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=150)
    path.write_bytes(whole.getvalue())


def _losses(axes: Axes, fit: Fit) -> None:
    number = [step.number for step in fit.steps]
    axes.semilogy(number, [step.loss for step in fit.steps], "o-", color=BLUE, ms=4, label="training")
    axes.semilogy(number, [step.held_loss for step in fit.steps], "s-", color=ORANGE, ms=4, label="held out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))  # losses seldom span many decades
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title="Damped Gauss-Newton", xlabel="step", ylabel="mean squared residual")
    _finish(axes)


def _singular_values(axes: Axes, fit: Fit) -> None:
    for label, J, color in (("start", fit.first, GREY), ("end", fit.last, BLUE)):
        values = torch.linalg.svdvals(J).cpu()
        values = values[values > values[0] * 1e-16 * max(J.shape)]  # what rounding leaves says nothing
        axes.semilogy(range(1, len(values) + 1), values, color=color, lw=2, label=label)
    rows, columns = fit.last.shape
    axes.set(title=f"Singular values of J, {rows} × {columns}", xlabel="index", ylabel="singular value")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
