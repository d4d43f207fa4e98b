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
#: Of a block along directions, with their axis of samples, and the first and the last of them.
Block = Callable[[Bound, Stacks, int | None, int, int, Tracking], Pass]


def stacks_of(side: Side, block: Bound) -> Callable[[int, int], tuple[Stacks, int | None]]:
    """The directions from one to another, and the axis of samples that they have if each sample has its own."""
    if not isinstance(side, Drawn):
        return lambda low, high: (side.basis(low, high), None)
    drawn = side.draw(side.total, 1 if block.samples is None else block.samples)
    if block.samples is None:
        return lambda low, high: ([stack[0, low:high] for stack in drawn], None)
    return lambda low, high: ([stack[:, low:high] for stack in drawn], 0)


def mapped(one: Sample, block: Bound, stacks: Stacks, dim: int | None, randomness: str) -> Pass:
    """``one`` sample's evaluation, for all samples of a block."""
    dims = [None if stack is None else dim for stack in stacks]
    each = block.vmapped(
        lambda *arguments: tuple(one(*arguments)), randomness, block.leaf_dims, 0 if block.data else None, dims
    )
    return Pass(*each(block.leaves, block.data, stacks))


def alone(run: Callable[[], Pass], like: Tensor) -> Pass:
    """Under a transform that maps nothing: where none is active, custom Functions go past torch's functions."""
    if inside_transform():
        return run()
    results = torch.func.vmap(lambda _: tuple(run()), randomness="same")(like.new_zeros(1))
    return Pass(*([part[0] for part in parts] for parts in results))
