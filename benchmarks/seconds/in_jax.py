"""JAX's figures beside jacfn's: the Laplacian of the MLPs, in a process with an interpreter of its own."""

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
from ..operators.compare import Compared, heading, prose
from ..operators.in_jax import CHILD, LIMIT
from . import ways
from .laplacians import OURS
from .works import Field

HEADER = ("method", "work", "JAX", "milliseconds", "both medians", "jacfn", "JAX / jacfn", "difference")

HOW = f"""\
A process for each work, with an interpreter of its own on as many cores as there are threads; the time of compiling is
left out. jacfn: milliseconds of {OURS}, eager, in the table above. difference: largest, from torch.func's result,
relative to the largest entry. folx propagates the forward Laplacian, with its default options."""


def section(works: Sequence[Field], known: Mapping[str, Compared], folder: Path, threads: int, seconds: float) -> str:
    """The table; or why there is none. ``known``: what was measured of each work here."""
    title = heading("JAX, in its own process")
    python = interpreter(folder, "jax")
    if not python.exists():
        return f"{title}\n\nnot run: no environment in {folder} (python -m benchmarks.jax_env makes it)"
    rows = [row for work in works for row in _rows(work, known, child(python, work, threads, seconds))]
    return "\n\n".join([title, prose(HOW), tables.grid(HEADER, rows)])


def child(python: Path, work: Field, threads: int, seconds: float) -> dict[str, Any]:
    """Run the child on a work; its answer, with every result's difference from torch.func's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = {f"weight {name}": weight.numpy() for name, weight in work.params.items()}
        np.savez(folder / "data.npz", x=work.x.numpy(), **weights)
        task = {"net": "lm", "kinds": ["laplacian"], "weights": list(work.params)}  # there any tanh MLP
        (folder / "task.json").write_text(json.dumps(task | {"threads": threads, "seconds": seconds}))
        print(f"\nJAX: {work.name}", flush=True)
        command = [str(python), str(CHILD), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            return {"version": "-", "methods": {"all": {"error": said}}}
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        wanted = {"": ways.by_hessian(work.of_sample, work.x).sum(1)}
        for method in (method for method in answer["methods"].values() if "saved" in method):
            method["difference"] = difference({"": torch.from_numpy(np.load(folder / method["saved"]))}, wanted)
            if not method["difference"] < TOLERANCE:
                method["error"] = f"wrong by {method['difference']:.1e}"
    return answer


def _rows(work: Field, known: Mapping[str, Compared], answer: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, method in answer["methods"].items():
        start = [name, work.name, answer["version"]]
        if "error" in method:
            yield [*start, *["-"] * 4, f"fails: {method['error']}"]
            continue
        measured = known.get(work.name)
        ours = measured.best(OURS) if measured and OURS in measured.seconds else float("nan")
        theirs = timing.best(method["seconds"])
        figures = [tables.milliseconds(theirs), "/".join(map(tables.milliseconds, method["seconds"]))]
        ratio = tables.significant(theirs / ours)
        yield [*start, *figures, tables.milliseconds(ours), ratio, f"{method['difference']:.1e}"]
