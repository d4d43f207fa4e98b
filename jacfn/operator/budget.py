"""How an operator keeps to a budget (L3): whether its factors are held, and how many samples make a block."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._cache import remember
from jacfn._errors import JacfnValueError
from jacfn._evaluate import Method, Options
from jacfn._memory import USABLE, Chunks, plan, predict
from jacfn._torch import inside_transform
from jacfn.operator.block import Block, held_bytes, row_bytes
from jacfn.operator.passes import blocks_of


class Plan(NamedTuple):
    """What is evaluated at once, whether it is held, and the bytes left for contractions."""

    chunks: Chunks
    hold: bool
    room: int


_ROOM = 128 << 20  # bytes for temporaries where no budget is given; measured on two cores
_SMALL = 16  # blocks of which one would do: more passes over small ones cost more than to make factors again
ALL_ROWS = 1 << 62  # of a sample at once, however many there are


def plan_for(method: Method, bound: Bound, options: Options, budget: int | None, hold: bool) -> Plan:
    """Without a budget everything is evaluated in blocks of a size that is fast, and held."""
    if budget is None:
        return Plan(_chunks(method, bound, options), hold, _ROOM)
    if inside_transform():
        raise JacfnValueError(
            "memory: a budget cannot be planned inside a transform or a compiled region, where sizes are unknown; "
            "pass chunk_size"
        )
    key = None if bound.signature is None else ("operator", method.name, hold, bound.signature, bound.samples, budget)
    return remember(bound.fn, key, lambda: _within(method, bound, budget, hold))


def _chunks(method: Method, bound: Bound, options: Options) -> Chunks:
    """As many samples and rows of each as a transform takes at once, or as the caller says."""
    if options.chunk_size is None:
        return Chunks(bound.samples, ALL_ROWS) if method.default is None else method.default(bound)
    if bound.samples is None or method.axis != 1:
        return Chunks(bound.samples, options.chunk_size)
    with torch.no_grad():
        one = bound.block(0, min(1, bound.samples))
        value = one.vmapped(one.call, "error")(one.leaves, one.data)[0]
    rows = sum(leaf.shape[1:].numel() for leaf in value)
    return Chunks(max(options.chunk_size // max(rows, 1), 1), options.chunk_size)


def _within(method: Method, bound: Bound, budget: int, hold: bool) -> Plan:
    """All held if there is room for it beside the evaluation of a block; else the largest blocks of which two fit.

    What is held must not leave so little room that it takes many more blocks to make it.
    """
    room = budget // 4
    held: dict[tuple[int, int], int] = {}
    total = 0

    def peak(samples: int, rows: int) -> int:
        def run(fake: Callable[[Tensor], Tensor]) -> list[Tensor]:
            nonlocal total
            block = bound if bound.samples is None else bound.block(0, samples)
            block = block.replace(
                [fake(x.detach()) for x in block.leaves], [fake(x) for x in block.data], block.samples
            )
            blocks: list[Block] = []
            for part, value in blocks_of(method, block, Chunks(block.samples, rows), "off", probing=True):
                blocks[:] = [part]
                places = sum(leaf.numel() for leaf in value) // max(samples, 1)
                total = places if method.axis == 1 else sum(kind.size for kind in bound.leaf_types)
            held[samples, rows] = held_bytes(blocks, [*block.leaves, *block.data])
            return []

        return predict(run)

    row = row_bytes(bound.leaf_types)
    peak(1, 1)
    forward = method.axis != 1  # a pass for columns serves all samples
    whole: Chunks | None = None
    if hold and budget >= 8 * row:
        peak(1, ALL_ROWS)
        each, n = held[1, ALL_ROWS], 1 if bound.samples is None else max(bound.samples, 1)

        def beside(samples: int, rows: int) -> int:
            """Of a block that is evaluated while all are held."""
            return math.ceil(max(peak(samples, rows), each) + n * each)

        with contextlib.suppress(JacfnValueError):
            whole = plan(beside, bound.samples, max(total, 1), budget - room, samples_first=forward, what="row")
    if whole is not None and _size(whole) * _SMALL >= _size(Chunks(bound.samples, max(total, 1))):
        return Plan(_whole(whole, total), True, room)

    def both(samples: int, rows: int) -> int:
        """Of a block that is evaluated beside one that is there, and the room: what a budget has to be for them."""
        blocks = math.ceil((peak(samples, rows) + held[samples, rows]) * budget / (budget - room))
        return max(blocks, math.ceil(USABLE * 8 * row))  # the room has two dense rows

    try:
        chunks = plan(both, bound.samples, max(total, 1), budget, samples_first=False, what="row")
    except JacfnValueError:
        if whole is None:
            raise
        chunks = Chunks(None, 0)
    if whole is not None and _size(whole) * _SMALL >= _size(chunks):
        return Plan(_whole(whole, total), True, room)
    return Plan(_whole(chunks, total), False, room)


def _size(chunks: Chunks) -> int:
    """The rows of a block."""
    return (chunks.samples or 1) * chunks.rows


def _whole(chunks: Chunks, total: int) -> Chunks:
    """All rows are all, however many there are."""
    return dataclasses.replace(chunks, rows=ALL_ROWS if chunks.rows >= max(total, 1) else chunks.rows)
