"""Rules for convolution, pooling, padding and resampling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import check
from torch.nn import functional as F

torch.manual_seed(0)
KERNEL = torch.randn(4, 3, 2, 2, dtype=torch.float64)
IMAGE = torch.randn(2, 3, 4, 5, dtype=torch.float64)
PLACES = torch.rand(2, 3, 2, 2, dtype=torch.float64) * 2 - 1


def apart(x):
    """With elements so far apart that their order does not change."""
    return x + 10 * (7 * torch.arange(x[0].numel()) % 101).reshape(x.shape[1:])


def sampled(align=False, **options):
    """At places, inside and outside of the image, that stay between the same pixels."""

    def function(x, g):
        sizes = torch.tensor(x.shape[:1:-1], dtype=torch.float64)
        pixels = torch.arange(g.numel()).reshape(g.shape) % 8 - 2.7 + 0.15 * g.tanh()
        places = 2 * pixels / (sizes - 1) - 1 if align else (2 * pixels + 1) / sizes - 1
        return F.grid_sample(x, places, align_corners=align, **options)

    return function


CONVOLUTIONS = {
    "1d": (lambda x, w, b: F.conv1d(x, w, b), (2, 3, 5), (4, 3, 2), (4,)),
    "of one sample": (lambda x, w: F.conv1d(x, w), (3, 5), (4, 3, 2)),
    "of constant weights": (lambda x: F.conv2d(x, KERNEL, torch.ones(4).double(), 2).sin(), (2, 3, 4, 5)),
    "of a constant": (lambda w, b: F.conv2d(IMAGE, w, b, padding=1).sin(), (4, 3, 2, 2), (4,)),
    "of constants": (lambda b: F.conv2d(IMAGE, KERNEL, b.sin()), (4,)),
    "2d": (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1), (2, 3, 4, 5), (4, 3, 2, 2), (4,)),
    "same": (lambda x, w: F.conv2d(x, w, padding="same", dilation=2), (1, 2, 4, 4), (3, 2, 2, 3)),
    "in groups": (lambda x, w: F.conv2d(x, w, groups=2, dilation=(1, 2)), (2, 4, 3, 5), (6, 2, 2, 2)),
    "of each channel": (lambda x, w, b: F.conv1d(x, w, b, groups=3), (2, 3, 5), (6, 1, 2), (6,)),
    "3d": (lambda x, w: F.conv3d(x, w, stride=2), (1, 2, 3, 4, 3), (2, 2, 1, 2, 2)),
    "transposed 1d": (lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1), (2, 3, 4), (3, 2, 3), (2,)),
    "transposed 2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (1, 3, 2, 3), (3, 2, 2, 2)),
    "transposed in groups": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2, dilation=2),
        (2, 4, 2, 3),
        (4, 3, 2, 2),
        (6,),
    ),
    "transposed of a constant": (lambda w: F.conv_transpose2d(IMAGE, w, groups=3).sin(), (3, 2, 2, 2)),
    "transposed 3d": (lambda x, w: F.conv_transpose3d(x, w), (1, 2, 2, 2, 2), (2, 2, 2, 1, 2)),
}

CASES = {
    "avg_pool1d": (lambda x: F.avg_pool1d(x.sin(), 2, ceil_mode=True), (2, 3, 5)),
    "avg_pool1d of one sample": (lambda x: F.avg_pool1d(x, 2), (3, 5)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 3, 5, 4)),
    "avg_pool2d of one sample": (lambda x: F.avg_pool2d(x, (2, 1), divisor_override=3), (3, 5, 4)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (1, 2, 4, 3, 2)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 3, 4)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, None)), (2, 3, 4, 5)),
    "adaptive_avg_pool2d to one": (lambda x: F.adaptive_avg_pool2d(x, 1), (2, 3, 4, 5)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (2, 3, 3, 2)),
    "max_pool1d": (lambda x: F.max_pool1d(apart(x), 2, 1, 1), (2, 3, 4)),
    "max_pool1d with indices": (lambda x: F.max_pool1d(apart(x), 2, return_indices=True)[0], (2, 3, 4)),
    "max_pool2d": (lambda x: F.max_pool2d(apart(x), 2, padding=1, ceil_mode=True), (2, 3, 4, 4)),
    "max_pool2d of one sample": (lambda x: F.max_pool2d(apart(x), 2, dilation=2, stride=1), (3, 4, 5)),
    "max_pool3d": (lambda x: F.max_pool3d(apart(x), 2), (1, 2, 4, 3, 2)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(apart(x), 2), (2, 3, 5)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(apart(x), (2, 3)), (2, 3, 5, 4)),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(apart(x), 2), (1, 2, 3, 4, 3)),
    "fractional_max_pool2d": (
        lambda x: F.fractional_max_pool2d(apart(x), 2, 2, _random_samples=torch.full((x.shape[0], 3, 2), 0.3).double()),
        (2, 3, 5, 5),
    ),
    "max_unpool1d": (lambda x: F.max_unpool1d(x, torch.tensor([[[1, 2], [1, 3], [0, 2]]]), 2), (1, 3, 2)),
    "lp_pool1d": (lambda x: F.lp_pool1d(x.exp(), 3, 2), (2, 3, 4)),
    "lp_pool2d": (lambda x: F.lp_pool2d(x.exp(), 2, 2), (2, 3, 4, 4)),
    "reflection 1d": (lambda x: F.pad(x, (1, 2), "reflect"), (2, 3, 4)),
    "reflection 2d": (lambda x: F.pad(x, (1, 0, 2, 1), "reflect"), (3, 4, 3)),
    "reflection 3d": (lambda x: F.pad(x, (1, 0, 0, 1, 1, 1), "reflect"), (1, 2, 2, 2, 3)),
    "replication 1d": (lambda x: F.pad(x, (1, 2), "replicate"), (2, 3, 4)),
    "replication 2d": (lambda x: F.pad(x, (1, 0, 2, 1), "replicate"), (2, 3, 2, 2)),
    "replication 3d": (lambda x: F.pad(x, (1, 0, 0, 1, 1, 1), "replicate"), (1, 2, 2, 2, 2)),
    "circular": (lambda x: F.pad(x, (1, 2, 0, 1), "circular"), (2, 3, 4, 2)),
    "nearest 1d": (lambda x: F.interpolate(x, size=3), (2, 3, 4)),
    "nearest 2d": (lambda x: F.interpolate(x, scale_factor=(2, 1)), (2, 3, 2, 3)),
    "nearest 3d": (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 2, 2, 2)),
    "nearest-exact": (lambda x: F.interpolate(x, size=3, mode="nearest-exact"), (2, 3, 4, 5)),
    "linear": (lambda x: F.interpolate(x, size=3, mode="linear"), (2, 3, 4)),
    "bilinear": (lambda x: F.interpolate(x, size=(3, 6), mode="bilinear"), (2, 3, 4, 4)),
    "bilinear with corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        (1, 2, 2, 3),
    ),
    "bilinear smoothed": (lambda x: F.interpolate(x, size=(2, 3), mode="bilinear", antialias=True), (2, 3, 4, 4)),
    "bicubic": (lambda x: F.interpolate(x, size=(3, 5), mode="bicubic"), (2, 3, 4, 4)),
    "bicubic smoothed": (lambda x: F.interpolate(x, size=(2, 3), mode="bicubic", antialias=True), (2, 3, 4, 4)),
    "trilinear": (lambda x: F.interpolate(x, size=3, mode="trilinear"), (1, 2, 2, 4, 3)),
    "area": (lambda x: F.interpolate(x, size=3, mode="area"), (2, 3, 4, 5)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (2, 4, 2, 3)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (2, 1, 4, 6)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (1, 4, 2, 2)),
    "unfold": (lambda x: F.unfold(x, (2, 3), padding=1, stride=(2, 1)), (2, 3, 4, 4)),
    "unfold of one sample": (lambda x: F.unfold(x, 2), (3, 3, 4)),
    "fold": (lambda x: F.fold(x, (3, 4), 2, padding=1, stride=(2, 1)), (2, 8, 10)),
    "fold of one sample": (lambda x: F.fold(x, (3, 3), 2), (4, 4)),
    "affine_grid": (lambda t: F.affine_grid(t.sin(), (2, 1, 2, 3), align_corners=False), (2, 2, 3)),
    "affine_grid 3d": (lambda t: F.affine_grid(t, (1, 1, 2, 2, 3), align_corners=True), (1, 3, 4)),
    "grid_sample nearest": (lambda x: F.grid_sample(x, PLACES, "nearest", align_corners=False), (2, 3, 4, 5)),
    "grid_sample at constants": (lambda x: F.grid_sample(x, PLACES, align_corners=False).sin(), (2, 3, 4, 5)),
    "grid_sample of a constant": (lambda g: sampled()(IMAGE, g), (2, 3, 2, 2)),
    "grid_sample 3d": (sampled(), (1, 2, 3, 2, 4), (1, 1, 3, 2, 3)),
    "grid_sample 3d with corners": (sampled(True, padding_mode="border"), (1, 2, 3, 2, 4), (1, 1, 3, 2, 3)),
}
CASES |= {
    f"grid_sample {mode} {padding} {align}": (
        sampled(align, mode=mode, padding_mode=padding),
        (2, 2, 4, 3),
        (2, 5, 1, 2),
    )
    for mode in ("bilinear", "bicubic")
    for padding in ("zeros", "border", "reflection")
    for align in (False, True)
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case):
    function, *shapes = CONVOLUTIONS[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize("case", CASES)
def test_window(case):
    function, *shapes = CASES[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


@settings(max_examples=5, deadline=None)
@given(
    groups=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_convolutions_of_any_shape(groups, kernel, stride, padding, dilation, transposed):
    x = torch.randn(2, 2 * groups, 5, dtype=torch.float64)
    weight = torch.randn(*((2 * groups, 3) if transposed else (3 * groups, 2)), kernel, dtype=torch.float64)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    convolve = F.conv_transpose1d if transposed else F.conv1d
    check(lambda x, w: convolve(x, w, **options), x, weight)
