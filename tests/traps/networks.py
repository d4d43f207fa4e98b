"""Cases of which networks consist."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import layers
from .case import Case, D, group, values

CASES: list[Case] = []

rows = values(4, 4, low=-1.5, high=1.5)
images = values(3, 4, 4)  # channels, height, width


def grid(x: Tensor) -> Tensor:
    """Places between the pixels, away from their middles, where a derivative jumps."""
    between = torch.tensor([-0.5, 0.0, 0.5], dtype=D)
    middles = torch.stack(torch.meshgrid(between, between, indexing="ij"), -1)  # (3, 3, 2)
    return (middles + 0.15 * x[:2, :3, :3].movedim(0, -1))[None]


five = values(1, 2, 2, 4, 4, low=-8, high=8)  # far apart, for the largest to stay the largest
CASES += group(
    "Normalisation",
    rows,
    {
        "F.layer_norm": lambda x: F.layer_norm(x[2:], (4,), x[0], x[1]),
        "F.layer_norm (two axes)": lambda x: F.layer_norm(x, (4, 4)),
        "F.group_norm": lambda x: F.group_norm(x[2:, :, None], 2, x[0], x[1]),
        "F.rms_norm": lambda x: F.rms_norm(x[1:], (4,), x[0]),
        "F.batch_norm (evaluation)": lambda x: F.batch_norm(x, rows[0], rows[1] ** 2, x[2], x[3]),
        "F.batch_norm (statistics of the batch)": lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True),
        "F.instance_norm": lambda x: F.instance_norm(x[None, 2:], None, None, x[0, :2], x[1, :2]),
        "F.local_response_norm": lambda x: F.local_response_norm(x[None], 3, alpha=0.5),
        "F.normalize": lambda x: F.normalize(x, dim=-1),
        "torch.renorm": lambda x: torch.renorm(x, 2, 0, 0.7),
        "torch._weight_norm": lambda x: torch._weight_norm(x, x[:, :1] + 2, 0),
        "parametrizations.weight_norm": layers.weight_norm(),
        "parametrizations.spectral_norm (evaluation)": layers.spectral_norm(),
    },
)
tokens = values(5, 3, 4)  # (q, k, v and more), length, width
attention = F.scaled_dot_product_attention
CASES += group(
    "Attention",
    tokens,
    {
        "F.scaled_dot_product_attention": lambda x: attention(*x[:3, None]),
        "F.scaled_dot_product_attention (mask)": lambda x: attention(*x[:3, None], x[3, None, :, :3]),
        "F.scaled_dot_product_attention (causal)": lambda x: attention(*x[:3, None], is_causal=True),
        "nn.MultiheadAttention": layers.attention(need_weights=True),
        "nn.MultiheadAttention (need_weights=False)": layers.attention(need_weights=False),
        "nn.TransformerEncoderLayer": layers.encoder(norm_first=False),
        "nn.TransformerEncoderLayer (norm_first)": layers.encoder(norm_first=True),
        "nn.TransformerDecoderLayer": layers.decoder(),
    },
)
CASES += group(
    "Recurrent",
    values(3, 2, 2),  # length, samples, width
    {
        "nn.RNN": layers.recurrent(torch.nn.RNN),
        "nn.LSTM": layers.recurrent(torch.nn.LSTM),
        "nn.LSTM (bidirectional, two layers)": layers.recurrent(torch.nn.LSTM, num_layers=2, bidirectional=True),
        "nn.GRU": layers.recurrent(torch.nn.GRU),
        "nn.LSTMCell": layers.cell(torch.nn.LSTMCell),
        "nn.GRUCell": layers.cell(torch.nn.GRUCell),
    },
)
CASES += group(
    "Recurrent",
    values(3, 2, 2, low=-3, high=3),
    {"nn.RNN (relu)": layers.recurrent(torch.nn.RNN, nonlinearity="relu")},
)
CASES += group(
    "Linear and convolution",
    values(2, 2, 3, 3),
    {
        "F.linear": lambda x: F.linear(x[0, 0], x[0, 1], x[1, 0, 0]),
        "F.bilinear": lambda x: F.bilinear(x[0, 0], x[0, 1], x[1], x[1, 0, 0, :2]),
        "F.conv1d": lambda x: F.conv1d(x[0], x[1, :, :, :2], x[1, 0, 0, :2], padding=1),
        "F.conv2d": lambda x: F.conv2d(x, x[:, :, :2, :2], x[0, 0, 0, :2], padding=1),
        "F.conv2d (stride, dilation, groups)": lambda x: F.conv2d(
            x, x[:, :1, :2, :2], None, stride=2, dilation=2, padding=1, groups=2
        ),
        "F.conv3d": lambda x: F.conv3d(x[None], x[:, :, None, :2, :2]),
        "F.conv_transpose1d": lambda x: F.conv_transpose1d(x[0, :, 0], x[1, :, :, :2], x[1, 0, 0], stride=2),
        "F.conv_transpose2d": lambda x: F.conv_transpose2d(x, x[:, :, :2, :2], stride=2),
        "F.conv_transpose3d": lambda x: F.conv_transpose3d(x[None], x[:, :, None, :2, :2]),
        "F.unfold": lambda x: F.unfold(x, 2) ** 2,
        "F.fold": lambda x: F.fold(x.reshape(1, 4, 9)[..., :4] ** 2, 3, 2),
        "F.pad (reflect)": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect").diff() ** 2,
        "F.pad (circular)": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular").diff() ** 2,
        "F.pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 3, 3), 2).diff() ** 2,
        "torch.matmul": lambda x: x[0] @ x[1],
        "torch.einsum": lambda x: torch.einsum("abc,adc,b->bd", x[0], x[1], x[0, :, 0, 0].repeat(2)[:3]),
        "torch.tensordot": lambda x: torch.tensordot(x[0], x[1], ([0, 2], [0, 2])),
        "torch.baddbmm": lambda x: torch.baddbmm(x[0], x[1], x[0], beta=0.5, alpha=2.0),
        "torch.kron": lambda x: torch.kron(x[0, 0], x[0, 1]),
    },
)
CASES += group(
    "Pooling",
    five,
    {
        "F.max_pool1d": lambda x: F.max_pool1d(x[0, 0], 2),
        "F.max_pool2d": lambda x: F.max_pool2d(x[0], 2),
        "F.max_pool3d": lambda x: F.max_pool3d(x, 2),
        "F.avg_pool1d": lambda x: F.avg_pool1d(x[0, 0], 2),
        "F.avg_pool2d": lambda x: F.avg_pool2d(x[0], 3, stride=1, padding=1),
        "F.avg_pool3d": lambda x: F.avg_pool3d(x, 2),
        "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x[0], 3),
        "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[0], 3),
        "F.lp_pool1d": lambda x: F.lp_pool1d(x[0, 0] / 4 + 3, 3, 2),
        "F.lp_pool2d": lambda x: F.lp_pool2d(x[0] / 4, 2, 2),
    },
)
CASES += group(
    "Sampling",
    images,
    {
        "F.grid_sample": lambda x: F.grid_sample(x[None], grid(x), align_corners=False),
        "F.grid_sample (bicubic)": lambda x: F.grid_sample(x[None], grid(x), mode="bicubic", align_corners=False),
        "F.affine_grid": lambda x: F.affine_grid(x[:1, :2, :3] + 1, [1, 1, 3, 3], align_corners=False),
        "F.interpolate (nearest)": lambda x: F.interpolate(x[None], scale_factor=2) ** 2,
        "F.interpolate (bilinear)": lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear") ** 2,
        "F.interpolate (bicubic)": lambda x: F.interpolate(x[None], scale_factor=2, mode="bicubic") ** 2,
    },
)
