"""Fully connected layers (L2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn.quasilinear.factors import Matmul
from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._contraction import LETTERS, contraction
from jacfn.quasilinear.rules._registry import Use, rule
from jacfn.quasilinear.rules.elementwise import shift


@dataclasses.dataclass(frozen=True)
class Rows:
    """``x (*T, I)``, ``y (*T, O)``: one group, every leading axis is a position."""

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, 1, T, I)``."""
        return x.reshape(x.shape[0], 1, x.shape[1:-1].numel(), x.shape[-1])

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, 1, T, O)``."""
        return delta.reshape(*delta.shape[:2], 1, delta.shape[2:-1].numel(), delta.shape[-1])


@rule(
    F.linear,
    cases=lambda rand: [
        call(rand(3), rand(2, 3), rand(2)),
        call(rand(4, 2, 3), rand(2, 3)),
        call(rand(0, 3), rand(2, 3), rand(2)),
        call(input=rand(4, 3), weight=rand(2, 3), bias=rand(2)),
        call(rand(4, 3), rand(2, 3), rand(1)),
    ],
)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, Use]:
    """``y = x Wᵀ + b``."""
    batch = LETTERS[: input.ndim - 1]
    o = "o" if weight.ndim == 2 else ""
    return {
        "weight": Use(Matmul(Rows()) if o else contraction("i", batch + "i", batch), input),
        "input": Use(contraction(batch + "i", o + "i", batch + o), weight),
        "bias": shift(bias),
    }


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's own has no batching rule."""
    return F.linear(_products(input1, input2), weight.flatten(1), bias)


def _products(input1: Tensor, input2: Tensor) -> Tensor:
    return (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)


@rule(
    F.bilinear,
    torch.bilinear,
    evaluate=_bilinear,
    cases=lambda rand: [
        call(rand(2), rand(3), rand(4, 2, 3), rand(4)),
        call(rand(3, 5, 2), rand(3, 5, 3), rand(4, 2, 3), None),
    ],
)
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, Use]:
    """``y_o = x1ᵀ W_o x2 + b_o``: the weight, flattened, meets the outer products of both inputs."""
    return {
        "weight": Use(Matmul(Rows()), lambda: _products(input1, input2)),
        "bias": shift(bias),
    }
