"""The forward Laplacian of a tanh MLP, written out: what an engine could reach."""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods import Run
from .works import Field

#: Samples at a time, so that their derivatives stay in the caches.
SAMPLES = 64


def laplacian(work: Field) -> Run:
    """Value, first and summed second derivatives side by side; the first layer's first derivatives are its weights."""
    values = list(work.params.values())
    layers = list(zip(values[::2], values[1::2], strict=True))

    def of(x: Tensor) -> Tensor:
        weight, bias = layers[0]
        y = torch.tanh(torch.addmm(bias, x, weight.T))
        slope = 1 - y * y
        second = -2 * y * slope * weight.square().sum(1)  # (B, width)
        first = slope * weight.T.unsqueeze(1)  # (K, B, width)
        for weight, bias in layers[1:-1]:
            first = first @ weight.T
            y = torch.tanh(torch.addmm(bias, y, weight.T))
            slope = 1 - y * y
            curvature = -2 * y * slope
            second = slope * (second @ weight.T) + curvature * (first * first).sum(0)
            first *= slope
        return (second @ layers[-1][0].T).squeeze(1)

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"laplacian": torch.cat([of(part) for part in work.x.split(SAMPLES)])}

    return run
