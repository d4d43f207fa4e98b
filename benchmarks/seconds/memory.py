"""Peaks of memory: each way on each work in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: memory that is no way's

from .. import tables
from ..memory import ALLOCATOR
from ..operators import children
from ..operators.compare import Part, at_least, heading, prose, targets
from ..resident import peak_growth
from . import laplacians, training
from .attention import plain
from .works import build

_MEASURED = (laplacians.MLP, training.TRAINING, laplacians.TRANSFORMER, laplacians.WAVEFUNCTION)
PARTS = {part.name: part for part in _MEASURED}
#: Work of a part to the way of a peer and the least ratio of its peak to that of jacfn.
LEAST = {
    ("mlp", "mlp30"): (laplacians.HESSIAN, 5.0),
    ("mlp", "mlp90"): (laplacians.HESSIAN, 10.0),
    ("training", "mlp30"): (training.LOOP, 2.0),
}

_BLOCK = int(ALLOCATOR["MALLOC_MMAP_THRESHOLD_"])

HOW = f"""\
In MiB: the growth of the resident size at its peak over one call, its result included; a new process for each, in which
the way was called twice before. The allocator gives blocks of {_BLOCK >> 10} KiB and more back to the system when they
are freed, so the peak is that of all tensors that are alive at once and of the kernels' workspaces."""

#: Part and work to what was measured there: way to ``{"peak": bytes}`` or ``{"error": text}``.
Peaks = Mapping[tuple[str, str], Mapping[str, dict[str, Any]]]


def child(of: str, work: str, method: str, threads: int) -> dict[str, int]:
    """Measure one way."""
    torch.set_num_threads(threads)
    way = next(way for way in PARTS[of].methods if way.name == method)
    with plain():
        run = way.make(build(work))
        for _ in range(2):
            run()
        _, growth, _ = peak_growth(run)
    return {"peak": growth}


def measure(parts: Sequence[str], works: Sequence[str], threads: int) -> Peaks:
    """All ways of the parts on the works."""
    peaks: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for part in (PARTS[name] for name in PARTS if name in parts):
        for work in (name for name in part.works if name in works):
            for way in part.methods:
                if way.skip(build(work)):
                    continue
                options = {"of": part.name, "work": work, "method": way.name, "threads": threads}
                figures = children.run("memory", module="benchmarks.second_order", **options)
                print("memory:", work, way.name, figures, flush=True)
                peaks.setdefault((part.name, work), {})[way.name] = figures
    return peaks


# --- saying what came out -------------------------------------------------------------------------


def section(peaks: Peaks) -> str:
    """A table for each part, and the targets."""
    grids = [_table(PARTS[name], peaks) for name in dict.fromkeys(name for name, _ in peaks)]
    wanted = [row for place in peaks for row in _targets(place, peaks)]
    return "\n\n".join([heading("Memory"), prose(HOW), *grids, *([targets(wanted)] if wanted else [])])


def _table(part: Part, peaks: Peaks) -> str:
    works = {work: ways for (name, work), ways in peaks.items() if name == part.name}
    names = [way.name for way in part.methods if any(way.name in ways for ways in works.values())]
    rows = [[name, *(_mebibytes(ways.get(name, {})) for ways in works.values())] for name in names]
    failed = {f"{name}: {w[name]['error']}" for w in works.values() for name in w if "error" in w[name]}
    return "\n".join([tables.grid([f"{part.name}, MiB", *works], rows), *sorted(failed)])


def _mebibytes(figures: Mapping[str, Any]) -> str:
    return tables.significant(figures.get("peak", math.nan) / 2**20)


def _targets(place: tuple[str, str], peaks: Peaks) -> Iterator[list[str]]:
    if place not in LEAST:
        return
    part, work = place
    peer, least = LEAST[place]
    for ours in (way.name for way in PARTS[part].methods if way.ours):
        theirs, mine = (float(peaks[place].get(name, {}).get("peak", math.nan)) for name in (peer, ours))
        yield at_least(f"{part}, {work}: peak of {peer} / {ours}", least, theirs / max(mine, 1))
