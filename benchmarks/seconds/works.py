"""The works: scalar functions of a sample, a batch of samples, and a loss of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..works import Params, Work, make_work, mlp_net

#: Hidden layers of the MLP, and their width.
DEPTH, WIDTH = 4, 256


@dataclass(frozen=True)
class Field(Work):
    """A network with one output, which is differentiated twice with respect to each sample."""

    @property
    def columns(self) -> int:
        """The coordinates of a sample."""
        return self.x[0].numel()

    def of_sample(self, sample: Tensor) -> Tensor:
        """The output for one sample ``(*in)``, a number."""
        return self.fn(self.params, sample)

    def of_batch(self, batch: Tensor) -> Tensor:
        """The outputs ``(B,)``."""
        return self.batch_fn(self.params, batch)


@dataclass(frozen=True)
class Loss(Work):
    """The mean squared error of a network on a batch, which is differentiated twice with respect to the weights."""

    @property
    def rows(self) -> int:
        """It is a number."""
        return 1

    def loss(self, params: Params) -> Tensor:
        """To targets that are a smooth function of the samples."""
        target = torch.sin(self.x.sum(1))
        return (self.batch_fn(params, self.x) - target).square().mean()


def flat(params: Params) -> Tensor:
    """As a batch of one sample, ``(1, P)``."""
    return torch.cat([weight.reshape(-1) for weight in params.values()]).unsqueeze(0)


def unflat(work: Loss) -> Callable[[Tensor], Tensor]:
    """The loss ``(1,)`` as a function of that."""
    sizes = [weight.numel() for weight in work.params.values()]

    def of(batch: Tensor) -> Tensor:
        parts = zip(work.params.items(), batch[0].split(sizes), strict=True)
        return work.loss({name: part.reshape(weight.shape) for (name, weight), part in parts}).unsqueeze(0)

    return of


# --- networks -------------------------------------------------------------------------------------


def tanh_net(*widths: int) -> nn.Sequential:
    """A tanh MLP with one output, which is a number for a sample."""
    return mlp_net(*widths, 1, activation=nn.Tanh).append(nn.Flatten(0))


class Encoder(nn.Module):
    """Points of a sequence to tokens, encoder layers in evaluation mode, mean over tokens, one output."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.embedding = nn.Linear(3, width)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        """``(B,)`` of ``(B, T, 3)``."""
        return self.head(self.layers(self.embedding(points)).mean(1)).squeeze(1)


class WaveFunction(nn.Module):
    """The logarithm of the absolute value of a determinant of orbitals, each of which sees all electrons.

    As FermiNet (Pfau et al. 2020, doi:10.1103/PhysRevResearch.2.033429), small: a stream of each electron and one of
    each pair, residual with tanh, which are mixed by means over the electrons of a spin; one nucleus.
    """

    def __init__(self, electrons: int = 10, width: int = 32, pairs: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.up = electrons // 2
        mixed = 3 * width + 2 * pairs
        self.start, self.pair_start = nn.Linear(4, width), nn.Linear(4, pairs)
        self.layers = nn.ModuleList(nn.Linear(mixed, width) for _ in range(layers))
        self.pair_layers = nn.ModuleList(nn.Linear(pairs, pairs) for _ in range(layers - 1))
        self.orbitals = nn.Linear(width, electrons)
        self.decay = nn.Parameter(torch.linspace(0.5, 1.5, electrons))
        self.register_buffer("same", torch.eye(electrons))
        for layer in (self.start, *self.layers):  # as if trained: orbitals that differ from one another
            layer.weight.data *= 2

    def forward(self, positions: Tensor) -> Tensor:
        """``(B,)`` of ``(B, electrons, 3)``."""
        radii = positions.norm(dim=-1, keepdim=True)
        between = positions.unsqueeze(2) - positions.unsqueeze(1)
        # An electron is at distance one from itself, where the root of zero would have no derivative.
        distances = (between.square().sum(-1) + self.same).sqrt().unsqueeze(-1)
        one = torch.tanh(self.start(torch.cat([positions, radii], -1)))
        two = torch.tanh(self.pair_start(torch.cat([between, distances], -1)))
        for number, layer in enumerate(self.layers):
            if number:
                two = two + torch.tanh(self.pair_layers[number - 1](two))
            means = [part.mean(1, keepdim=True).expand_as(one) for part in (one[:, : self.up], one[:, self.up :])]
            seen = [part.mean(2) for part in (two[:, :, : self.up], two[:, :, self.up :])]
            one = one + torch.tanh(layer(torch.cat([one, *means, *seen], -1)))
        orbitals = self.orbitals(one) * torch.exp(-radii * self.decay)
        return torch.linalg.slogdet(orbitals)[1]


# --- the works ------------------------------------------------------------------------------------


def field(name: str, about: str, net: nn.Module, x: Tensor) -> Field:
    """The work of a network with one output."""
    return Field(**vars(make_work(name, about, net, x)))


def _mlp(inputs: int) -> Field:
    net = tanh_net(inputs, *[WIDTH] * DEPTH)
    return field(f"mlp{inputs}", f"tanh MLP {inputs}-{WIDTH}x{DEPTH}-1", net, torch.randn(256, inputs))


def _transformer() -> Field:
    return field("transformer", "transformer, d=64, T=10, 2 layers", Encoder(), torch.randn(32, 10, 3))


def _wavefunction(samples: int) -> Field:
    """Of four times as many random positions those with the largest values: walkers are seldom near a node."""
    net = WaveFunction()
    x = torch.randn(4 * samples, 10, 3)
    with torch.no_grad():
        likely = net(x).topk(samples).indices
    return field(f"wave{samples}", "determinant wave function, 10 electrons", net, x[likely])


def _weights() -> Loss:
    """Nearly 8,000 of them."""
    about = "mean squared error of tanh MLP 16-80-80-1, 64 samples"
    return Loss(**vars(make_work("weights", about, tanh_net(16, 80, 80), torch.randn(64, 16))))


WORKS: dict[str, Callable[[], Field | Loss]] = {
    "mlp30": lambda: _mlp(30),
    "mlp90": lambda: _mlp(90),
    "transformer": _transformer,
    "wave64": lambda: _wavefunction(64),
    "wave256": lambda: _wavefunction(256),
    "weights": _weights,
}


def build(name: str, seed: int = 0) -> Field | Loss:
    """The named work; the same seed gives the same weights and data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WORKS[name]()
