"""Convolutions (L2): a matrix product of the weight with the patches of the input."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn.quasilinear.factors import Matmul, Shift
from jacfn.quasilinear.rules._cases import Call, Random, call
from jacfn.quasilinear.rules._registry import Use, rule

IntOrTuple = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Patches:
    """``x (B?, G·C, *space)``, ``y (B?, G·O, *places)``: positions are places of all images of the sample.

    The inputs of a position are its patch, ``I = C·prod(kernel)`` in the order of the weight's axes.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)``: the patches, with positions innermost in memory as in im2col."""
        axes = len(self.kernel)
        images, channels = x.shape[1 : -axes - 1].numel(), x.shape[-axes - 1] // self.groups
        x = x.reshape(x.shape[0], images, self.groups, channels, *x.shape[-axes:])
        if any(left or right for left, right in self.padding):
            x = F.pad(x, [side for pair in reversed(self.padding) for side in pair])
        for axis, (size, step, spacing) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(4 + axis, spacing * (size - 1) + 1, step)[..., ::spacing]
        # (N, B, G, C, *places, *kernel) -> (N, G, C, *kernel, B, *places)
        places, kernel = range(4, 4 + axes), range(4 + axes, 4 + 2 * axes)
        x = x.permute(0, 2, 3, *kernel, 1, *places)
        n, g = x.shape[:2]
        return x.reshape(n, g, x.shape[2 : 3 + axes].numel(), x.shape[3 + axes :].numel()).transpose(2, 3)

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)``."""
        return channels_last(delta, len(self.kernel), self.groups)


def _per_channel(channels: int, axes: int) -> Shift:
    return Shift((channels, *(1,) * axes))


@dataclasses.dataclass(frozen=True)
class TransposedPatches:
    """``x (B?, G·C, *places)``, ``y (B?, G·O, *space)``: every place of the input writes a patch of the output.

    The roles of a convolution are exchanged: positions are places of the *input*, and the outputs of a position are
    its patch, ``O·prod(kernel)`` in the order of the weight's axes, which are C, O, *kernel.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    added: tuple[int, ...]  # at the end of each axis of the output, by output_padding: they belong to no patch
    dilation: tuple[int, ...]
    groups: int

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, C)``."""
        return channels_last(x.unsqueeze(0), len(self.kernel), self.groups)[0]

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O·prod(kernel))``: the patches of the cotangents."""
        pads = tuple((pad, pad - added) for pad, added in zip(self.padding, self.added, strict=True))
        patches = Patches(self.kernel, self.stride, pads, self.dilation, self.groups)
        r, n = delta.shape[:2]
        x = patches.inputs(delta.flatten(0, 1))
        return x.view(r, n, *x.shape[1:])


def channels_last(delta: Tensor, axes: int, groups: int) -> Tensor:
    """``(R, N, G, T, C)`` from ``(R, N, B?, G·C, *places)``; the places of all images are positions."""
    r, n = delta.shape[:2]
    images, places = delta.shape[2 : -axes - 1].numel(), delta.shape[-axes:].numel()
    channels = delta.shape[-axes - 1] // groups
    delta = delta.reshape(r, n, images, groups, channels, places)
    return delta.permute(0, 1, 3, 2, 5, 4).reshape(r, n, groups, images * places, channels)


def _tuple(value: IntOrTuple, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _pads(padding: IntOrTuple | str, kernel: tuple[int, ...], spacing: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Zeros on the left and right of each axis; 'same' puts the odd one on the right."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(spacing, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    assert not isinstance(padding, str)
    return tuple((pad, pad) for pad in _tuple(padding, len(kernel)))


def _cases(rand: Random, axes: int) -> list[Call]:
    """Calls of a convolution along so many axes, for images whose sizes differ."""
    space = (4, 3, 2)[:axes]
    kernel = (3, 2, 1)[:axes]
    return [
        call(rand(2, 2, *space), rand(3, 2, *kernel), rand(3)),
        call(rand(2, *space), rand(4, 1, *kernel), rand(4), padding="same", groups=2),
        call(rand(1, 2, *space), rand(3, 2, *kernel), None, 2, kernel, 2),
        call(rand(1, 2, *space), rand(2, 2, *kernel), stride=kernel, padding="valid"),
    ]


def _transposed_cases(rand: Random, axes: int) -> list[Call]:
    """Calls of a transposed convolution along so many axes."""
    space = (3, 2, 2)[:axes]
    kernel = (3, 2, 1)[:axes]
    return [
        call(rand(2, 2, *space), rand(2, 3, *kernel), rand(3)),
        call(rand(4, *space), rand(4, 1, *kernel), rand(2), groups=2, padding=(1, 0, 0)[:axes]),
        call(rand(1, 2, *space), rand(2, 3, *kernel), None, 2, 0, 1, 1, (1, 2, 1)[:axes]),
    ]


@rule(torch.conv3d, name="conv3d", cases=lambda rand: _cases(rand, 3))
@rule(torch.conv2d, name="conv2d", cases=lambda rand: _cases(rand, 2))
@rule(torch.conv1d, name="conv1d", cases=lambda rand: _cases(rand, 1))
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> dict[str, Use]:
    """Patches of the input."""
    kernel = tuple(weight.shape[2:])
    axes = len(kernel)
    spacing = _tuple(dilation, axes)
    patches = Patches(kernel, _tuple(stride, axes), _pads(padding, kernel, spacing), spacing, groups)
    return {"weight": Use(Matmul(patches), input), "bias": Use(_per_channel(weight.shape[0], axes), None)}


@rule(torch.conv_transpose3d, name="conv_transpose3d", cases=lambda rand: _transposed_cases(rand, 3))
@rule(torch.conv_transpose2d, name="conv_transpose2d", cases=lambda rand: _transposed_cases(rand, 2))
@rule(torch.conv_transpose1d, name="conv_transpose1d", cases=lambda rand: _transposed_cases(rand, 1))
def transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
) -> dict[str, Use]:
    """Patches of the output."""
    kernel = tuple(weight.shape[2:])
    axes = len(kernel)
    layout = TransposedPatches(
        kernel,
        _tuple(stride, axes),
        _tuple(padding, axes),
        _tuple(output_padding, axes),
        _tuple(dilation, axes),
        groups,
    )
    outputs = weight.shape[1] * groups
    return {"weight": Use(Matmul(layout, swapped=True), input), "bias": Use(_per_channel(outputs, axes), None)}
