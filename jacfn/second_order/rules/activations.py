"""Activations and losses (L3), whole: taken apart they would have branches that overflow where they are not taken."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.linear import by_rule
from jacfn.second_order.rules.table import rule
from jacfn.second_order.rules.unary import bent

aten = torch.ops.aten
_FAR = 40.0  # beyond it the bell of erf and of tanh is zero in double precision, and its factors might overflow


# Linear in pieces.


@rule(aten.relu.default)
def _relu(x: Jet) -> Jet:
    return bent(x, torch.relu(x.value), x.value > 0)


@rule(aten.hardtanh.default)
def _hardtanh(x: Jet, low: Any = -1, high: Any = 1) -> Jet:
    return bent(x, x.value.clamp(low, high), (x.value > low) & (x.value < high))


@rule(aten.hardsigmoid.default)
def _hardsigmoid(x: Jet) -> Jet:
    value = aten.hardsigmoid(x.value)
    return x.curved(value, (x.value.abs() < 3).to(value.dtype) / 6, None)


@rule(aten.hardshrink.default)
def _hardshrink(x: Jet, width: Any = 0.5) -> Jet:
    return bent(x, aten.hardshrink(x.value, width), x.value.abs() > width)


@rule(aten.softshrink.default)
def _softshrink(x: Jet, width: Any = 0.5) -> Jet:
    return bent(x, aten.softshrink(x.value, width), x.value.abs() > width)


@rule(aten.threshold.default)
def _threshold(x: Jet, threshold: Any, value: Any) -> Jet:
    return bent(x, aten.threshold(x.value, threshold, value), x.value > threshold)


@rule(aten.leaky_relu.default)
def _leaky_relu(x: Jet, slope: Any = 0.01) -> Jet:
    return x.curved(aten.leaky_relu(x.value, slope), _sides(x.value, 1.0, slope), None)


@rule(aten.rrelu_with_noise.default)
def _rrelu(
    x: Jet, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Jet:
    """The noise, of which nobody else knows, is drawn here in the shape of x."""
    slope = (lower + (upper - lower) * torch.rand_like(x.value)) if training else (lower + upper) / 2
    slope = torch.where(x.value > 0, 1.0, x.value.new_ones(()) * slope)
    return x.curved(x.value * slope, slope, None)


@rule(aten.rrelu_with_noise_functional.default)
def _rrelu_functional(x: Jet, noise: Any, *more: Any) -> tuple[Jet, Any]:
    return _rrelu(x, noise, *more), noise


def _sides(x: Tensor, right: float, left: float) -> Tensor:
    """Numbers of the two sides of zero."""
    return torch.where(x > 0, torch.full_like(x, right), left)


# Smooth.


@rule(aten.silu.default)
def _silu(x: Jet) -> Jet:
    """``x σ(x)``, ``σ (1 + x (1 - σ))``, ``σ (1 - σ) (2 + x (1 - 2 σ))``."""
    z = x.value
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    return x.curved(z * s, s * (1 + z * c), s * c * (2 + z * (c - s)))


@rule(aten.mish.default)
def _mish(x: Jet) -> Jet:
    """``x t`` with ``t = tanh(log(1 + exp x))``, ``t' = σ (1 - t²)``, ``t'' = t' (1 - σ - 2 t σ)``."""
    z = x.value
    s, t = torch.sigmoid(z), torch.tanh(aten.softplus(z))
    slope = s * (1 - t * t)
    return x.curved(z * t, t + z * slope, slope * (2 + z * (1 - s - 2 * t * s)))


@rule(aten.gelu.default)
def _gelu(x: Jet, *, approximate: str = "none") -> Jet:
    """``x Φ(x)``, ``Φ + x φ``, ``φ (2 - x²)``; or ``x (1 + tanh u(x))/2`` with a cubic u."""
    z = x.value.clamp(-_FAR, _FAR)
    if approximate == "none":
        bell = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        half = 0.5 * torch.erfc(-math.sqrt(0.5) * z)
        return x.curved(x.value * half, half + z * bell, bell * (2 - z * z))
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (z + cubic * z * z * z))
    once, twice, bell = scale * (1 + 3 * cubic * z * z), 6 * scale * cubic * z, 1 - t * t
    slope = 0.5 * (1 + t) + 0.5 * z * bell * once
    return x.curved(0.5 * x.value * (1 + t), slope, bell * (once + 0.5 * z * twice - z * t * once * once))


@rule(aten.softplus.default)
def _softplus(x: Jet, beta: Any = 1, threshold: Any = 20) -> Jet:
    z = beta * x.value
    s, linear = torch.sigmoid(z), z > threshold
    curvature = (beta * s * torch.sigmoid(-z)).masked_fill(linear, 0)
    return x.curved(aten.softplus(x.value, beta, threshold), s.masked_fill(linear, 1), curvature)


@rule(aten.log_sigmoid_forward.default)
def _log_sigmoid(x: Jet) -> tuple[Jet, Tensor]:
    """And what PyTorch's backward pass would want of it."""
    value, buffer = aten.log_sigmoid_forward(x.value)
    rest = torch.sigmoid(-x.value)
    return x.curved(value, rest, -rest * torch.sigmoid(x.value)), buffer


