"""A use that no claim covers, seen by its gradient (L2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Witness(torch.autograd.Function):
    """A leaf handed through unchanged, with a scalar that is differentiated in its place.

    Its backward runs only when the leaf has a use that no claim covers, wherever that is hidden: ``seen`` then gets
    the leaf's number. Until then the leaf takes no part in the vjp and costs nothing.
    """

    @staticmethod
    def forward(leaf: Tensor, scalar: Tensor, seen: set[int], number: int) -> Tensor:
        """The leaf itself."""
        return leaf.view_as(leaf)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep where to report."""
        _, ctx.scalar, ctx.seen, ctx.number = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Report."""
        ctx.seen.add(ctx.number)
        return None, torch.zeros_like(ctx.scalar), None, None


def scalar_like(leaf: Tensor) -> Tensor:
    """What a witness differentiates in the place of ``leaf``."""
    return torch.zeros((), dtype=leaf.dtype, device=leaf.device)
