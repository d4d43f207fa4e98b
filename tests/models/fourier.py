"""A network for differential equations: Fourier features, gates and factorised weights (Wang et al. 2021, 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Example


class Factorised(nn.Module):
    """A linear layer whose weight is ``exp(s)`` times ``v``, row by row: a weight computed from parameters alone."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(out, width) / math.sqrt(width))
        self.s = nn.Parameter(0.1 * torch.randn(out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.s.exp()[:, None] * self.v, self.bias)


class FourierNet(nn.Module):
    """Random frequencies are data; every hidden layer is mixed from two encoders by a gate."""

    frequencies: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 4))
        self.first, self.second = nn.Linear(8, width), nn.Linear(8, width)
        self.layers = nn.ModuleList([Factorised(8, width), Factorised(width, width)])
        self.head = nn.Linear(width, 2)
        self.gain = nn.Parameter(torch.tensor(1.2))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x @ self.frequencies
        h = features = torch.cat([phase.cos(), phase.sin()], -1)
        u, v = torch.tanh(self.first(features)), torch.tanh(self.second(features))
        for layer in self.layers:
            gate = torch.tanh(layer(h))
            h = (1 - gate) * u + gate * v
        return self.gain * self.head(h)


def build() -> Example:
    """Two outputs at points of the plane."""
    return Example(FourierNet(), (torch.rand(4, 2),))
