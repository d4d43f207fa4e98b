"""Where the time goes, stage by stage: ``python -m benchmarks.causes``.

A method's time is the sum of stages that every method has and of stages of its own; this says how large each is.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import jacfn

from . import tables, timing
from .arguments import some_of
from .fits import problems
from .floors import gemm_rate, outer_products
from .methods import BASELINE, Run, named
from .operators.flat import operator
from .operators.norms import passes
from .works import WORKS, Work, build

PARTS = ("flat", "step")
WANTED = ("mlp", "cnn", "resnet", "transformer", "lm", "conv3d")

HOW = """\
Milliseconds, the smaller of two medians: all stages are timed first to last, then last to first."""

HOW_FLAT = f"""\
forward: the batch by plain PyTorch, without a graph. mapped forward: fn of one sample under vmap. forward, K backward:
the batch forward and each output, summed over the samples, backward, by plain autograd. factors: jacobian_operator, so
those passes for every sample, and what the layers are made of, captured. rows: materialize(out=) of an operator that
is there. factors, rows: both. {BASELINE}: to the pytree, nothing joined. large product: the operations of the rows'
products at the rate of one large matrix product. warm fill: the matrix written once."""

HOW_STEP = """\
A step of levenberg_marquardt with its defaults, by the normal matrix, on 20,000 residuals of 61 float32 weights.
linearisation: jacobian_operator and the residuals. normal matrix: JᵀJ, summed in float64. residuals: those at the
trial. rest: what the step takes beside these. dense J, JᵀJ in float32: the least that the same two take by hand,
vmap(jacrev) and one product."""


def flat(work: Work, rate: float, seconds: float) -> dict[str, float]:
    """Seconds of each stage of the flat Jacobian, with its floors."""
    params = {name: leaf.detach() for name, leaf in work.params.items()}
    mapped = torch.func.vmap(work.fn, work.in_dims)
    held, buffer = operator(work), torch.zeros(work.rows, work.columns)

    def forward() -> object:
        with torch.no_grad():
            return work.batch_fn(params, work.x)

    runs: dict[str, Run] = {
        "forward": forward,
        "mapped forward": lambda: mapped(params, work.x),
        "forward, K backward": passes(work),
        "factors": lambda: operator(work),
        "rows": lambda: held.materialize(out=buffer),
        "factors, rows": lambda: operator(work).materialize(out=buffer),
        BASELINE: named(BASELINE)[0].make(work),
        "warm fill": lambda: buffer.fill_(1.0),
    }
    return {**_medians(runs, seconds), "large product": outer_products(work) / rate}


def step(seconds: float) -> dict[str, float]:
    """Seconds of each stage of a step on sinc."""
    problem = problems.sinc()
    fit = jacfn.LevenbergMarquardt(problem.residual, in_dims=problems.IN_DIMS)
    state = fit.init(problem.work.params, *problem.data)
    while not bool((new := fit.step(state)).accepted):
        state = new
    _, rows = state.problem.linearise(state.x)
    jacobian = named(BASELINE)[0].make(problem.work)
    dense = torch.cat([leaf.reshape(problem.work.rows, -1) for leaf in jacobian().values()], 1)
    runs: dict[str, Run] = {
        "step": lambda: fit.step(state),
        "linearisation": lambda: state.problem.linearise(state.x),
        "normal matrix": rows._normal,
        "residuals": lambda: state.problem.residuals(state.x),
        "dense J": jacobian,
        "JᵀJ in float32": lambda: dense.T @ dense,
    }
    times = _medians(runs, seconds)
    times["rest"] = times["step"] - times["linearisation"] - times["normal matrix"] - times["residuals"]
    return times


def _medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    for run in runs.values():
        run()
    return {name: timing.best(pair) for name, pair in timing.both_orders(runs, seconds).items()}


def table(columns: dict[str, dict[str, float]]) -> str:
    """A column for each work, a row for each stage."""
    stages = next(iter(columns.values()))
    rows = [[stage, *(tables.milliseconds(times[stage]) for times in columns.values())] for stage in stages]
    return tables.grid(["milliseconds", *columns], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causes", description=__doc__)
    add = parser.add_argument
    add("--parts", type=some_of(PARTS), default=list(PARTS), metavar="A,B", help=f"of {','.join(PARTS)}")
    add("--works", type=some_of(list(WORKS)), default=list(WANTED), metavar="A,B", help="of flat")
    add("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    add("--seconds", type=float, default=0.3, help="least time for each median (default 0.3)")
    add("--save", type=Path, metavar="DIR", help="write causes.txt there")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    texts = [tables.machine(options.threads), HOW]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of functorch, in a batch norm
        if "flat" in options.parts:
            rate = gemm_rate(options.seconds)
            columns = {name: flat(build(name), rate, options.seconds) for name in options.works}
            texts += ["The flat Jacobian", HOW_FLAT, table(columns)]
        if "step" in options.parts:
            texts += ["A step on sinc(10 x)", HOW_STEP, table({"sinc": step(options.seconds)})]
    text = "\n\n".join(texts)
    print(text)
    if options.save:
        tables.save(options.save, "causes.txt", text)


if __name__ == "__main__":
    main()
