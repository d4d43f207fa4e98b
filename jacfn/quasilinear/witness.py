"""A use that no claim covers, seen by its gradient (L2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def witness(leaf: Tensor, scalar: Tensor, seen: set[int], number: int = 0) -> Tensor:
    """The leaf with a zero subtracted that is differentiated in its place.

    A gradient arrives only where the leaf has a use that no claim covers, wherever that is hidden: ``seen`` then gets
    ``number``. Until then the leaf takes no part in the vjp. (Subtracted, since -0.0 + 0.0 is 0.0.)
    """
    watched = leaf - scalar.to(leaf.dtype)  # a scalar of more precision would promote a leaf without axes
    watched.register_hook(lambda _: seen.add(number))  # type: ignore[no-untyped-call]
    return watched


def scalar_like(leaves: Sequence[Tensor]) -> Tensor:
    """What a witness differentiates in the place of the leaves."""
    return torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device) if leaves else torch.zeros(())