@rule(aten.elu.default)
def _elu(x: Jet, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Jet:
    """``scale α (exp(input_scale x) - 1)`` on the left of zero."""
    z = x.value
    left = scale * alpha * input_scale * torch.exp(input_scale * z.clamp(max=0))
    slope, curvature = torch.where(z > 0, scale, left), torch.where(z > 0, 0.0, input_scale * left)
    return x.curved(aten.elu(z, alpha, scale, input_scale), slope, curvature)


@rule(aten.celu.default)
def _celu(x: Jet, alpha: Any = 1) -> Jet:
    return _elu(x, alpha, 1, 1 / alpha)


@rule(aten.hardswish.default)
def _hardswish(x: Jet) -> Jet:
    """A parabola between -3 and 3."""
    z = x.value
    bowl = (z.abs() < 3).to(z.dtype)
    return x.curved(aten.hardswish(z), torch.where(z >= 3, 1.0, bowl * (z / 3 + 0.5)), bowl / 3)


# Losses.


@rule(aten.binary_cross_entropy.default)
def _binary_cross_entropy(x: Any, target: Any, weight: Any = None, reduction: int = 1) -> Any:
    """``-(t log x + (1 - t) log(1 - x))``; logarithms are -100 at least, and have no derivatives there."""
    yes, no = _log(x), _log(by_rule(aten.rsub.Scalar, x, 1))
    loss = _minus(_times(target, _minus(no, yes)), no)
    return _reduced(loss if weight is None else _times(weight, loss), reduction)


def _log(x: Any) -> Any:
    """Of a probability."""
    p = plain(x)
    low = p < math.exp(-100)
    p = torch.where(low, 1.0, p)
    value = torch.log(p).masked_fill(low, -100)
    if not isinstance(x, Jet):
        return value
    slope = (1 / p).masked_fill(low, 0)
    return x.curved(value, slope, -slope * slope)


@rule(aten.soft_margin_loss.default)
def _soft_margin_loss(x: Any, target: Any, reduction: int = 1) -> Any:
    """``-log σ(t x)``."""
    log, _ = _log_sigmoid(_times(x, target))
    return _reduced(by_rule(aten.neg.default, log), reduction)


@rule(aten.multilabel_margin_loss_forward.default)
def _multilabel_margin_loss(*args: Any) -> Any:
    """PyTorch takes it apart wrongly: what stands behind the end of the targets counts."""
    return NotImplemented


@rule(torch.nn.functional.gaussian_nll_loss)
def _gaussian_nll_loss(
    input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """``½ (log v + (x - t)²/v)`` where v is the variance or eps, by which only the value is changed."""
    if not isinstance(var, (Jet, Tensor)) or plain(var).shape != plain(input).shape:
        return NotImplemented
    floor = plain(var).clamp(min=eps)
    var = by_rule(aten.add.Tensor, var, (floor - plain(var)).detach())
    square = by_rule(aten.pow.Tensor_Scalar, _minus(input, target), 2)
    loss = by_rule(aten.add.Tensor, by_rule(aten.log.default, var), by_rule(aten.div.Tensor, square, var))
    loss = by_rule(aten.mul.Scalar, loss, 0.5)
    if full:
        loss = by_rule(aten.add.Scalar, loss, 0.5 * math.log(2 * math.pi))
    return _reduced(loss, ("none", "mean", "sum").index(reduction))


def _minus(a: Any, b: Any) -> Any:
    return by_rule(aten.sub.Tensor, a, b)


def _times(a: Any, b: Any) -> Any:
    return by_rule(aten.mul.Tensor, a, b)


def _reduced(loss: Any, reduction: int) -> Any:
    """0: not, 1: mean, 2: sum."""
    return loss if reduction == 0 else by_rule(aten.mean.default if reduction == 1 else aten.sum.default, loss)
