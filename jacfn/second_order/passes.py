"""One evaluation of a block of samples along some directions (L3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Tracking
from jacfn._selection import Side
from jacfn._torch import inside_transform
from jacfn.second_order.directions import Drawn

Stacks = Sequence[Tensor | None]  # (C, *leaf) for each differentiated leaf; None: it is constant along all directions


class Pass(NamedTuple):
    """What an evaluation along ``C`` directions gives, for each output; samples lead."""

    value: list[Tensor]
    first: list[Tensor]  # (C, *out); may be left out where nobody wants them
    second: list[Tensor]  # (*out) if summed, else (C, *out)
    aux: list[Tensor]


Sample = Callable[[Sequence[Tensor], Sequence[Tensor], Stacks], Pass]  # of leaves, data and directions
Block = Callable[[Bound, int, int, Tracking], Pass]  # along the directions of a side from one to another


def stacks_of(side: Side, block: Bound, low: int, high: int) -> tuple[Stacks, int | None]:
    """The directions from ``low`` to ``high``, and the axis of samples that they have if each sample has its own."""
    if not isinstance(side, Drawn):
        return side.basis(low, high), None
    drawn = side.draw(high - low, 1 if block.samples is None else block.samples)
    return ([stack[0] for stack in drawn], None) if block.samples is None else (drawn, 0)


def mapped(one: Sample, block: Bound, stacks: Stacks, dim: int | None, randomness: str) -> Pass:
    """``one`` sample's evaluation, for all samples of a block."""
    each = block.vmapped(
        lambda *arguments: tuple(one(*arguments)), randomness, block.leaf_dims, 0 if block.data else None, dim
    )
    return Pass(*each(block.leaves, block.data, stacks))


def alone(run: Callable[[], Pass], like: Tensor) -> Pass:
    """Under a transform that maps nothing: where none is active, custom Functions go past torch's functions."""
    if inside_transform():
        return run()
    results = torch.func.vmap(lambda _: tuple(run()), randomness="same")(like.new_zeros(1))
    return Pass(*([part[0] for part in parts] for parts in results))
