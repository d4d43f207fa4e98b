"""Elements put into places."""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn._exact.tables import ALWAYS, replaces


@replaces(ALWAYS, torch.select_scatter, Tensor.select_scatter)
def _select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """The derivative of its batching rule is wrong."""
    place = index % input.shape[dim]
    result: Tensor = torch.slice_scatter(input, src.unsqueeze(dim), dim, place, place + 1)
    return result
