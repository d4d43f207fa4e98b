"""Fits in JAX: data go to a process with an interpreter of its own, and what it found comes back."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..jax_env import interpreter
from . import race
from .problems import Problem

CHILD = Path(__file__).parents[1] / "peers" / "jax_fits_child.py"
#: A process that takes more seconds than this is given up.
LIMIT = 600
#: Name of a solver, and the arrays that it saved or the error that it met, with the rest of what it said.
Answers = Iterator[tuple[str, dict[str, Any]]]


def answers(part: str, data: Mapping[str, Any], folder: Path, threads: int, **task: Any) -> Answers:
    """Run the child on a part; what each solver answered, with its arrays under ``arrays``."""
    python = interpreter(folder, "jax")
    if not python.exists():
        yield "JAX", {"error": f"no environment in {folder} (python -m benchmarks.jax_env makes it)"}
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        np.savez(place / "data.npz", **data)
        (place / "task.json").write_text(json.dumps({"part": part, "threads": threads, **task}))
        command = [str(python), str(CHILD), str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
        except subprocess.SubprocessError as error:
            yield "JAX", {"error": (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]}
            return
        said = json.loads(done.stdout.splitlines()[-1])
        for solver, answer in said["results"].items():
            files = answer.get("saved", [])
            arrays = [np.load(place / file) for file in ([files] if isinstance(files, str) else files)]
            yield solver, answer | {"arrays": arrays}


def raced(problem: Problem, limit: float, folder: Path, threads: int) -> tuple[dict[str, race.Raced], dict[str, str]]:
    """The race of the solvers in JAX, as :func:`race.race` has it."""
    data = {"start": problem.start.numpy(), "x": problem.work.x.numpy(), "y": problem.y.numpy()}
    ran: dict[str, race.Raced] = {}
    failed: dict[str, str] = {}
    for solver, answer in answers("sinc", data, folder, threads, limit=limit):
        if "error" in answer:
            failed[solver] = answer["error"]
            continue
        ran[solver] = race.Raced(
            *(race.trace(problem, part["seconds"], torch.from_numpy(part["weights"])) for part in answer["arrays"])
        )
    return ran, failed
