"""Normalisations: their derivative formulas take the statistics for constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn._errors import JacfnError
from jacfn._exact.tables import ALWAYS, NESTED, refused, replaces
from jacfn._torch import weight_norm


@replaces(NESTED, F.layer_norm, torch.layer_norm)
def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardise(input, axes, eps), weight, bias)


@replaces(NESTED, F.batch_norm)
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training and running_mean is not None:
        raise JacfnError("batch_norm in training mode changes its running statistics: call module.eval() first")
    columns = [None if p is None else _as_channels(p, input) for p in (weight, bias)]
    if running_mean is None or running_var is None:
        return _affine(_standardise(input, (0, *range(2, input.ndim)), eps), *columns).to(input.dtype)
    centred = input - _as_channels(running_mean, input)
    return _affine(centred * torch.rsqrt(_as_channels(running_var, input) + eps), *columns).to(input.dtype)


@replaces(ALWAYS, F.batch_norm)
def _mixed_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Any:
    """Between layers of less precision, which its batching rule does not know."""
    kept = next((x.dtype for x in (running_mean, weight, bias) if x is not None), input.dtype)
    if kept == input.dtype:
        return NotImplemented
    return F.batch_norm(input.to(kept), running_mean, running_var, weight, bias, *options, **named).to(input.dtype)


@replaces(NESTED, F.instance_norm)
def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None or running_var is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    columns = [None if p is None else _as_channels(p, input) for p in (weight, bias)]
    return _affine(_standardise(input, tuple(range(2, input.ndim)), eps), *columns)


NESTED[torch.native_layer_norm] = refused("torch.native_layer_norm", "torch.nn.functional.layer_norm")
NESTED[torch.batch_norm] = refused("torch.batch_norm", "torch.nn.functional.batch_norm")
NESTED[torch.native_batch_norm] = refused("torch.native_batch_norm", "torch.nn.functional.batch_norm")
NESTED[torch.instance_norm] = refused("torch.instance_norm", "torch.nn.functional.instance_norm")


@replaces(ALWAYS, weight_norm)
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The fused kernel has no jvp, no batching rule, and a wrong second derivative."""
    axes = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]  # -1 stands for no axis
    v, g, axes = v.unsqueeze(-1), g.unsqueeze(-1), [*axes, -1]  # no axes would mean all of them
    unit = v / v.detach().abs().amax(axes, keepdim=True)  # squares neither overflow nor vanish
    return (unit * (g / unit.square().sum(axes, keepdim=True).sqrt())).squeeze(-1)


def _standardise(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _as_channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *(1,) * (x.ndim - 2))
