"""What is fitted: a network's outputs to targets, by least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import works
from ..works import Params, Work, make_work, mlp_net

#: In the arguments ``(params, x, y)`` of a problem's residual, the samples.
IN_DIMS = (None, 0, 0)


@dataclass(frozen=True, eq=False)
class Problem:
    """``½ ‖net(x) - y‖²``, from the weights that the network has."""

    work: Work
    y: Tensor

    def residual(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Of one sample."""
        return self.work.fn(params, x) - y

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """The arguments of the residual beside the weights, for all samples."""
        return self.work.x, self.y

    @property
    def start(self) -> Tensor:
        """The weights, flat."""
        return flat(self.work.params)

    def params(self, weights: Tensor) -> Params:
        """Flat weights by name."""
        parts = weights.split([leaf.numel() for leaf in self.work.params.values()])
        return {name: part.view_as(leaf) for (name, leaf), part in zip(self.work.params.items(), parts, strict=True)}

    def residuals(self, weights: Tensor) -> Tensor:
        """All of them, ``(M,)``, from flat weights of any dtype."""
        x, y = (leaf.to(weights.dtype) for leaf in self.data)
        return (self.work.batch_fn(self.params(weights), x) - y).reshape(-1)

    def loss(self, weights: Tensor) -> float:
        """The mean of the squared residuals, in float64."""
        with torch.no_grad():
            return float(self.residuals(weights.double()).square().mean())


def flat(params: Params) -> Tensor:
    """Weights as one vector, a copy."""
    return torch.cat([leaf.detach().reshape(-1) for leaf in params.values()])


def sinc(samples: int = 20_000, seed: int = 0) -> Problem:
    """The curve of torch-levenberg-marquardt's README, by the network used there: 61 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp_net(1, 20, 1, activation=nn.Tanh)
    x = torch.linspace(-1, 1, samples)[:, None]
    return Problem(make_work("sinc", "1-20-1 tanh on sinc(10 x)", net, x), torch.sinc(10 * x))


def wide() -> Problem:
    """More weights than residuals: the MLP of the other benchmarks on random numbers."""
    work = works.build("mlp")
    y = torch.randn(len(work.x), work.outputs, generator=torch.Generator().manual_seed(1))
    return Problem(work, y)


def large(samples: int = 102_400, widths: tuple[int, ...] = (32, 256, 256, 128, 1)) -> Problem:
    """A network on the outputs of another one of its kind: the dense Jacobian takes 41 GiB in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, teacher = (mlp_net(*widths, activation=nn.Tanh) for _ in range(2))
        x = torch.randn(samples, widths[0])
    with torch.no_grad():
        y = teacher(x)
    name = "-".join(map(str, widths))
    return Problem(make_work("large", f"{name} tanh", net, x), y)


PROBLEMS: dict[str, Callable[[], Problem]] = {"sinc": sinc, "wide": wide}
