"""Memory budgets: the budget asked for, the peak predicted, and the peak measured beyond the result.

``python -m benchmarks.memory`` runs each transform on each network, in a process each, and prints one table.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch.func imports it at first use: 66 MiB that are no transform's
from torch import nn

import jacfn
from jacfn._memory import parse_budget

from . import tables
from .resident import peak_growth
from .works import Work, cnn_net, make_work, mlp_net

#: The allocator gives blocks of this size and more back to the system when they are freed, so that what it
#: keeps for itself does not count as the transform's.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jac_rev": jacfn.jac_rev,
    "jac_fwd": jacfn.jac_fwd,
    "jac_quasilinear": jacfn.jac_quasilinear,
}


# --- the works: large enough that the budget binds ------------------------------------------------


def _mlp(samples: int, *widths: int) -> Work:
    """All weights of an MLP: the result is large, what is needed beside it is chunks of the result."""
    about = "MLP " + "-".join(map(str, widths))
    return make_work("mlp", about, mlp_net(*widths), torch.randn(samples, widths[0]))


def _wide(samples: int) -> Work:
    """The biases of a wide MLP: activations are larger than the result."""
    net = _biases_only(mlp_net(64, 1024, 1024, 10))
    return make_work("wide", "biases of MLP 64-1024-1024-10", net, torch.randn(samples, 64))


def _cnn(samples: int, size: int, *channels: int) -> Work:
    """A CNN: activations are larger than its weights."""
    about = f"CNN {'-'.join(map(str, channels))}, {size}x{size}"
    return make_work("cnn", about, cnn_net(*channels), torch.randn(samples, 3, size, size))


def _deep(samples: int) -> Work:
    """The biases of a deep narrow net: many small activations, all kept for the backward pass."""
    net = _biases_only(mlp_net(*[8] * 32, 1, activation=nn.Tanh))
    return make_work("deep", "biases of 32 layers of 8", net, torch.randn(samples, 8))


def _biases_only(net: nn.Module) -> nn.Module:
    """Freeze all parameters but the biases."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return net


#: Work to its forms for the transforms that go through rows, and for the one that goes through columns.
WORKS: dict[str, tuple[Callable[[], Work], Callable[[], Work]]] = {
    "mlp": (lambda: _mlp(64, 784, 256, 128, 10), lambda: _mlp(100, 16, 64, 64, 10)),
    "wide": (lambda: _wide(8192), lambda: _wide(24)),
    "cnn": (lambda: _cnn(256, 32, 16, 32, 64), lambda: _cnn(64, 16, 4, 8, 8)),
    "deep": (lambda: _deep(300000), lambda: _deep(12000)),
}


def build(name: str, transform: str) -> Work:
    """The named work in the size for the transform."""
    torch.manual_seed(0)
    return WORKS[name][transform == "jac_fwd"]()


# --- one measurement, in a process of its own -----------------------------------------------------


class _Plans(logging.Handler):
    """Keeps what jacfn logs about the chunks that it chose."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.last: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        """Remember the chunks of the last evaluation."""
        self.last = getattr(record, "jacfn_chunks", self.last)


def child(work: str, transform: str, memory: str | None, warm: bool, threads: int) -> dict[str, Any]:
    """Measure one call; ``warm`` runs the transform on tiny networks first, so that libraries are set up."""
    torch.set_num_threads(threads)
    plans = _Plans()
    log = logging.getLogger("jacfn")
    log.addHandler(plans)
    log.setLevel(logging.DEBUG)
    jacobian = TRANSFORMS[transform]
    measured = build(work, transform)
    if warm:
        for tiny in (
            make_work("", "", mlp_net(3, 4, 2), torch.randn(5, 3)),
            make_work("", "", cnn_net(2, 2, 2), torch.randn(3, 3, 8, 8)),
        ):
            jacobian(tiny.fn, in_dims=tiny.in_dims, memory=memory)(tiny.params, tiny.x)
    call = jacobian(measured.fn, in_dims=measured.in_dims, memory=memory)
    result, growth, seconds = peak_growth(lambda: call(measured.params, measured.x))
    size = sum(leaf.numel() * leaf.element_size() for leaf in result.values())
    return {
        "about": f"{measured.about}, N={len(measured.x)}: {measured.rows} x {measured.columns}",
        "result": size,
        "beyond": growth - size,
        "seconds": seconds,
        "chunks": f"{plans.last.samples}x{plans.last.rows}" if plans.last and memory else "",
        "predicted": plans.last.predicted if plans.last else None,
    }


def run_child(*arguments: Any) -> dict[str, Any]:
    """Run :func:`child` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(arguments)]
    done = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {arguments} failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


# --- the table ------------------------------------------------------------------------------------

HEADER = (
    "work: J, rows x columns",
    "transform",
    "result",
    "no budget",
    "budget",
    "predicted",
    "measured",
    "first call",
    "inside",
    "seconds",
    "chunk",
)

HOW = """\
In MiB: the growth of the resident size at its peak over one call, less the result; a new process for each.
measured: after a call on tiny networks, by which libraries are set up. first call: without that one, so that
the libraries' code pages and threads count too. no budget: the same as measured, without memory=. predicted:
by the plan, which fills 80 % of the budget; kernels' own workspaces are not in it. chunk: samples x rows (or
columns) at once."""


def line(work: str, transform: str, budget: str, threads: int) -> list[str]:
    """Measure one transform on one work: a row of the table."""
    unbounded = run_child(work, transform, None, True, threads)
    warm = run_child(work, transform, budget, True, threads)
    cold = run_child(work, transform, budget, False, threads)
    limit = parse_budget(budget)
    inside = "yes" if max(warm["beyond"], cold["beyond"]) <= limit else "no"
    sizes = [warm["result"], unbounded["beyond"], limit, warm["predicted"], warm["beyond"], cold["beyond"]]
    cells = ["-" if size is None else f"{size / 2**20:.0f}" for size in sizes]
    return [warm["about"], transform, *cells, inside, f"{warm['seconds']:.2f}", warm["chunks"]]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="networks to run")
    parser.add_argument("--transforms", nargs="+", choices=TRANSFORMS, default=list(TRANSFORMS))
    parser.add_argument("--budget", default="256MiB", help="as the transforms take it (default 256MiB)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write memory.txt there")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and save where asked."""
    options = parse(argv)
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    start = time.perf_counter()
    rows: list[list[str]] = []
    for work in options.works:
        for transform in options.transforms:
            rows.append(line(work, transform, options.budget, options.threads))
            print(" ".join(rows[-1]), flush=True)
    text = "\n\n".join([tables.machine(options.threads), HOW, tables.grid(HEADER, rows)])
    print(f"\n{text}\n\ntook {time.perf_counter() - start:.0f} s")
    if options.save:
        tables.save(options.save, "memory.txt", text)


if __name__ == "__main__":
    main()
