"""Whole Jacobians in closed form: jac_quasilinear against other packages' ways, in one process.

``python -m benchmarks.quasilinear`` prints one table, ratios first, then the targets; ``--save`` keeps them and a
plot. Peers that are not installed are left out: ``pip install --no-deps -r benchmarks/peers.txt``.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import report, tables
from .floors import gemm_rate, outer_products
from .measure import Measured, measure
from .methods import BASELINE, BASELINE_COMPILED, COMPILED, OURS, OURS_COMPILED, Method, named
from .peers import BACKPACK, OPACUS, PEERS
from .works import WORKS, Work, build

LOOPS = ("naive loop, indexed", "naive loop by sample")

HOW = f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower. Each time is
the smaller of two medians: all methods are timed first to last, then last to first; the last block shows both.
Results are pytrees with leaves (N, *out, *in), checked before they are timed: the last line has the largest
difference of any method from {BASELINE}, relative to a leaf's largest entry. compiled: torch.compile with
fullgraph=True and inductor, without the first call. BackPACK and pytorch-Jacobian's method take one forward pass
and a backward pass for each output, Opacus a forward and a backward pass for each output; for Opacus attention is
rewritten with linear modules. floor, fill: time to fill a buffer of the result's size, already in memory (warm) or
new (cold). floor, outer products: the FLOPs of the products of cotangents and inputs at {{rate:.0f}} GFLOP/s, the rate
of a product of two 1024 x 1024 matrices in this run. Attention runs on PyTorch's MATH backend, which vmap can
batch."""

# --- the command line -----------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quasilinear", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--works", type=_works, default=list(WORKS), metavar="A,B", help=f"networks to run, of {','.join(WORKS)}"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time for each median (default 0.5)")
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="a loop that would take longer is timed on its first rows and scaled (default 1 s)",
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="eager methods only")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write quasilinear.txt and quasilinear.png there")
    return parser.parse_args(argv)


def _works(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in WORKS]:
        raise argparse.ArgumentTypeError(f"no network {unknown[0]!r}; there are {', '.join(WORKS)}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    run(map(build, options.works), options)


def run(works: Iterator[Work], options: argparse.Namespace) -> list[Measured]:
    """Measure these works and say what came out."""
    start = time.perf_counter()
    compiled = COMPILED if options.compile else ()
    methods = (*named(OURS, BASELINE), *compiled, *PEERS, *named(*LOOPS))
    rate = gemm_rate(options.seconds)
    print("checking against", BASELINE)
    results = [_measure(work, methods, options) for work in works]

    floors = (*report.FLOORS, ("outer products", lambda m: outer_products(m.work) / rate))
    table = report.table(results, methods, ratio, floors)
    parts = [tables.machine(torch.get_num_threads()), HOW.format(rate=rate / 1e9), table, targets(results)]
    text = "\n\n".join(parts)
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "quasilinear.txt", text)
        drawn = [m for m in results if OURS in m.seconds]
        label = f"time / time of {OURS}"
        report.plot(drawn, options.save / "quasilinear.png", methods, ratio, label, unit=OURS)
    return results


def _measure(work: Work, methods: Sequence[Method], options: argparse.Namespace) -> Measured:
    if options.compile:
        torch.compiler.reset()  # each work compiles anew, whatever limit on recompiling there is
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"backpack|opacus|benchmarks\.peers|torch\._inductor")
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of functorch, in a batch norm
        return measure(work, options.seconds, options.patience, methods, tolerant=True)


def ratio(measured: Measured, method: str) -> float:
    """How many times the time of jac_quasilinear the method takes."""
    return measured.best(method) / measured.best(OURS) if OURS in measured.seconds else math.nan


# --- the targets ----------------------------------------------------------------------------------

#: Method to its least ratio on some works, and on all others.
LEAST: dict[str, tuple[dict[str, float], float]] = {
    BASELINE: ({"cnn": 1.5, "resnet": 1.5, "transformer": 1.3, "wide": 2.0, "lm": 1.5}, 1.0),
    BACKPACK.name: ({"mlp": 3.0, "cnn": 3.0}, 1.5),
    OPACUS.name: ({"mlp": 3.0}, 1.5),
}


def targets(results: Sequence[Measured]) -> str:
    """The named targets of the works and methods that were run, measured and met or missed."""
    rows = [row for m in results for row in _targets(m)]
    return tables.grid(["target", "wanted", "measured", ""], rows) if rows else "no targets"


def _targets(m: Measured) -> Iterator[list[str]]:
    for method, (chosen, others) in LEAST.items():
        if method in m.seconds:
            text = f"{m.work.name}: time of {method} / {OURS}"
            yield report.target(text, chosen.get(m.work.name, others), ratio(m, method))
    if BASELINE_COMPILED in m.seconds:
        there = m.best(BASELINE_COMPILED)
        measured = there / m.best(OURS_COMPILED) if OURS_COMPILED in m.seconds else math.nan
        text = f"{m.work.name}: time of {BASELINE} / {OURS}, both compiled"
        yield report.target(text, 1.0, measured)


if __name__ == "__main__":
    main()
