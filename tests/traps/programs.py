"""Cases that are more than one call: custom Functions, checkpoints, derivatives inside, a wave function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .case import Case, D, group, values

CASES: list[Case] = []

hidden, last = values(3, 3), values(3, 2)


class WithJvp(torch.autograd.Function):
    """The sine, with all that a Function may have."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * cotangent

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * tangent


class WithoutJvp(torch.autograd.Function):
    """For reverse mode."""

    generate_vmap_rule = True
    forward = WithJvp.forward
    backward = WithJvp.backward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class OfOutput(torch.autograd.Function):
    """The exponential, whose backward uses the output that it saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * cotangent


class WithoutVmap(WithoutJvp):
    """Without a rule for samples."""

    generate_vmap_rule = False


class OldStyle(torch.autograd.Function):
    """With ``ctx`` in its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    backward = WithJvp.backward


def perceptron(x: Tensor) -> Tensor:
    """Two layers."""
    return torch.tanh(x @ hidden + 0.1) @ last


def written(x: Tensor) -> Tensor:
    """Into a slice of a copy."""
    y = x.clone()
    y[0] = x[1] * x[2]
    y[:, 1] = x[:, 0].exp()
    return y


def potential(x: Tensor) -> Tensor:
    """A scalar."""
    return perceptron(x).sin().sum()


def by_autograd(x: Tensor) -> Tensor:
    """The gradient of a potential, in the way that knows no torch.func."""
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(potential(at), at, create_graph=True)[0]


def slater(x: Tensor) -> Tensor:
    """log|ψ| of three electrons in three dimensions: a determinant of orbitals with backflow, and a Jastrow factor."""
    apart = x[:, None] - x[None, :] + torch.eye(3, dtype=D)[..., None]  # ones on the diagonal, which is not used
    away = 1 - torch.eye(3, dtype=D)
    distance = torch.linalg.vector_norm(apart, dim=-1)
    moved = x + (away[..., None] * apart * torch.exp(-distance)[..., None]).sum(1) / 4  # backflow
    orbitals = torch.tanh(moved @ hidden) * torch.exp(-torch.linalg.vector_norm(x, dim=-1, keepdim=True) / 2)
    jastrow = -(away * 0.25 / (1 + distance)).sum()
    return torch.linalg.slogdet(orbitals)[1] + jastrow


CASES += group(
    "Programs",
    values(3, 3, low=-1.2, high=1.6),
    {
        "checkpoint (use_reentrant=False)": lambda x: checkpoint(perceptron, x, use_reentrant=False),
        "checkpoint (use_reentrant=True)": lambda x: checkpoint(perceptron, x, use_reentrant=True),
        "autograd.Function with jvp": lambda x: WithJvp.apply(x * x),
        "autograd.Function without jvp": lambda x: WithoutJvp.apply(x * x),
        "autograd.Function that saves its output": lambda x: OfOutput.apply(x * x / 2),
        "autograd.Function without a rule for vmap": lambda x: WithoutVmap.apply(x * x),
        "autograd.Function of the old style": lambda x: OldStyle.apply(x * x),
        "torch.func.grad in the function": torch.func.grad(potential),
        "torch.func.jvp in the function": lambda x: torch.func.jvp(perceptron, (x,), (x.sin(),))[1],
        "torch.func.vmap in the function": torch.func.vmap(perceptron),
        "torch.autograd.grad in the function": by_autograd,
        "a Slater determinant with backflow": slater,
    },
)
