"""Activations and distances whose derivatives have wrong or no batching rules, or no jvps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn._exact.tables import ALWAYS, NESTED, replaces


@replaces(ALWAYS, F.prelu, torch.prelu)
def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    """The batching rule of its backward raises."""
    if input.ndim == 0:
        weight = weight.reshape(())  # its one element must not give the result an axis
    elif weight.numel() > 1 and input.ndim > 1:
        weight = weight.view(-1, *(1,) * (input.ndim - 2))
    return torch.where(input > 0, input, weight * input)


@replaces(NESTED, F.glu)
def _glu(input: Tensor, dim: int = -1) -> Tensor:
    """Its jvp has no derivatives."""
    first, second = input.chunk(2, dim)
    return first * torch.sigmoid(second)


@replaces(ALWAYS, torch.cdist)
def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Its backward is wrong under vmap, and it has no jvp."""
    distance: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return distance


@replaces(NESTED, F.hardsigmoid)
def _hardsigmoid(input: Tensor, inplace: bool = False) -> Any:
    """Its backward has no forward derivative."""
    return NotImplemented if inplace else torch.clamp(input / 6 + 0.5, 0, 1)
