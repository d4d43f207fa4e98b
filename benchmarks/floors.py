"""How fast a Jacobian could be had at best: its bytes at the rate of memory, its products at the rate of GEMM."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import timing
from .works import Work

#: Operations in which weights meet data. Attention's own products are batched, hence none of these.
_WEIGHT_OPERATIONS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution}


def outer_products(work: Work) -> int:
    """FLOPs of the products of cotangents and inputs that give the rows of the weights.

    A row of ``W (O, I)`` used at T places is ``δ (O, T) @ x (T, I)``: 2·T·O·I, as many as the forward pass of one
    sample takes there. So this is the forward pass of the batch, once for each output.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        work.batch_fn(work.params, work.x)
    counts = counter.get_flop_counts()["Global"]
    return work.outputs * sum(count for operation, count in counts.items() if operation in _WEIGHT_OPERATIONS)


def gemm_rate(seconds: float, size: int = 1024) -> float:
    """FLOPs a second of the product of two square matrices."""
    a, b, out = (torch.ones(size, size) for _ in range(3))
    return 2 * size**3 / min(timing.median(lambda: torch.mm(a, b, out=out), seconds / 4) for _ in range(4))
