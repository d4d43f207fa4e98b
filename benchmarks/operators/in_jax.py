"""JAX's figures beside jacfn's: it runs in a process of its own, with an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import tables, timing
from ..jax_env import interpreter
from ..measure import TOLERANCE, difference
from ..peers.tutorial import contraction
from ..works import Work
from .compare import Compared, heading, prose
from .flat import FLAT, dense
from .ntk import NTK

CHILD = Path(__file__).parents[1] / "peers" / "jax_child.py"
#: Environment to the kinds of methods that are run there.
KINDS = {"jax": ("flat", "ntk", "neural-tangents"), "neural-tangents": ("neural-tangents",)}
PARTS = {part.name: part for part in (FLAT, NTK)}
#: A work that takes more seconds than this is given up.
LIMIT = 900

HEADER = ("method", "result", "work", "JAX", "milliseconds", "both medians", "jacfn", "JAX / jacfn", "difference")

HOW = """\
A process for each work, with an interpreter of its own on as many cores as there are threads; the time of compiling
is left out. jacfn: milliseconds of jacfn materialize() and of jacfn.ntk in the tables above. difference: largest,
from torch.func's result, relative to the largest entry; J is compared by its product with three random vectors."""

#: Part and work to what was measured there.
Known = Mapping[tuple[str, str], Compared]


def section(works: Sequence[Work], known: Known, folder: Path, threads: int, seconds: float) -> str:
    """The table; or why there is none."""
    title = heading("JAX, in its own process")
    there = [name for name in KINDS if interpreter(folder, name).exists()]
    if not there:
        return f"{title}\n\nnot run: no environments in {folder} (python -m benchmarks.jax_env makes them)"
    rows = [
        row
        for name in there
        for work in works
        if (kinds := _kinds(name, work))
        for row in _rows(work, known, child(interpreter(folder, name), work, kinds, threads, seconds))
    ]
    rows.sort(key=lambda row: row[1], reverse=True)  # flat J first
    notes: dict[str, int] = {}
    for row in rows:
        if row[-1].startswith("fails"):
            row[-1] = f"[{notes.setdefault(row[-1], len(notes) + 1)}]"
    lines = [f"[{number}] {note}" for note, number in notes.items()]
    return "\n\n".join([title, prose(HOW), "\n".join([tables.grid(HEADER, rows), *lines])])


def _kinds(environment: str, work: Work) -> list[str]:
    return [kind for kind in KINDS[environment] if work.name in PARTS["flat" if kind == "flat" else "ntk"].works]


def child(python: Path, work: Work, kinds: Sequence[str], threads: int, seconds: float) -> dict[str, Any]:
    """Run the child on a work; its answer, with every result's difference from torch.func's."""
    probe = torch.randn(work.columns, 3, generator=torch.Generator().manual_seed(1))
    wanted = {"ntk": lambda: contraction(work, work.x, work.x), "flat": lambda: dense(work) @ probe}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = {f"weight {name}": weight.numpy() for name, weight in work.params.items()}
        np.savez(folder / "data.npz", x=work.x.numpy(), probe=probe.numpy(), **weights)
        task = {"net": work.name, "kinds": kinds, "weights": list(work.params), "threads": threads, "seconds": seconds}
        (folder / "task.json").write_text(json.dumps(task))
        print(f"\nJAX: {work.name}, {', '.join(kinds)}", flush=True)
        command = [str(python), str(CHILD), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            return {"version": "-", "methods": {"all": {"kind": kinds[0], "error": said}}}
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        for method in answer["methods"].values():
            if "saved" in method:
                result = torch.from_numpy(np.load(folder / method["saved"]))
                reference = wanted[method["kind"]]()
                method["difference"] = difference({"": result.reshape(reference.shape)}, {"": reference})
                if not method["difference"] < TOLERANCE:
                    method["error"] = f"wrong by {method['difference']:.1e}"
    return answer


def _rows(work: Work, known: Known, answer: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, method in answer["methods"].items():
        part = PARTS[method["kind"] if method["kind"] in PARTS else "ntk"]
        result = {"flat": "flat J", "ntk": "NTK"}[part.name]
        start = [name, result, work.name, answer["version"]]
        if "error" in method:
            yield [*start, *["-"] * 4, f"fails: {method['error']}"]
            continue
        measured = known.get((part.name, work.name))
        ours = measured.best(part.unit) if measured and part.unit in measured.seconds else float("nan")
        theirs = timing.best(method["seconds"])
        figures = (tables.milliseconds(theirs), "/".join(map(tables.milliseconds, method["seconds"])))
        ratio = theirs / ours
        yield [*start, *figures, tables.milliseconds(ours), tables.significant(ratio), f"{method['difference']:.1e}"]
