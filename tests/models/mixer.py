"""An MLP-Mixer (Tolstikhin et al. 2021): perceptrons across patches and across channels in turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Example


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """On ``(batch, patches, channels)``."""

    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(channels), _perceptron(patches, 6)
        self.norm2, self.channels = nn.LayerNorm(channels), _perceptron(channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches by a strided convolution, blocks, the mean over patches."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, channels, 2, stride=2)
        self.blocks = nn.Sequential(MixerBlock(9, channels), MixerBlock(9, channels))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def build() -> Example:
    """Images of 6 by 6, hence 9 patches."""
    return Example(Mixer(), (torch.randn(3, 2, 6, 6),))
