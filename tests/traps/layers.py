"""Modules of torch.nn with fixed weights, in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .case import values

Function = Callable[[Tensor], Tensor]


def fixed(module: nn.Module) -> nn.Module:
    """In double precision, with weights that do not depend on what was drawn before."""
    module = module.double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(values(*parameter.shape, low=-0.8, high=0.8).roll(number))
            parameter.requires_grad_(False)
    return module


def attention(*, need_weights: bool) -> Function:
    module = fixed(nn.MultiheadAttention(4, 2, batch_first=True))
    return lambda x: module(x[:1], x[1:2], x[2:3], need_weights=need_weights)[0]


def encoder(*, norm_first: bool) -> Function:
    module = fixed(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, norm_first=norm_first, activation="gelu"))
    return lambda x: module(x[:2])


def decoder() -> Function:
    module = fixed(nn.TransformerDecoderLayer(4, 2, 5, batch_first=True, activation="gelu"))
    return lambda x: module(x[:1], x[1:2])


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Function:
    module = fixed(kind(2, 3, **options))
    return lambda x: module(x)[0]


def cell(kind: type[nn.RNNCellBase]) -> Function:
    """Two steps, the hidden state of the first in the second."""
    module = fixed(kind(2, 2))

    def run(x: Tensor) -> Tensor:
        state = module(x[0])
        state = module(x[1], state)
        return state[0] if isinstance(state, tuple) else state

    return run


def of_weights(module: nn.Module) -> Function:
    """As a function of its weights: those of a parametrization are computed from others."""
    names = [name for name, _ in module.named_parameters()]
    start = dict(module.named_parameters())
    data = values(3, 4)

    def run(x: Tensor) -> Tensor:
        moved = {name: start[name] + x.reshape(-1)[: start[name].numel()].reshape_as(start[name]) for name in names}
        return torch.func.functional_call(module, moved, (data,))

    return run


def weight_norm() -> Function:
    return of_weights(nn.utils.parametrizations.weight_norm(fixed(nn.Linear(4, 4))))


def spectral_norm() -> Function:
    torch.manual_seed(0)  # where its power iteration starts
    module = fixed(nn.Linear(4, 4)).train()
    return of_weights(nn.utils.parametrizations.spectral_norm(module, n_power_iterations=20).eval())
