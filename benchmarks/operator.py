"""The Jacobian as an object: jacobian_operator and ntk against other packages' ways, and inside memory budgets.

``python -m benchmarks.operator`` prints a section for each part, with a table and its targets; ``--save`` keeps them
and two plots. Peers that are not installed are left out: ``pip install --no-deps -r benchmarks/peers.txt``, and
``python -m benchmarks.jax_env`` for JAX.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import tables
from .arguments import numbers, some_of
from .jax_env import FOLDER
from .memory import WORKS as LARGE
from .operators import budget, in_jax, plots, scaling
from .operators.compare import Compared, Part, compare, section
from .operators.flat import FLAT
from .operators.norms import NORMS
from .operators.ntk import NTK
from .operators.products import PRODUCTS
from .works import build

TIMED = {part.name: part for part in (FLAT, NTK, PRODUCTS, NORMS)}
#: All parts, in the order in which they are run.
PARTS = (*TIMED, "jax", "scaling", "memory")
CHILDREN = {"scaling": scaling.child, "memory": budget.child}

HOW = """\
Each time is the smaller of two medians: all methods are timed first to last, then last to first; the last block of a
table shows both. Results are checked before they are timed: the last line has the largest difference of any method
from torch.func's result, relative to the largest entry. Attention runs on PyTorch's MATH backend, which vmap can
batch."""

# --- the command line -----------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    works = list(dict.fromkeys(name for part in TIMED.values() for name in part.works))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", type=some_of(PARTS), default=list(PARTS), metavar="A,B", help=f"of {','.join(PARTS)}")
    add("--works", type=some_of(works), default=works, metavar="A,B", help=f"networks of the timed parts: {works}")
    add("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    add("--seconds", type=float, default=0.5, help="least time for each median (default 0.5)")
    add("--jax", type=Path, default=FOLDER, metavar="DIR", help=f"environments of JAX (default {FOLDER})")
    add("--samples", type=numbers, default=scaling.SAMPLES, metavar="N,N", help="of the scaling curve")
    add("--widths", type=numbers, default=scaling.WIDTHS, metavar="W,W", help="of the scaling curve")
    add("--budget", default="256MiB", help="of the memory part (default 256MiB)")
    add("--memory-works", type=some_of(LARGE), default=list(LARGE), metavar="A,B", help=f"of {','.join(LARGE)}")
    add("--save", type=Path, metavar="DIR", help="write operator.txt, operator.png and ntk.png there")
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
    curves: list[list[scaling.Point]] = []
    for name in (name for name in PARTS if name in options.parts):
        if name in TIMED:
            part = TIMED[name]
            chosen = [work for work in part.works if work in options.works]
            results[part] = [compare(part, build(work), options.seconds) for work in chosen]
            texts += [section(part, results[part])] if chosen else []
        elif name == "jax":
            texts.append(_jax(results, options))
        elif name == "scaling":
            curves = scaling.points(options.samples, options.widths, options.threads, options.seconds)
            texts.append(scaling.section(curves))
        else:
            rows = list(budget.lines(options.memory_works, list(budget.OPERATIONS), options.budget, options.threads))
            texts.append(budget.section(rows, options.budget))
    text = "\n\n".join(texts)
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "operator.txt", text)
        plots.plot(results, options.save / "operator.png")
        if curves:
            scaling.plot(curves, options.save / "ntk.png")


def _jax(results: dict[Part, list[Compared]], options: argparse.Namespace) -> str:
    known = {(part.name, m.work.name): m for part, measured in results.items() for m in measured}
    works = [build(name) for name in FLAT.works if name in options.works]
    with sdpa_kernel(SDPBackend.MATH):
        return in_jax.section(works, known, options.jax, options.threads, options.seconds)


if __name__ == "__main__":
    main()
