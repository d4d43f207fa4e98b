"""Recurrent layers and cells (L2): linear maps of the input, of all time steps at once, and of each hidden state."""

from __future__ import annotations

import torch

from jacfn import _recurrent
from jacfn.quasilinear.rules._registry import expansion

expansion(torch.lstm)(_recurrent.lstm)
expansion(torch.gru)(_recurrent.gru)
expansion(torch.rnn_tanh)(_recurrent.rnn_tanh)
expansion(torch.rnn_relu)(_recurrent.rnn_relu)
expansion(torch.lstm_cell)(_recurrent.lstm_cell)
expansion(torch.gru_cell)(_recurrent.gru_cell)
expansion(torch.rnn_tanh_cell)(_recurrent.rnn_tanh_cell)
expansion(torch.rnn_relu_cell)(_recurrent.rnn_relu_cell)
