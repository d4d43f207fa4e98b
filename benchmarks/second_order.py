"""Second derivatives: laplacian, hessian_diag and hessian against nested autograd and other packages.

``python -m benchmarks.second_order`` prints a section for each part, with a table and its targets; ``--save`` keeps
them and a plot. Peers that are not installed are left out: ``pip install --no-deps -r benchmarks/peers.txt``, and
``python -m benchmarks.jax_env`` for JAX.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import tables
from .arguments import some_of
from .jax_env import FOLDER
from .operators import plots
from .operators.compare import Compared, Part, compare, section
from .seconds import budget, in_jax, memory, tracing
from .seconds.attention import plain
from .seconds.diagonals import DIAGONAL
from .seconds.laplacians import MLP, TRANSFORMER, WAVEFUNCTION
from .seconds.training import TRAINING
from .seconds.works import build

TIMED = {part.name: part for part in (MLP, TRAINING, TRANSFORMER, WAVEFUNCTION, DIAGONAL)}
#: All parts, in the order in which they are run.
PARTS = (*TIMED, "jax", "memory", "hessian", "trace")
CHILDREN = {"memory": memory.child, "hessian": budget.child, "trace": tracing.child}

HOW = """\
Each time is the smaller of two medians: all methods are timed first to last, then last to first; the last block of a
table shows both. Results are checked before they are timed: the last line has the largest difference of any method
from PyTorch's, relative to the largest entry. Attention runs on PyTorch's MATH backend, without the fused kernel of
encoder layers, so that it can be differentiated twice."""

# --- the command line -----------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    works = list(dict.fromkeys(name for part in TIMED.values() for name in part.works))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_order", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", type=some_of(PARTS), default=list(PARTS), metavar="A,B", help=f"of {','.join(PARTS)}")
    add("--works", type=some_of(works), default=works, metavar="A,B", help=f"of the timed parts and memory: {works}")
    add("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    add("--seconds", type=float, default=0.5, help="least time for each median (default 0.5)")
    add("--jax", type=Path, default=FOLDER, metavar="DIR", help=f"environments of JAX (default {FOLDER})")
    add("--budget", default="64MiB", help="of the parts of a Hessian (default 64MiB)")
    add("--save", type=Path, metavar="DIR", help="write second-order.txt and second-order.png there")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- the parts ------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    if options.child:
        part, arguments = options.child
        print(json.dumps(CHILDREN[part](**arguments)))
        return
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    results: dict[Part, list[Compared]] = {}
    texts = [tables.machine(options.threads), HOW]
    for name in (name for name in PARTS if name in options.parts):
        if name in TIMED:
            part = TIMED[name]
            with plain():
                results[part] = [
                    compare(part, build(work), options.seconds) for work in part.works if work in options.works
                ]
            texts += [section(part, results[part])] if results[part] else []
        else:
            texts.append(_other(name, results, options))
    text = "\n\n".join(texts)
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "second-order.txt", text)
        plots.plot(results, options.save / "second-order.png")


def _other(name: str, results: dict[Part, list[Compared]], options: argparse.Namespace) -> str:
    """A part that runs in processes of its own."""
    if name == "jax":
        known = {measured.work.name: measured for measured in results.get(MLP, [])}
        works = [build(work) for work in MLP.works if work in options.works]
        return in_jax.section(works, known, options.jax, options.threads, options.seconds)
    if name == "memory":
        return memory.section(memory.measure(list(memory.PARTS), options.works, options.threads))
    if name == "hessian":
        return budget.section(list(budget.lines(options.budget, options.threads)), options.budget)
    return tracing.section(tracing.measure(options.threads))


if __name__ == "__main__":
    main()
