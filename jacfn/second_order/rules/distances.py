"""Distances between points (L3): norms of their differences."""

from __future__ import annotations

from typing import Any

import torch

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import combined
from jacfn.second_order.rules.linear import by_rule
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten


@rule(aten._cdist_forward.default)
def _cdist(a: Any, b: Any, p: float, compute_mode: int | None = None) -> Any:
    """Of all points of two sets."""
    rows, columns = by_rule(aten.unsqueeze.default, a, -2), by_rule(aten.unsqueeze.default, b, -3)
    return by_rule(aten.linalg_vector_norm.default, combined(rows, columns, 1, -1), p, [-1])


@rule(aten._euclidean_dist.default)
def _euclidean(a: Any, b: Any) -> Any:
    return _cdist(a, b, 2.0)


@rule(aten._pdist_forward.default)
def _pdist(x: Jet, p: float = 2.0) -> Any:
    """Of all pairs in a set."""
    rows, columns = torch.triu_indices(len(x.value), len(x.value), 1, device=x.value.device)
    pairs = x.linear(lambda t, lead: t.index_select(-2, rows) - t.index_select(-2, columns))
    return by_rule(aten.linalg_vector_norm.default, pairs, p, [-1])
