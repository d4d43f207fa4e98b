"""Bags of embeddings in elementary operations (L0).

PyTorch's kernel has neither batching rules nor forward derivatives. Here it is a table look-up and a reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn._errors import JacfnError


class Bags(NamedTuple):
    """How entries ``(*entries, D)`` are reduced to bags ``(B, D)``."""

    total: Callable[[Tensor], Tensor]
    greatest: Callable[[Tensor], Tensor]


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """``F.embedding_bag``; NotImplemented for arguments that it refuses. Gradients are dense whatever ``sparse`` says.

    Padding has no part in a bag, nor have entries behind the last offset of ``include_last_offset``; a bag without
    entries is zero. (PyTorch counts entries behind the last offset in with some dtypes.)
    """
    if max_norm is not None:
        raise JacfnError(
            "embedding_bag with max_norm changes its weight in place: renormalise the weight beforehand, and set "
            "max_norm=None"
        )
    if scale_grad_by_freq:
        raise JacfnError(
            "embedding_bag with scale_grad_by_freq=True has gradients that are no derivatives (they are divided by how "
            "often an entry occurs): set it to False"
        )
    refused = per_sample_weights is not None and mode != "sum"
    if refused or input.numel() == 0 or input.ndim != (2 if offsets is None else 1):
        return NotImplemented
    bags = _rows() if offsets is None else _segments(offsets, len(input), include_last_offset)
    kept = torch.ones_like(input, dtype=torch.bool) if padding_idx is None else input != padding_idx % len(weight)
    kept = kept.unsqueeze(-1)
    vectors = F.embedding(input, weight)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    return _reduce(vectors, kept, mode, bags)


def _reduce(vectors: Tensor, kept: Tensor, mode: str, bags: Bags) -> Tensor:
    sizes = bags.total(kept.long())  # (B, 1)
    if mode == "max":
        return torch.where(sizes > 0, bags.greatest(torch.where(kept, vectors, -torch.inf)), 0)
    total = bags.total(torch.where(kept, vectors, 0))
    return total / sizes.clamp(min=1) if mode == "mean" else total


def _rows() -> Bags:
    """Entries ``(B, L, D)``: every row is a bag."""
    return Bags(total=lambda entries: entries.sum(1), greatest=lambda entries: entries.max(1).values)


def _segments(offsets: Tensor, length: int, include_last_offset: bool) -> Bags:
    """Entries ``(L, D)``: a bag reaches from its offset to the next one."""
    starts = torch.zeros(length + 1, dtype=torch.long, device=offsets.device)
    # (L,) the bag of each entry: how many bags have begun, less one
    bags = starts.index_add(0, offsets, torch.ones_like(offsets, dtype=torch.long))[:length].cumsum(0) - 1
    count = len(offsets) - include_last_offset  # entries behind the last offset are in a bag that is dropped

    def total(entries: Tensor) -> Tensor:
        empty = torch.zeros(len(offsets) + 1, entries.shape[-1], dtype=entries.dtype, device=entries.device)
        return empty.index_add(0, bags, entries)[:count]

    def greatest(entries: Tensor) -> Tensor:
        member = bags == torch.arange(count, device=bags.device).unsqueeze(-1)  # (B, L)
        return torch.where(member.unsqueeze(-1), entries, -torch.inf).max(1).values

    return Bags(total, greatest)
