"""Values of an image between its pixels (L3): sums of the pixels around a place, weighted by how near they are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import plain
from jacfn.second_order.rules.linear import by_rule
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten

_BILINEAR, _NEAREST = 0, 1
_ZEROS, _REFLECTION = 0, 2
_SHARPNESS = -0.75  # of PyTorch's bicubic interpolation

Tap = tuple[Tensor, Any]  # pixels along an axis, and their weights, which may be jets
_plus = functools.partial(by_rule, aten.add.Tensor)
_times = functools.partial(by_rule, aten.mul.Tensor)
_viewed = functools.partial(by_rule, aten.view.default)


@rule(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def _grid_sampler(x: Any, grid: Any, mode: int, padding: int, align: bool) -> Any:
    """Of ``x``, ``(N, C, *sizes)``, at the places of ``grid``, ``(N, *places, axes)``, whose last axis is the first."""
    sizes, places = plain(x).shape[2:], plain(grid).shape[1:-1]
    axes = []
    for axis, size in enumerate(sizes):
        place = by_rule(aten.select.int, grid, -1, len(sizes) - 1 - axis)
        place = _plus(_times(place, (size - align) / 2), (size - 1) / 2)
        axes.append(_taps(place, mode, functools.partial(_padded, size=size, padding=padding, align=align)))
    pixels = _viewed(x, [*plain(x).shape[:2], -1])
    corners = [_weighted(pixels, sizes, corner) for corner in itertools.product(*axes)]
    return _viewed(functools.reduce(_plus, corners), [*plain(x).shape[:2], *places])


def _weighted(pixels: Any, sizes: Sequence[int], corner: Sequence[Tap]) -> Any:
    """The pixels on one side of the places times their weights, ``(N, C, places)``; nothing is outside of the image."""
    index: Any = 0
    weight: Any = 1.0
    for size, (pixel, own) in zip(sizes, corner, strict=True):
        inside = (pixel >= 0) & (pixel < size)
        index = index * size + torch.where(inside, pixel, 0).long()
        weight = _times(_times(own, inside.to(pixel.dtype)), weight)
    index = index.flatten(1).unsqueeze(1)  # (N, 1, places)
    taken = by_rule(aten.gather.default, pixels, -1, index.expand(-1, plain(pixels).shape[1], -1))
    return _times(taken, _viewed(weight, list(index.shape)))


def _taps(place: Any, mode: int, padded: Callable[[Any], Any]) -> list[Tap]:
    """Along one axis."""
    place = place if mode not in (_BILINEAR, _NEAREST) else padded(place)
    pixel = plain(place).detach().round() if mode == _NEAREST else plain(place).detach().floor()
    if mode == _NEAREST:
        return [(pixel, torch.ones_like(pixel))]
    part = _plus(place, -pixel)
    if mode == _BILINEAR:
        return [(pixel, _plus(_times(part, -1), 1)), (pixel + 1, part)]
    return [(padded(pixel + i), _cubic(part, i)) for i in (-1, 0, 1, 2)]


def _cubic(part: Any, pixel: int) -> Any:
    """The weight of a pixel at ``pixel``, from a place at ``part`` (Keys, Cubic convolution interpolation, 1981)."""
    a = _SHARPNESS
    near = pixel in (0, 1)
    # Of the distance d, by falling powers.
    third, square, line, rest = (a + 2, -a - 3, 0.0, 1.0) if near else (a, -5 * a, 8 * a, -4 * a)
    sign = 1 if pixel <= 0 else -1
    d = sign * (plain(part) - pixel)
    value = ((third * d + square) * d + line) * d + rest
    if not isinstance(part, Jet):
        return value
    return part.curved(value, sign * ((3 * third * d + 2 * square) * d + line), 6 * third * d + 2 * square)


def _padded(place: Any, size: int, padding: int, align: bool) -> Any:
    """Places outside of the image by others, on its border."""
    if padding == _ZEROS:
        return place
    if padding == _REFLECTION:
        place = _reflected(place, *((0.0, size - 1.0) if align else (-0.5, size - 0.5)))
    value = plain(place)
    return _straight(place, value.clamp(0, size - 1), (value > 0) & (value < size - 1))


def _reflected(place: Any, low: float, high: float) -> Any:
    value = plain(place)
    if low == high:
        return _straight(place, value * 0 + low, torch.zeros_like(value))
    far = (value - low).abs()
    odd = (far / (high - low)).floor() % 2 == 1
    beyond = torch.fmod(far, high - low)
    backwards = odd ^ (value < low)
    return _straight(place, torch.where(odd, high - beyond, low + beyond), torch.where(backwards, -1.0, 1.0))


def _straight(x: Any, value: Tensor, slope: Tensor) -> Any:
    """A function without curvature."""
    return x.curved(value, slope.to(value.dtype), None) if isinstance(x, Jet) else value
