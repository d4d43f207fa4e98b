"""Fused operations without batching rules, some of them without forward derivatives, and sparse gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn import _recurrent
from jacfn._bag import embedding_bag
from jacfn._exact.tables import ALWAYS, replaces

ALWAYS.update(
    {
        torch.lstm: _recurrent.lstm,
        torch.gru: _recurrent.gru,
        torch.rnn_tanh: _recurrent.rnn_tanh,
        torch.rnn_relu: _recurrent.rnn_relu,
        torch.lstm_cell: _recurrent.lstm_cell,
        torch.gru_cell: _recurrent.gru_cell,
        torch.rnn_tanh_cell: _recurrent.rnn_tanh_cell,
        torch.rnn_relu_cell: _recurrent.rnn_relu_cell,
        F.embedding_bag: embedding_bag,
    }
)


@replaces(ALWAYS, F.embedding)
def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of a Jacobian are dense: sparse gradients have no batching rule.

    Forward mode gives the row of ``padding_idx`` a derivative, which it has not in reverse mode; and there its batching
    rule is wrong where both the table and the indices are mapped.
    """
    if padding_idx is None and not sparse:
        return NotImplemented
    rows = F.embedding(input, weight, None, max_norm, norm_type, scale_grad_by_freq)
    return rows if padding_idx is None else _padded(rows, input, padding_idx % weight.shape[0])


@replaces(ALWAYS, torch.embedding)
def _raw_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Any:
    if padding_idx < 0 and not sparse:
        return NotImplemented
    rows = torch.embedding(weight, indices, -1, scale_grad_by_freq)
    return rows if padding_idx < 0 else _padded(rows, indices, padding_idx)


def _padded(rows: Tensor, indices: Tensor, padding_idx: int) -> Tensor:
    """Without derivatives where the index is that of the padding."""
    return torch.where((indices == padding_idx).unsqueeze(-1), rows.detach(), rows)
