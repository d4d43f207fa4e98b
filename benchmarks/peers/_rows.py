"""What the peers have in common: they give the gradients of one output of every sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..methods import Jacobian
from ..works import Work


def gather(work: Work, row: Callable[[int], Sequence[Tensor]]) -> Jacobian:
    """A Jacobian pytree from ``row(k)``: for output k the gradients ``(N, *weight)`` of every weight.

    Each row is written into its place, so that no more than one stands beside the result.
    """
    lead = (len(work.x), work.outputs)
    jac = {name: torch.empty(*lead, *weight.shape, dtype=weight.dtype) for name, weight in work.params.items()}
    for k in range(work.outputs):
        for leaf, gradients in zip(jac.values(), row(k), strict=True):
            leaf[:, k] = gradients
    return {name: leaf.unflatten(1, work.out_shape) if work.out_shape else leaf[:, 0] for name, leaf in jac.items()}


def missing(package: str) -> Callable[[Work], str]:
    """The reason not to run a peer whose package is not installed."""
    return lambda work: "" if find_spec(package) else f"{package} is not installed (benchmarks/peers.txt)"
