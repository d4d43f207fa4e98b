"""A SIREN (Sitzmann et al. 2020), and the residual of the Helmholtz equation that it is to solve."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models import Example


class Sine(nn.Module):
    """``sin(ω (W x + b))`` with the authors' initial weights."""

    def __init__(self, width: int, out: int, omega: float, first: bool) -> None:
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(width, out)
        bound = 1 / width if first else math.sqrt(6 / width) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Module):
    """A function of two coordinates."""

    def __init__(self, omega: float = 5.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(Sine(2, 6, omega, True), Sine(6, 6, omega, False), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Helmholtz(nn.Module):
    """``Δu + k² u`` at each point, with an unknown k: derivatives by transforms inside forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.wave_number = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        def u(point: Tensor) -> Tensor:
            return self.net(point)[0]

        laplacian = torch.func.vmap(lambda point: torch.func.hessian(u)(point).diagonal().sum())(x)
        return laplacian + self.wave_number**2 * self.net(x)[:, 0]


def build(output: str) -> Example:
    """The ``value`` of the network, or the ``residual`` of the equation."""
    net = Siren()
    return Example(net if output == "value" else Helmholtz(net), (torch.rand(4, 2),))
