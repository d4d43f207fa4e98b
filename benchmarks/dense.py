"""Whole Jacobians: jacfn against PyTorch's own ways and plain loops, in one process.

``python -m benchmarks.dense`` prints one table, ratios first, then the targets; ``--save`` keeps them and a
plot.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import report, tables
from .measure import measure
from .methods import BASELINE
from .works import WORKS, build

#: The works that are run if none are named.
DEFAULT = ["mlp", "cnn", "transformer", "lm", "conv3d"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=DEFAULT, help="networks to run")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--seconds", type=float, default=0.7, help="least time for each median (default 0.7)")
    parser.add_argument(
        "--patience",
        type=float,
        default=8.0,
        help="a loop that would take longer is timed on its first rows and scaled (default 8 s)",
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="write dense.txt and dense.png there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    print("checking against", BASELINE)
    with sdpa_kernel(SDPBackend.MATH):
        results = [
            measure(build(name), options.seconds, options.patience, columns=name == "lm") for name in options.works
        ]

    machine = tables.machine(options.threads)
    text = "\n\n".join([machine, report.HOW, report.table(results), report.targets(results)])
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "dense.txt", text)
        report.plot(results, options.save / "dense.png")


if __name__ == "__main__":
    main()
