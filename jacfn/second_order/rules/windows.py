"""Convolution, pooling, resampling (L3): along the last axes, behind a batch that takes the directions in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, Sum
from jacfn.second_order.rules.binary import combined, plain
from jacfn.second_order.rules.linear import by_rule, split_axis
from jacfn.second_order.rules.products import bilinear
from jacfn.second_order.rules.table import RULES, rule

aten = torch.ops.aten


def batched(x: Jet, spatial: int, operation: Callable[[Tensor], Tensor]) -> Jet:
    """``operation`` of ``([N,] C, *spatial)``: the directions join the batch, or are one."""

    def apply(t: Tensor, lead: int) -> Tensor:
        extra = t.ndim - spatial - 2
        return operation(t) if extra <= 0 else split_axis(operation(t.flatten(0, extra)), 0, t.shape[: extra + 1])

    return x.linear(apply)


def _over_batch(operation: Callable[..., Tensor], spatial: int) -> Callable[..., Jet]:
    return lambda x, *args: batched(x, spatial, lambda t: operation(t, *args))


RULES.update(
    {
        operation: _over_batch(operation, spatial)
        for operation, spatial in {
            aten.avg_pool1d.default: 1,
            aten.avg_pool2d.default: 2,
            aten.avg_pool3d.default: 3,
            aten._adaptive_avg_pool2d.default: 2,
            aten._adaptive_avg_pool3d.default: 3,
            aten.upsample_nearest1d.default: 1,
            aten.upsample_nearest2d.default: 2,
            aten.upsample_nearest3d.default: 3,
            aten._upsample_nearest_exact1d.default: 1,
            aten._upsample_nearest_exact2d.default: 2,
            aten._upsample_nearest_exact3d.default: 3,
            aten.upsample_linear1d.default: 1,
            aten.upsample_bilinear2d.default: 2,
            aten.upsample_bicubic2d.default: 2,
            aten.upsample_trilinear3d.default: 3,
            aten._upsample_bilinear2d_aa.default: 2,
            aten._upsample_bicubic2d_aa.default: 2,
            aten.reflection_pad1d.default: 1,
            aten.reflection_pad2d.default: 2,
            aten.reflection_pad3d.default: 3,
            aten.replication_pad1d.default: 1,
            aten.replication_pad2d.default: 2,
            aten.replication_pad3d.default: 3,
            aten.im2col.default: 2,
            aten.col2im.default: 1,
        }.items()
    }
)


def _largest(operation: Callable[..., Any], spatial: int) -> Callable[..., Any]:
    """Their places are those of single elements."""

    def apply(x: Jet, *args: Any) -> tuple[Jet, Tensor]:
        places: Tensor = operation(x.value.detach(), *args)[1]
        flat = places.flatten(-spatial)

        def take(t: Tensor, lead: int) -> Tensor:
            elements = t.flatten(-spatial).gather(-1, flat.expand(*t.shape[:lead], *flat.shape))
            return split_axis(elements, -1, places.shape[-spatial:])

        return x.linear(take), places

    return apply


RULES.update(
    {
        operation: _largest(operation, spatial)
        for operation, spatial in {
            aten.max_pool2d_with_indices.default: 2,
            aten.max_pool3d_with_indices.default: 3,
            aten.adaptive_max_pool2d.default: 2,
            aten.adaptive_max_pool3d.default: 3,
            aten.fractional_max_pool2d.default: 2,
            aten.fractional_max_pool3d.default: 3,
        }.items()
    }
)


# --- convolution ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution without bias, of ``(N, C, *spatial)`` and a weight, either with the directions in front."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool  # the weight is then (g i, o, *kernel) instead of (g o, i, *kernel), in g groups
    output_padding: Sequence[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Directions of ``x`` join the batch, those of the weight the channels of the result."""
        rank = len(self.stride) + 2
        if x.ndim > rank:
            return split_axis(self(x.flatten(0, 1), weight), 0, x.shape[:2])
        if weight.ndim > rank:
            result = self(x, self._side_by_side(weight, self.transposed))
            return split_axis(result, 1, (self.groups, len(weight), -1)).movedim(2, 0).flatten(2, 3)
        return self._convolved(x, weight, self.groups)

    def cross(self, x: Tensor, weight: Tensor, sum: Sum) -> Tensor:
        """Of each direction its own: as channels that are added up, or as further groups."""
        if sum.apart:
            stacked = x.movedim(0, 1).flatten(1, 2), weight.flatten(0, 1)
            return split_axis(self._convolved(*stacked, len(x) * self.groups), 1, (len(x), -1)).movedim(1, 0)
        channels = split_axis(sum.weighted(x), 2, (self.groups, -1)).movedim(0, 2).flatten(1, 3)
        return self._convolved(channels, self._side_by_side(weight, not self.transposed), self.groups)

    def _side_by_side(self, weight: Tensor, second: bool) -> Tensor:
        """The directions within the groups of the first axis of the weights, or within the second."""
        if second:
            return weight.movedim(0, 1).flatten(1, 2)  # (m, K n) <- (K, m, n)
        return split_axis(weight, 1, (self.groups, -1)).movedim(0, 1).flatten(0, 2)  # (g K m, n) <- (K, g m, n)

    def _convolved(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        places = self.stride, self.padding, self.dilation, self.transposed, self.output_padding
        result: Tensor = aten.convolution(x, weight, None, *places, groups)
        return result


@rule(aten.convolution.default)
def _convolution(x: Any, weight: Any, bias: Any, *window: Any) -> Any:
    convolved, spatial = Window(*window), plain(weight).ndim - 2
    if plain(x).ndim != spatial + 2:
        return NotImplemented
    apart = not isinstance(x, Jet) and not isinstance(weight, Jet)
    result = convolved(x, weight) if apart else bilinear(x, weight, convolved, convolved.cross)
    if bias is None:
        return result
    return combined(result, by_rule(aten.view.default, bias, [-1, *(1,) * spatial]), 1, 1)
