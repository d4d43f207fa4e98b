"""The works: the networks and the data on which the benchmarks run.

Each work is the Jacobian of a network's outputs, for a batch of samples, with respect to all of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import make_functional

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """A network as a pure function, with its weights and a batch of data.

    Attributes:
        name: Short name, as the command line takes it.
        about: The network in words.
        fn: ``fn(params, sample)``, the network on one sample.
        batch_fn: ``batch_fn(params, batch)``, the same network on the batch at once.
        params: The weights by name.
        x: The batch, samples on axis 0.
        out_shape: The shape of the output for one sample.
        net: The network as a module, which takes the batch.
    """

    name: str
    about: str
    fn: Callable[[Params, Tensor], Tensor]
    batch_fn: Callable[[Params, Tensor], Tensor]
    params: Params
    x: Tensor
    out_shape: tuple[int, ...]
    net: nn.Module

    #: ``fn`` shares the weights between samples and takes one sample at a time.
    in_dims = (None, 0)

    @property
    def outputs(self) -> int:
        """The number of outputs for one sample."""
        return math.prod(self.out_shape)

    @property
    def rows(self) -> int:
        """Rows M of the Jacobian as a matrix."""
        return len(self.x) * self.outputs

    @property
    def columns(self) -> int:
        """Columns P of the Jacobian as a matrix."""
        return sum(p.numel() for p in self.params.values())

    @property
    def floor_bytes(self) -> int:
        """Bytes of the result: no method can write less."""
        return self.rows * self.columns * next(iter(self.params.values())).element_size()


class TokenTransformer(nn.Module):
    """Token embedding, two encoder layers without dropout, mean over tokens, linear head."""

    def __init__(self, tokens: int = 100, width: int = 64, layers: int = 2, outputs: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True)
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(N, outputs)`` of token sequences ``(N, T)``."""
        logits: Tensor = self.head(self.layers(self.embedding(tokens)).mean(1))
        return logits


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a skip connection, itself a 1x1 convolution where sizes change."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        stride = 1 if fan_in == fan_out else 2
        self.body = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, fan_in, H, W)`` to ``(N, fan_out, H / stride, W / stride)``."""
        return F.relu(self.body(x) + self.skip(x))


def resnet(*channels: int) -> nn.Sequential:
    """A stem, a residual block for each number of channels, average, linear head; evaluation mode."""
    stem = nn.Conv2d(3, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
    blocks = [Residual(*pair) for pair in pairwise((channels[0], *channels))]
    net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as if trained: new statistics and weights would make it the identity
            for values in (norm.running_var, norm.weight.data):
                values.uniform_(0.5, 1.5)
            for values in (norm.running_mean, norm.bias.data):
                values.normal_(std=0.1)
    return net.eval()


def mlp_net(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A multi-layer perceptron with the activation between its linear layers."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def cnn_net(*channels: int) -> nn.Sequential:
    """3x3 convolutions on RGB images with pooling between, global average, linear head with 10 outputs."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((3, *channels)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def conv3d_net() -> nn.Sequential:
    """Two 2x2x2 convolutions, 33 weights, one output: the example network of ChenAo-Phys/pytorch-Jacobian."""
    return nn.Sequential(
        nn.Conv3d(1, 2, 2, bias=False),
        nn.ReLU(),
        nn.Conv3d(2, 1, 2),
        nn.ReLU(),
        nn.AvgPool3d(4),
        nn.Flatten(0),
    )


def make_work(name: str, about: str, net: nn.Module, x: Tensor) -> Work:
    """The work of a network on a batch."""
    fn, params = make_functional(net)
    batch_fn, _ = make_functional(net, batched=True)
    return Work(name, about, fn, batch_fn, params, x, tuple(batch_fn(params, x[:1]).shape[1:]), net)


def _mlp() -> Work:
    return make_work("mlp", "MLP 784-256-128-10 ReLU", mlp_net(784, 256, 128, 10), torch.randn(64, 784))


def _wide() -> Work:
    return make_work("wide", "wide MLP 784-1024-10 ReLU", mlp_net(784, 1024, 10), torch.randn(16, 784))


def _resnet() -> Work:
    images = torch.randn(32, 3, 32, 32)
    return make_work("resnet", "ResNet-8, 16-32-64, 32x32, batch norm in eval", resnet(16, 32, 64), images)


def _cnn() -> Work:
    images = torch.randn(64, 3, 32, 32)
    return make_work("cnn", "CNN, conv 16-32-64 + linear, 32x32", cnn_net(16, 32, 64), images)


def _transformer() -> Work:
    tokens = torch.randint(100, (32, 32))
    return make_work("transformer", "transformer, d=64, T=32, 2 layers", TokenTransformer(), tokens)


def _lm() -> Work:
    net = mlp_net(1, 20, 20, 1, activation=nn.Tanh).append(nn.Flatten(0))
    return make_work("lm", "LM net 1-20-20-1 tanh", net, torch.linspace(-1, 1, 10000)[:, None])


def _conv3d() -> Work:
    return make_work("conv3d", "conv3d net, 6x6x6", conv3d_net(), torch.randn(1000, 1, 6, 6, 6))


WORKS: dict[str, Callable[[], Work]] = {
    "mlp": _mlp,
    "wide": _wide,
    "cnn": _cnn,
    "resnet": _resnet,
    "transformer": _transformer,
    "lm": _lm,
    "conv3d": _conv3d,
}


def build(name: str, seed: int = 0) -> Work:
    """Build the named work; the same seed gives the same weights and data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WORKS[name]()


def flat(jac: dict[str, Any], rows: int) -> Tensor:
    """A Jacobian pytree as one matrix ``(rows, P)``, columns in the order of the weights."""
    return torch.cat([leaf.reshape(rows, -1) for leaf in jac.values()], 1)
