"""The affine part of normalisations (L2): a weight that scales what was normalised, and a bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn.quasilinear.factors import Scale, Shift
from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._registry import Use, rule


def _affine(shape: tuple[int, ...], normalised: Callable[[], Tensor]) -> dict[str, Use]:
    return {"weight": Use(Scale(shape), normalised), "bias": Use(Shift(shape), None)}


def _per_channel(input: Tensor) -> tuple[int, ...]:
    return (input.shape[1], *(1,) * (input.ndim - 2))


@rule(
    F.layer_norm,
    cases=lambda rand: [
        call(rand(2, 3), (3,), rand(3), rand(3)),
        call(rand(4, 2, 3), [2, 3], rand(2, 3), eps=0.1),
        call(rand(4, 3), (3,), None, rand(3)),
    ],
)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> dict[str, Use]:
    """Over the last axes, a weight for each of their elements."""
    return _affine(tuple(normalized_shape), lambda: F.layer_norm(input, normalized_shape, None, None, eps))


@rule(torch.layer_norm, cases=lambda rand: [call(rand(2, 3), (3,), rand(3), rand(3), 0.1)])
def raw_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> dict[str, Use]:
    """The same."""
    return _affine(tuple(normalized_shape), lambda: F.layer_norm(input, normalized_shape, None, None, eps))


@rule(
    F.rms_norm,
    torch.rms_norm,
    cases=lambda rand: [call(rand(2, 3), (3,), rand(3)), call(rand(4, 2, 3), (2, 3), rand(2, 3), eps=0.1)],
)
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> dict[str, Use]:
    """Over the last axes, by the root of the mean square."""
    return _affine(tuple(normalized_shape), lambda: F.rms_norm(input, normalized_shape, None, eps))


@rule(
    F.group_norm,
    cases=lambda rand: [
        call(rand(2, 4, 3), 2, rand(4), rand(4)),
        call(rand(2, 4), 1, rand(4), rand(4)),
        call(rand(1, 2, 2, 3), 2, rand(2), None, eps=0.1),
    ],
)
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> dict[str, Use]:
    """Over groups of channels, a weight for each channel."""
    return _affine(_per_channel(input), lambda: F.group_norm(input, num_groups, None, None, eps))


@rule(
    F.instance_norm,
    cases=lambda rand: [
        call(rand(2, 3, 4), weight=rand(3), bias=rand(3)),
        call(rand(1, 2, 2, 3), weight=rand(2), eps=0.1),
        call(rand(1, 3, 4), rand(3), rand(3).abs(), rand(3), rand(3), use_input_stats=False),
    ],
)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Use]:
    """Over the places of each channel."""
    if running_mean is not None and use_input_stats:
        return {}  # changes its running statistics
    return _affine(
        _per_channel(input),
        lambda: F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps),
    )


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
    """By running statistics it is one affine map for each channel: the kernel of its derivative knows no vmap."""
    if running_mean is None or running_var is None or training:
        momentum = 0.0 if momentum is None else momentum
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else weight * scale
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    axes = (-1, *(1,) * (input.ndim - 2))
    return torch.addcmul(shift.view(axes), input, scale.view(axes))


@rule(
    F.batch_norm,
    evaluate=_batch_norm,
    cases=lambda rand: [
        call(rand(2, 3), rand(3), rand(3).abs(), rand(3), rand(3)),
        call(rand(1, 3, 2, 2), rand(3), rand(3).abs(), rand(3), None, eps=0.1),
        call(rand(3, 2), None, None, rand(2), rand(2), training=True),
    ],
)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> dict[str, Use]:
    """By running statistics (a layer in eval mode), or by those of a batch that is one sample of fn."""
    if training and running_mean is not None:
        return {}  # changes its running statistics
    return _affine(
        _per_channel(input),
        lambda: _batch_norm(input, running_mean, running_var, None, None, training, momentum, eps),
    )
