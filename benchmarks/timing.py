"""Timing in one process: medians, every method measured in both orders."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

Run = Callable[[], Any]


def median(run: Run, seconds: float) -> float:
    """Median time of a call, in seconds, from repeats that last at least ``seconds`` together.

    The collector stays on (a timer turns it off by default): a method may leave reference cycles behind, and
    large results held by them would exhaust the memory.
    """
    threads = torch.get_num_threads()
    timer = Timer("run()", setup="import gc; gc.enable()", globals={"run": run}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=seconds).median


def both_orders(runs: dict[str, Run], seconds: float) -> dict[str, tuple[float, float]]:
    """Time all runs first to last, then last to first: two medians for each.

    What ran before a method (the state of the heap, of the caches and of the clock) differs between the two,
    and so does what other processes did meanwhile.
    """
    there = {name: median(run, seconds) for name, run in runs.items()}
    back = {name: median(runs[name], seconds) for name in reversed(runs)}
    return {name: (there[name], back[name]) for name in runs}


def once(run: Run) -> tuple[Any, float]:
    """The result of one call and its time in seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def fill(size: int, seconds: float) -> tuple[float, float]:
    """Time to fill a buffer of ``size`` bytes: one already in memory (warm), one allocated anew (cold)."""
    buffer = torch.zeros(size, dtype=torch.uint8)
    warm = median(lambda: buffer.fill_(1), seconds)
    cold = median(lambda: torch.empty(size, dtype=torch.uint8).fill_(1), seconds)
    return warm, cold


def best(pair: tuple[float, float]) -> float:
    """The smaller of the two medians: other processes can only make a run slower."""
    return min(pair)
