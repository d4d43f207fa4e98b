"""Fully connected layers (L2)."""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from jacfn.quasilinear.factors import Matmul, Shift
from jacfn.quasilinear.rules._registry import Use, rule


@dataclasses.dataclass(frozen=True)
class Rows:
    """``x (*T, I)``, ``y (*T, O)``: one group, every leading axis is a position."""

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, 1, T, I)``."""
        return x.reshape(x.shape[0], 1, x.shape[1:-1].numel(), x.shape[-1])

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, 1, T, O)``."""
        return delta.reshape(*delta.shape[:2], 1, delta.shape[2:-1].numel(), delta.shape[-1])


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, Use]:
    """``y = x Wᵀ + b``."""
    if weight.ndim != 2:
        return {}
    return {"weight": Use(Matmul(Rows()), input), "bias": Use(Shift(Rows()), None)}
