"""A graph convolution network (Kipf and Welling 2016), in plain matrix products ``A X W``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Example


class GraphConvolution(nn.Module):
    """The weight multiplies from the right, where ``nn.Linear`` would have it transposed."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        return adjacency @ x @ self.weight + self.bias


class GCN(nn.Module):
    """Two layers, one output for each class at each node; a last product learns how nodes are mixed."""

    adjacency: Tensor

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = GraphConvolution(4, 6), GraphConvolution(6, 2)
        self.mix = nn.Parameter(torch.randn(len(adjacency), len(adjacency)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.adjacency, x).relu()
        return self.mix @ self.second(self.adjacency, x)


def build() -> Example:
    """A ring of six nodes, with D^(-1/2) (A + I) D^(-1/2), where every degree is 3."""
    ring = torch.eye(6) + torch.eye(6).roll(1, 0) + torch.eye(6).roll(-1, 0)
    return Example(GCN(ring / 3), (torch.randn(3, 6, 4),))
