"""Fused operations without batching rules, some of them without forward derivatives."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jacfn import _recurrent
from jacfn._bag import embedding_bag
from jacfn._exact.tables import ALWAYS

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
