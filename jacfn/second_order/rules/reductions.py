"""Reductions and running reductions that are not linear (L3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, added, constant
from jacfn.second_order.rules.binary import combined, product
from jacfn.second_order.rules.linear import all_axes, behind
from jacfn.second_order.rules.table import RULES, rule

aten = torch.ops.aten

# By the indices of the elements that are taken.


def _by_indices(operation: Callable[..., Any], place: int) -> Callable[..., tuple[Jet, Tensor]]:
    """Of ``(values, indices)``; the axis stands at this place behind the tensor."""

    def apply(x: Jet, *args: Any, **kwargs: Any) -> tuple[Jet, Tensor]:
        _, indices = operation(x.value, *args, **kwargs)
        if not x.value.ndim:
            return x, indices
        axis = behind(kwargs.get("dim", args[place] if len(args) > place else -1), x.value.ndim)
        if indices.ndim == x.value.ndim:
            return _taken(x, indices, axis), indices
        return _taken(x, indices.unsqueeze(axis), axis).linear(lambda t, lead: t.squeeze(axis)), indices

    return apply


def _taken(x: Jet, indices: Tensor, axis: int) -> Jet:
    return x.linear(lambda t, lead: torch.take_along_dim(t, indices.unsqueeze(0) if lead else indices, axis))


for _operation, _place in (
    (aten.max.dim, 0),
    (aten.min.dim, 0),
    (aten.median.dim, 0),
    (aten.nanmedian.dim, 0),
    (aten.mode.default, 0),
    (aten.cummax.default, 0),
    (aten.cummin.default, 0),
    (aten.sort.default, 0),
    (aten.sort.stable, 1),
    (aten.topk.default, 1),
    (aten.kthvalue.default, 1),
):
    RULES[_operation] = _by_indices(_operation, _place)


@rule(aten.amax.default, aten.max.default)
def _amax(x: Jet, dim: Sequence[int] = (), keepdim: bool = False) -> Jet:
    return _shared(x, x.value.amax(list(dim), keepdim=True), dim, keepdim)


@rule(aten.amin.default, aten.min.default)
def _amin(x: Jet, dim: Sequence[int] = (), keepdim: bool = False) -> Jet:
    return _shared(x, x.value.amin(list(dim), keepdim=True), dim, keepdim)


@rule(aten.median.default)
def _median(x: Jet) -> Jet:
    return _shared(x, x.value.median(), (), False)


@rule(aten.nanmedian.default)
def _nanmedian(x: Jet) -> Jet:
    return _shared(x, x.value.nanmedian(), (), False)


def _shared(x: Jet, chosen: Tensor, dim: Sequence[int], keepdim: bool) -> Jet:
    """One of the elements; those that are equal have the same part in its derivatives."""
    axes = all_axes(x, dim)
    equal = (x.value == chosen).to(x.value.dtype)
    return weighted_sum(x, equal / total(equal, axes, True), axes, keepdim)


def total(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """The sum; along no axes it is nothing that torch knows."""
    return x.sum(axes, keepdim) if axes else x


def weighted_sum(x: Jet, weights: Tensor, axes: list[int], keepdim: bool) -> Jet:
    """``Σ w x`` along axes."""
    return x.linear(lambda t, lead: total(t * weights, axes, keepdim))


# Products.


@rule(aten.prod.default)
def _prod(x: Jet, *, dtype: torch.dtype | None = None) -> Jet:
    flat = x.linear(lambda t, lead: t.to(dtype or t.dtype).flatten(lead) if t.ndim > lead else t.unsqueeze(-1))
    return _product(flat, -1).linear(lambda t, lead: t.squeeze(-1))


@rule(aten.prod.dim_int)
def _prod_along(x: Jet, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Jet:
    if not x.value.ndim:
        return _prod(x, dtype=dtype)
    axis = behind(dim, x.value.ndim)
    result = _product(x.linear(lambda t, lead: t.to(dtype or t.dtype)), axis)
    return result if keepdim else result.linear(lambda t, lead: t.squeeze(axis))


def _product(x: Jet, axis: int) -> Jet:
    """Of halves, again and again: nothing is divided by, so there may be zeros."""
    rests = []
    while (length := x.value.shape[axis]) > 1:
        if length % 2:
            rests.append(_part(x, axis, length - 1, 1))
        x = _times(_part(x, axis, 0, length // 2), _part(x, axis, length // 2, length // 2))
    if not x.value.shape[axis]:
        shape = list(x.value.shape)
        shape[axis] = 1
        return constant(x.value.new_ones(shape), x)
    for rest in rests:
        x = _times(x, rest)
    return x


def _part(x: Jet, axis: int, low: int, length: int) -> Jet:
    return x.linear(lambda t, lead: t.narrow(axis, low, length))


def _times(a: Jet, b: Jet) -> Jet:
    return product(a, b, a.value * b.value)


@rule(aten.cumprod.default)
def _cumprod(x: Jet, dim: int, *, dtype: torch.dtype | None = None) -> Jet:
    return _running(x.linear(lambda t, lead: t.to(dtype or t.dtype)), dim, _times)


@rule(aten.logcumsumexp.default)
def _logcumsumexp(x: Jet, dim: int) -> Jet:
    return _running(x, dim, RULES[aten.logaddexp.default])


def _running(x: Jet, dim: int, combine: Callable[[Jet, Jet], Jet]) -> Jet:
    """Over 1, 2, 4, ... elements (Hillis and Steele, Data parallel algorithms, 1986)."""
    if not x.value.ndim:
        return x
    axis, width = behind(dim, x.value.ndim), 1
    while width < (length := x.value.shape[axis]):
        longer = combine(_part(x, axis, width, length - width), _part(x, axis, 0, length - width))
        x = RULES[aten.cat.default]([_part(x, axis, 0, width), longer], axis)
        width *= 2
    return x


# Moments and norms.


@rule(aten.logsumexp.default)
def _logsumexp(x: Jet, dim: Sequence[int], keepdim: bool = False) -> Jet:
    """With ``p = softmax``: ``m = <J>`` and ``<L> + Σ <(J - m)²>``, means by p."""
    axes = all_axes(x, dim)
    value = x.value.logsumexp(axes, keepdim=True) if axes else x.value
    p = torch.exp(x.value - value.masked_fill(value.isinf(), 0))
    mean = weighted_sum(x, p, axes, True)
    apart = x.first - mean.first
    second = added(mean.second, total(p * x.sum.product(apart, apart), axes, True))
    return _kept(x.new(value, lambda: mean.first, second), axes, keepdim)


def _kept(x: Jet, axes: list[int], keepdim: bool) -> Jet:
    return x if keepdim or not axes else x.linear(lambda t, lead: t.squeeze(axes))


def centred(x: Jet, axes: list[int]) -> tuple[Jet, Jet]:
    """What is left without the mean, and the mean."""
    mean = x.linear(lambda t, lead: t.mean(axes, keepdim=True) if axes else t)
    return combined(x, mean, 1, -1), mean


def square(x: Jet) -> Jet:
    """Of each element."""
    result: Jet = RULES[aten.pow.Tensor_Scalar](x, 2)
    return result


def _moments(x: Jet, dim: Any, correction: Any, keepdim: bool) -> tuple[Jet, Jet]:
    """Variance and mean."""
    axes = all_axes(x, dim)
    rest, mean = centred(x, axes)
    count = math.prod(x.value.shape[axis] for axis in axes)
    freedom = max(count - (1 if correction is None else correction), 0)
    variance = square(rest).linear(lambda t, lead: total(t, axes, keepdim) / freedom)
    return variance, _kept(mean, axes, keepdim)


@rule(aten.var_mean.correction)
def _var_mean(x: Jet, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return NotImplemented if x.value.is_complex() else _moments(x, dim, correction, keepdim)


@rule(aten.var.correction)
def _var(x: Jet, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return NotImplemented if x.value.is_complex() else _moments(x, dim, correction, keepdim)[0]


@rule(aten.std_mean.correction)
def _std_mean(x: Jet, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    if x.value.is_complex():
        return NotImplemented
    variance, mean = _moments(x, dim, correction, keepdim)
    return _root(variance), mean


@rule(aten.std.correction)
def _std(x: Jet, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return NotImplemented if x.value.is_complex() else _root(_moments(x, dim, correction, keepdim)[0])


def _root(x: Jet) -> Jet:
    """The derivatives of the root of zero are taken for zero, as PyTorch takes those of a standard deviation."""
    zero = x.value == 0
    root = torch.sqrt(torch.where(zero, 1.0, x.value))
    slope = (0.5 / root).masked_fill(zero, 0)
    return x.curved(root.masked_fill(zero, 0), slope, -2 * slope * slope * slope)


@rule(aten.linalg_vector_norm.default)
def _norm(x: Jet, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """With ``u = |x|/n``: ``Σ s J`` where ``s = sgn(x) uᵖ⁻¹``, and ``Σ s L + (p - 1)/n (Σ uᵖ⁻² J² - (Σ s J)²)``.

    At ``n = 0`` the derivatives are zero, as PyTorch has them.
    """
    if x.value.is_complex():
        return NotImplemented
    x, axes = x.linear(lambda t, lead: t.to(dtype or t.dtype)), all_axes(x, dim)
    if math.isinf(ord):
        return (_amax if ord > 0 else _amin)(RULES[aten.abs.default](x), axes, keepdim)
    value = torch.linalg.vector_norm(x.value, ord, axes or None, keepdim=True)
    if ord == 0:
        return _kept(constant(value, x), axes, keepdim)
    zero = value == 0
    inverse = 1 / torch.where(zero, 1.0, value)
    unit = x.value * inverse
    if ord != 2:
        size = torch.where(x.value == 0, 1.0, unit.abs()) if ord < 1 else unit.abs()
        unit = torch.sign(x.value) * size ** (ord - 1)
    slope = weighted_sum(x, unit, axes, True)
    if ord == 1:
        return _kept(x.new(value, lambda: slope.first, slope.second), axes, keepdim)
    bend = x.sum.product(x.first, x.first)
    bend = total(bend if ord == 2 else bend * size ** (ord - 2), axes, True)
    bend = (ord - 1) * inverse.masked_fill(zero, 0) * (bend - x.sum.product(slope.first, slope.first))
    return _kept(x.new(value, lambda: slope.first, added(slope.second, bend)), axes, keepdim)


@rule(aten.dist.default)
def _dist(a: Any, b: Any, p: float = 2) -> Any:
    return _norm(combined(a, b, 1, -1), p)


# By torch functions, which ask for numbers on the way.


@rule(torch.cov, torch.Tensor.cov)
def _cov(x: Jet, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    """Of rows."""
    if fweights is not None or aweights is not None or x.value.is_complex():
        return NotImplemented
    rows = x.linear(lambda t, lead: t.reshape(*t.shape[:lead], -1, t.shape[-1])) if x.value.ndim else x
    rest, _ = centred(rows, [-1])
    freedom = max(rows.value.shape[-1] - correction, 0)
    products: Jet = RULES[aten.mm.default](rest, rest.linear(lambda t, lead: t.mT))
    result = products.linear(lambda t, lead: t / freedom)
    return result if x.value.ndim > 1 else result.linear(lambda t, lead: t.squeeze((-1, -2)))


@rule(torch.corrcoef, torch.Tensor.corrcoef)
def _corrcoef(x: Jet) -> Any:
    if x.value.ndim != 2:
        return NotImplemented
    covariance = _cov(x)
    if covariance is NotImplemented:
        return NotImplemented
    deviation = _root(covariance.linear(lambda t, lead: t.diagonal(0, -2, -1)))
    divide, column = RULES[aten.div.Tensor], deviation.linear(lambda t, lead: t.unsqueeze(-1))
    return divide(divide(covariance, column), column.linear(lambda t, lead: t.mT))
