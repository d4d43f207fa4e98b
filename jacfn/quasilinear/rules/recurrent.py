"""Recurrent layers and cells (L2): linear maps of the input, of all time steps at once, and of each hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn._exact import ALWAYS
from jacfn.quasilinear.rules._cases import Call, Cases, Random, call
from jacfn.quasilinear.rules._registry import Operation, expansion


def _layers(gates: int, cell: bool) -> Cases:
    """Calls of a layer: (input, state, weights, biases, layers, dropout, training, two-way, batch first)."""

    def state(rand: Random, *shape: int) -> Tensor | tuple[Tensor, Tensor]:
        return (rand(*shape), rand(*shape)) if cell else rand(*shape)

    def weights(rand: Random, inputs: int, biases: bool = True) -> list[Tensor]:
        both = [rand(gates * 2, inputs), rand(gates * 2, 2)]
        return [*both, rand(gates * 2), rand(gates * 2)] if biases else both

    def cases(rand: Random) -> list[Call]:
        calls = [
            call(rand(2, 3, 3), state(rand, 1, 3, 2), weights(rand, 3), True, 1, 0.0, False, False, False),
            call(
                rand(1, 2, 3),
                state(rand, 4, 1, 2),
                [x for width in (3, 3, 4, 4) for x in weights(rand, width, biases=False)],
                *(False, 2, 0.0, False, True, True),
            ),
            call(  # a packed sequence: one sample of three time steps, one of two
                rand(5, 3),
                torch.tensor([2, 2, 1]),
                state(rand, 1, 2, 2),
                weights(rand, 3),
                *(True, 1, 0.0, False, False),
            ),
        ]
        if cell:  # an LSTM that projects its hidden state to one number
            projected = [rand(8, 3), rand(8, 1), rand(8), rand(8), rand(1, 2)]
            start = rand(1, 2, 1), rand(1, 2, 2)
            calls.append(call(rand(2, 2, 3), start, projected, True, 1, 0.0, False, False, False))
        return calls

    return cases


def _cells(gates: int, cell: bool) -> Cases:
    """Calls of a cell: (input, state, both weights, both biases)."""

    def cases(rand: Random) -> list[Call]:
        state = (rand(3, 2), rand(3, 2)) if cell else rand(3, 2)
        weights = rand(gates * 2, 3), rand(gates * 2, 2)
        return [
            call(rand(3, 3), state, *weights, rand(gates * 2), rand(gates * 2)),
            call(rand(3, 3), state, *weights),
        ]

    return cases


_CASES: dict[Operation, Cases] = {
    torch.lstm: _layers(4, cell=True),
    torch.gru: _layers(3, cell=False),
    torch.rnn_tanh: _layers(1, cell=False),
    torch.rnn_relu: _layers(1, cell=False),
    torch.lstm_cell: _cells(4, cell=True),
    torch.gru_cell: _cells(3, cell=False),
    torch.rnn_tanh_cell: _cells(1, cell=False),
    torch.rnn_relu_cell: _cells(1, cell=False),
}
for operation, cases in _CASES.items():  # what they consist of is entered for all transforms already
    expansion(operation, cases=cases)(ALWAYS[operation])
