"""What each transform would cost, and whether it works (L3)."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._errors import JacfnError
from jacfn._evaluate import Evaluation, Method, Options, Result, Tracking, choose, compute
from jacfn._explain.leaves import product_flops
from jacfn._explain.records import MethodPlan
from jacfn._explain.watch import Notes
from jacfn._memory import Chunks, predict
from jacfn._products import start_forward
from jacfn._selection import Given, Selection
from jacfn._tree import LeafType
from jacfn.quasilinear.structure import Structure


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a method did with two samples: some rows, or the derivative along some directions."""

    result: Result | None
    error: str  # empty where it worked
    slow: tuple[str, ...]  # operations that ran once for each sample or row


def along(directions: Given, options: Options) -> Method:
    """Forward mode along some directions of the inputs."""

    def start(block: Bound, at_once: int | None, tracking: Tracking, probing: bool) -> Evaluation:
        return start_forward(block, at_once, probing, side=directions, options=options)

    return Method("jac_fwd", 1, start, samples_first=True)


# --- trials


def first_rows(outputs: Sequence[LeafType]) -> Selection:
    """The first row of every output leaf, and the next one where that is all: some row must meet every operation."""
    offsets = list(accumulate((leaf.size for leaf in outputs), initial=0))
    rows = {offset for offset, leaf in zip(offsets, outputs, strict=False) if leaf.size}
    return np.array(sorted(rows | {1} if offsets[-1] > 1 else rows), dtype=np.int64)


def directions(bound: Bound) -> list[Tensor]:
    """Two random tangents of each leaf."""
    generator = torch.Generator().manual_seed(0)
    kinds = bound.leaf_types
    return [torch.randn(2, *kind.shape, generator=generator).to(kind.device, kind.dtype) for kind in kinds]


def run_trial(method: Method, bound: Bound, options: Options) -> Trial:
    """Evaluate a method on the first two samples."""
    few = bound.detach().block(0, min(2, bound.samples or 0)).clone()
    options = dataclasses.replace(options, chunk_size=None, memory=None, differentiable=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, error = compute(method, few, options), ""
        except Exception as exception:  # whatever fn raises under this method is what the plan has to tell
            result, error = None, f"{type(exception).__name__}: {first_sentence(str(exception))}"
    slow = [re.search(r"batching rule for (?:aten::)?([\w.]+)", str(warning.message)) for warning in caught]
    return Trial(result, error, tuple(dict.fromkeys(match[1].rstrip(".") for match in slow if match)))


def first_sentence(message: str) -> str:
    """Of an error, cut where it is very long."""
    lines = message.strip().splitlines() or [""]
    return lines[0] if len(lines[0]) < 400 else f"{lines[0][:400]} ..."


# --- costs


def method_plan(
    name: str, method: Method, bound: Bound, options: Options, notes: Notes, structure: Structure | None, trial: Trial
) -> MethodPlan:
    """Passes, FLOPs, bytes, chunk and peak of one method."""
    samples, rows = 1 if bound.samples is None else bound.samples, notes.rows
    columns = sum(kind.size for kind in bound.leaf_types)
    size = samples * rows * sum(kind.size * kind.dtype.itemsize for kind in bound.leaf_types)
    forward, backward = (columns, 0) if name == "fwd" else (1, rows)
    flops = samples * _flops(name, bound, notes, structure, columns)
    chunks, peak, note = None, None, trial.error
    if not trial.error:
        chunks, peak, note = _chunks_and_peak(method, bound, options)
    at_once = min(chunks.rows, columns if name == "fwd" else rows) if chunks else 0
    fails = bool(trial.error) or chunks is None
    block = chunks.samples if chunks else bound.samples
    return MethodPlan(name, forward, backward, flops, size, block, at_once, peak, note, fails)


def _flops(name: str, bound: Bound, notes: Notes, structure: Structure | None, columns: int) -> int:
    """For one sample. A backward pass, and a tangent, cost two forward passes; one to activations alone costs one."""
    if name == "fwd":
        return notes.flops * (1 + 2 * columns)
    if name == "rev" or structure is None or not structure.claims:
        return notes.flops * (1 + 2 * notes.rows)
    return notes.flops * (1 + notes.rows) + notes.rows * product_flops(bound, structure)


def _chunks_and_peak(method: Method, bound: Bound, options: Options) -> tuple[Chunks | None, int | None, str]:
    """The chunks, the peak with them, and what the prediction of one of these has raised."""
    try:
        chunks = choose(method, bound, options)
    except JacfnError as error:
        return None, None, str(error)
    if chunks.predicted is not None or bound.samples == 0:
        return chunks, chunks.predicted, ""
    try:
        return chunks, _peak(method, bound, options, chunks), ""
    except JacfnError as error:
        return chunks, None, str(error).partition("predicted: ")[2].partition(". Pass")[0] or str(error)


def _peak(method: Method, bound: Bound, options: Options, chunks: Chunks) -> int:
    """The peak of two blocks of samples, a few chunks of each: what follows is like it."""
    blocks = bound if chunks.samples is None else bound.block(0, min(2 * chunks.samples, bound.samples or 0))

    def start(block: Bound, at_once: int | None, tracking: Tracking, _: bool) -> Evaluation:
        return method.start(block, at_once, tracking, True)

    probe = dataclasses.replace(method, start=start, default=lambda _: chunks, key=None)
    options = dataclasses.replace(options, chunk_size=None, memory=None, differentiable=False)

    def run(fake: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves, data = [fake(leaf.detach()) for leaf in blocks.leaves], [fake(x) for x in blocks.data]
        result = compute(probe, blocks.replace(leaves, data, blocks.samples), options)
        return [*result.parts.values(), *result.value, *result.aux]

    return predict(run)
