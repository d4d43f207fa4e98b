"""levenberg_marquardt against other packages' ways to the same fits: time of a step, loss against time, memory, counts.

``python -m benchmarks.least_squares`` prints a section for each part, with a table and its targets; ``--save`` keeps
them and a plot. Peers that are not installed are left out: ``pip install --no-deps -r benchmarks/peers.txt``, and
``python -m benchmarks.jax_env`` for JAX.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import tables
from .arguments import numbers, some_of
from .fits import budget, counts, curves, in_jax, pinn, plots, problems, race, steps
from .jax_env import FOLDER

#: All parts, in the order in which they are run.
PARTS = ("sinc", "race", "few", "wide", "budget", "curves", "pinn", "counts")

HOW = """\
Times of steps are the smaller of two medians: all ways are timed first to last, then last to first; the last block of a
table shows both."""

# --- the command line -----------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.least_squares", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", type=some_of(PARTS), default=list(PARTS), metavar="A,B", help=f"of {','.join(PARTS)}")
    add("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    add("--seconds", type=float, default=1.0, help="least time for each median of a step (default 1)")
    add("--patience", type=float, default=20.0, help="seconds of each run of the race (default 20)")
    add("--samples", type=int, default=20_000, help="of sinc (default 20000)")
    add("--few", type=int, default=500, help="samples of the race with few of them (default 500)")
    add("--seed", type=int, default=0, help="of the weights with which the race starts (default 0)")
    add(
        "--seeds", type=int, default=1, help="starts of jacfn and its nearest peer in the race, and of pinn (default 1)"
    )
    add("--ways", type=some_of(list(race.WAYS)), default=list(race.WAYS), metavar="A,B", help="of the race")
    add("--jax", type=Path, default=FOLDER, metavar="DIR", help=f"environments of JAX (default {FOLDER})")
    add("--budget", default="1GiB", help="of the memory part (default 1GiB)")
    add("--rows", type=int, default=102_400, help="samples of the memory part (default 102400)")
    add("--widths", type=numbers, default=[32, 256, 256, 128, 1], metavar="W,W", help="of its network")
    add("--curves", type=int, default=10_000, help="independent curves (default 10000)")
    add("--save", type=Path, metavar="DIR", help="write least-squares.txt and least-squares.png there")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- the parts ------------------------------------------------------------------------------------


def _sinc(options: argparse.Namespace) -> str:
    work = problems.sinc(options.samples).work
    return steps.section(steps.SINC, steps.measure(steps.SINC, work, options.seconds))


def _wide(options: argparse.Namespace) -> str:
    return steps.section(steps.WIDE, steps.measure(steps.WIDE, problems.wide().work, options.seconds))


def _race(options: argparse.Namespace) -> str:
    problem = problems.sinc(options.samples, options.seed)
    small = options.samples <= race.MOST_OF_PYPOSE
    ways = {name: race.WAYS[name] for name in options.ways if small or name != race.PYPOSE}
    raced, failed = race.race(problem, options.patience, ways)
    more, others = in_jax.raced(problem, options.patience, options.jax, options.threads)
    raced, failed = raced | more, failed | others
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        plots.plot(raced, problem.work.about, options.save / "least-squares.png")
    text = race.section(problem, raced, failed, options.patience)
    return text if options.seeds == 1 else f"{text}\n\n{_seeds(options, raced)}"


def _seeds(options: argparse.Namespace, first: dict[str, race.Raced]) -> str:
    """From the first seed what the race has found already."""
    raced = {options.seed: first}
    ways = {name: race.WAYS[name] for name in race.PAIR}
    for seed in range(options.seed + 1, options.seed + options.seeds):
        print(f"race: seed {seed}", flush=True)
        raced[seed], _ = race.race(problems.sinc(options.samples, seed), options.patience, ways)
    return race.seeds_section(raced, options.patience)


def _few(options: argparse.Namespace) -> str:
    problem = problems.sinc(options.few, options.seed)
    ways = {name: race.WAYS[name] for name in options.ways if name in race.ALIKE}
    return race.section(problem, *race.race(problem, options.patience, ways), options.patience, race.FEW)


def _budget(options: argparse.Namespace) -> str:
    problem = {"samples": options.rows, "widths": options.widths}
    return budget.section(budget.measure(problem, options.budget, options.threads), options.budget)


def _curves(options: argparse.Namespace) -> str:
    made = curves.make(options.curves)
    return curves.section(made, dict(curves.measure(made, options.jax, options.threads)))


def _pinn(options: argparse.Namespace) -> str:
    return pinn.section(list(pinn.measure(options.seeds)))


def _counts(options: argparse.Namespace) -> str:
    return counts.section(counts.measure(counts.problems()))


RUN: dict[str, Callable[[argparse.Namespace], str]] = {
    "sinc": _sinc,
    "race": _race,
    "few": _few,
    "wide": _wide,
    "budget": _budget,
    "curves": _curves,
    "pinn": _pinn,
    "counts": _counts,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    if options.child:
        _, arguments = options.child
        print(json.dumps(budget.child(**arguments)))
        return
    torch.set_num_threads(options.threads)
    logging.getLogger("torch_levenberg_marquardt").setLevel(logging.ERROR)
    start = time.perf_counter()
    texts = [tables.machine(options.threads), HOW]
    for part in (name for name in PARTS if name in options.parts):
        print(f"\n--- {part}", flush=True)
        texts.append(RUN[part](options))
    text = "\n\n".join(texts)
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "least-squares.txt", text)


if __name__ == "__main__":
    main()
