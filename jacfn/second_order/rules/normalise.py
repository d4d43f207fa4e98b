"""Softmax and the normalisations (L3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, added, constant
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.linear import behind, by_rule
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten
_COARSE = (torch.float16, torch.bfloat16)  # PyTorch normalises these in single precision


@rule(aten._softmax.default)
def _softmax(x: Jet, dim: int, half_to_float: bool = False) -> Jet:
    x = _in(torch.float32, x) if half_to_float else x
    return _probabilities(x, torch.softmax(x.value, dim), dim)


@rule(aten._safe_softmax.default)
def _safe_softmax(x: Jet, dim: int, dtype: torch.dtype | None = None) -> Jet:
    """Nothing is probable where nothing is allowed."""
    x = x if dtype is None else _in(dtype, x)
    forbidden = (x.value == -torch.inf).all(dim, keepdim=True)
    return _probabilities(x, torch.softmax(x.value, dim).masked_fill(forbidden, 0), dim)


def _probabilities(x: Jet, p: Tensor, dim: int) -> Jet:
    """``p d`` and ``p (s - <s>)`` with ``d = J - <J>``, ``s = L + Σ d²`` and means by p."""
    if not x.value.ndim:
        return constant(p, x)
    axis = behind(dim, x.value.ndim)
    apart = _centred(x.first, p, axis)
    total = added(x.second, x.sum.product(apart, apart))
    assert total is not None
    return x.new(p, lambda: p * apart, p * _centred(total, p, axis))


@rule(aten._log_softmax.default)
def _log_softmax(x: Jet, dim: int, half_to_float: bool = False) -> Jet:
    """``d`` and ``L - <s>``, as in the softmax."""
    x = _in(torch.float32, x) if half_to_float else x
    value = torch.log_softmax(x.value, dim)
    if not x.value.ndim:
        return constant(value, x)
    axis, p = behind(dim, x.value.ndim), torch.exp(value)
    apart = _centred(x.first, p, axis)
    spread = (p * x.sum.product(apart, apart)).sum(axis, keepdim=True)
    linear = torch.zeros_like(value) if x.second is None else _centred(x.second, p, axis)
    return x.new(value, apart, linear - spread)


def _centred(x: Tensor, p: Tensor, axis: int) -> Tensor:
    """Without the mean by p."""
    return x - (p * x).sum(axis, keepdim=True)


def _in(dtype: torch.dtype, x: Any) -> Any:
    if plain(x).dtype == dtype:
        return x
    return x.linear(lambda t, lead: t.to(dtype)) if isinstance(x, Jet) else x.to(dtype)


def standardised(x: Any, axes: list[int], eps: float, weight: Any = None) -> tuple[Any, Any, Any]:
    """Without its mean, divided by its standard deviation, times a weight; the mean, and one over the deviation.

    The derivatives are centred once. Those of the deviation are small, so that what else is as large as the derivatives
    of ``x`` is one product, of what is centred with the deviation.
    """
    mean = by_rule(aten.mean.dim, x, axes, True)
    rest = by_rule(aten.sub.Tensor, x, mean)
    variance = by_rule(aten.mean.dim, by_rule(aten.pow.Tensor_Scalar, rest, 2), axes, True)
    inverse = by_rule(aten.rsqrt.default, by_rule(aten.add.Scalar, variance, eps))
    normal = by_rule(aten.mul.Tensor, rest, inverse)
    if weight is None or isinstance(weight, Jet) or not isinstance(x, Jet):
        return _affine(normal, weight, None), mean, inverse

    def first() -> Tensor:  # of the weighted product, with the weight in its small factors
        return torch.addcmul(weight * rest.value * inverse.first, weight * inverse.value, rest.first)

    return normal.new(weight * normal.value, first, weight * normal.second), mean, inverse


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else by_rule(aten.mul.Tensor, x, weight)
    return x if bias is None else by_rule(aten.add.Tensor, x, bias)


def _fine(x: Any) -> Any:
    return _in(torch.float32, x) if plain(x).dtype in _COARSE else x


@rule(aten.native_layer_norm.default)
def _layer_norm(x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    normal, mean, inverse = standardised(_fine(x), list(range(-len(shape), 0)), eps, weight)
    return _in(plain(x).dtype, _affine(normal, None, bias)), mean, inverse


@rule(aten.native_group_norm.default)
def _group_norm(
    x: Any, weight: Any, bias: Any, samples: int, channels: int, pixels: int, groups: int, eps: float
) -> tuple[Any, ...]:
    shape = list(plain(x).shape)
    normal, *small = standardised(by_rule(aten.reshape.default, _fine(x), [samples, groups, -1]), [-1], eps)
    normal = by_rule(aten.reshape.default, normal, shape)
    normal = _affine(normal, *(_channels(t, len(shape)) for t in (weight, bias)))
    return _in(plain(x).dtype, normal), *(by_rule(aten.squeeze.dim, t, -1) for t in small)


def _channels(x: Any, rank: int) -> Any:
    """One number a channel, along the second axis of so many."""
    return None if x is None else by_rule(aten.reshape.default, x, [-1, *[1] * (rank - 2)])


@rule(aten.native_batch_norm.default)
def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    """Running statistics that are to be updated are left to PyTorch."""
    if training and mean is not None:
        return NotImplemented
    rank, dtype, x = plain(x).ndim, plain(x).dtype, _fine(x)
    weight, bias = (_channels(t, rank) for t in (weight, bias))
    if training:
        axes = [-rank, *range(2 - rank, 0)]
        normal, *small = standardised(x, axes, eps, weight)
        small = [by_rule(aten.reshape.default, t, [-1]) for t in small]
        return _in(dtype, _affine(normal, None, bias)), *small
    inverse = by_rule(aten.rsqrt.default, by_rule(aten.add.Scalar, variance, eps))
    mean, inverse = (_channels(t, rank) for t in (mean, inverse))
    scale = _affine(inverse, weight, None)
    shift = by_rule(aten.neg.default, by_rule(aten.mul.Tensor, mean, scale))
    empty = plain(x).new_empty(0)
    return _in(dtype, _affine(x, scale, shift if bias is None else by_rule(aten.add.Tensor, shift, bias))), empty, empty


@rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm_evaluated(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float) -> Any:
    return _batch_norm(x, weight, bias, mean, variance, False, momentum, eps)


@rule(aten._native_batch_norm_legit.no_stats)
def _batch_norm_of_the_batch(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
    return _batch_norm(x, weight, bias, None, None, True, momentum, eps)


@rule(aten.cudnn_batch_norm.default)
def _batch_norm_of_cudnn(*args: Any) -> Any:
    """One more result, for the backward pass."""
    result = _batch_norm(*args)
    return result if result is NotImplemented else (*result, plain(args[0]).new_empty(0))


@rule(aten._fused_rms_norm.default)
def _rms_norm(x: Any, shape: Sequence[int], weight: Any, eps: float | None) -> tuple[Any, Any]:
    axes, fine = list(range(-len(shape), 0)), _fine(x)
    square = by_rule(aten.mean.dim, by_rule(aten.pow.Tensor_Scalar, fine, 2), axes, True)
    inverse = by_rule(
        aten.rsqrt.default, by_rule(aten.add.Scalar, square, torch.finfo(plain(fine).dtype).eps if eps is None else eps)
    )
    return _in(plain(x).dtype, _affine(by_rule(aten.mul.Tensor, fine, inverse), weight, None)), inverse
