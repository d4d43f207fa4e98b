"""A U-Net (Ronneberger et al. 2015): down, up by a transposed convolution, and the skip joined by concatenation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Example


def _double(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1),
        nn.GroupNorm(2, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.GroupNorm(2, out),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = _double(1, 4)
        self.pool = nn.MaxPool2d(2)
        self.bottom = _double(4, 6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join = _double(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        x = self.up(self.bottom(self.pool(skip)))
        return self.head(self.join(torch.cat([x, skip], 1)))


def build() -> Example:
    """Two channels at each place of a 4 by 4 image."""
    module = UNet()
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return Example(module, (torch.randn(2, 1, 4, 4),))
