"""A use that no claim covers, seen by its gradient (L2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


class Witness(torch.autograd.Function):
    """Leaves handed through unchanged, with a scalar that is differentiated in their place.

    Its backward runs only when one of the leaves has a use that no claim covers, wherever that is hidden: ``seen``
    then gets ``number``. Until then the leaves take no part in the vjp and cost nothing.
    """

    @staticmethod
    def forward(scalar: Tensor, seen: set[int], number: int, *leaves: Tensor) -> tuple[Tensor, ...]:
        """The leaves themselves."""
        return tuple(leaf.view_as(leaf) for leaf in leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep where to report."""
        ctx.scalar, ctx.seen, ctx.number = inputs[:3]
        ctx.leaves = len(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Report."""
        ctx.seen.add(ctx.number)
        return torch.zeros_like(ctx.scalar), None, None, *(None,) * ctx.leaves


def witness(leaves: Sequence[Tensor], scalar: Tensor, seen: set[int], number: int = 0) -> list[Tensor]:
    """Aliases of the leaves; ``seen`` gets ``number`` when a backward pass reaches one of them."""
    return list(cast("tuple[Tensor, ...]", Witness.apply(scalar, seen, number, *leaves)))  # type: ignore[no-untyped-call]


def scalar_like(leaves: Sequence[Tensor]) -> Tensor:
    """What a witness differentiates in the place of the leaves."""
    return torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device) if leaves else torch.zeros(())
