"""Recurrent layers and cells in elementary operations (L0).

PyTorch's fused kernels for them have no batching rules, some have no forward derivatives, and they hide the products
with the weights. Here every product is an ``F.linear`` with a whole parameter: one for all time steps with the
input-to-hidden weight, one a time step with the hidden-to-hidden weight. The functions have the signatures of the
operations that they stand for, and return what those return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM; h comes first and is the output of the step


class Weights(NamedTuple):
    """Of one direction of one layer."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """What the input contributes to the gates."""
        return F.linear(x, self.input, self.input_bias)

    def recur(self, h: Tensor) -> Tensor:
        """What the hidden state contributes."""
        return F.linear(h, self.hidden, self.hidden_bias)


Step = Callable[[Tensor, State, Weights], State]  # from the contribution of the input and the state before


# --- steps ------------------------------------------------------------------------------------------


def _tanh_step(entered: Tensor, state: State, weights: Weights) -> State:
    return (torch.tanh(entered + weights.recur(state[0])),)


def _relu_step(entered: Tensor, state: State, weights: Weights) -> State:
    return (torch.relu(entered + weights.recur(state[0])),)


def _gru_step(entered: Tensor, state: State, weights: Weights) -> State:
    """The reset gate acts behind the product with the hidden weight, as in cuDNN."""
    (h,) = state
    entered_reset, entered_update, entered_new = entered.chunk(3, -1)
    hidden_reset, hidden_update, hidden_new = weights.recur(h).chunk(3, -1)
    reset = torch.sigmoid(entered_reset + hidden_reset)
    update = torch.sigmoid(entered_update + hidden_update)
    new = torch.tanh(entered_new + reset * hidden_new)
    return (new + update * (h - new),)


def _lstm_step(entered: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    admit, forget, new, show = (entered + weights.recur(h)).chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(admit) * torch.tanh(new)
    h = torch.sigmoid(show) * torch.tanh(c)
    return (h if weights.projection is None else F.linear(h, weights.projection)), c


# --- layers -----------------------------------------------------------------------------------------


class Layers(NamedTuple):
    """How layers are put together: what the layer operations take behind the state, in their order."""

    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool

    def weights(self) -> Iterator[Weights]:
        """The flat list, cut: weights, biases if any, and the projection of an LSTM if there is one more."""
        each = len(self.params) // (self.num_layers * len(self.directions()))
        plain = 4 if self.has_biases else 2
        for low in range(0, len(self.params), each):
            own = self.params[low : low + each]
            yield Weights(*own[:plain])._replace(projection=own[plain] if each > plain else None)

    def directions(self) -> tuple[bool, ...]:
        """For each direction whether it is the reverse one."""
        return (False, True) if self.bidirectional else (False,)


def lstm(input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """``torch.lstm``."""
    return _run(_lstm_step, input, *rest)


def gru(input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """``torch.gru``."""
    return _run(_gru_step, input, *rest)


def rnn_tanh(input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """``torch.rnn_tanh``."""
    return _run(_tanh_step, input, *rest)


def rnn_relu(input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """``torch.rnn_relu``."""
    return _run(_relu_step, input, *rest)


def _run(step: Step, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """``(input, state, *layers, batch_first)``, or ``(data, batch_sizes, state, *layers)`` of a packed sequence."""
    if not isinstance(rest[2], bool):  # has_biases, which comes one later in a packed sequence
        sizes, state, *layers = rest
        return _stack(step, x, sizes.tolist(), state, Layers(*layers))
    state, *layers, batch_first = rest
    x = x.transpose(0, 1) if batch_first else x
    steps, batch = x.shape[:2]
    # (T, B, I) as a packed sequence in which all samples are equally long
    out, *finals = _stack(step, x.flatten(0, 1), [batch] * steps, state, Layers(*layers))
    out = out.view(steps, batch, out.shape[-1])
    return (out.transpose(0, 1) if batch_first else out, *finals)


def _stack(step: Step, x: Tensor, sizes: list[int], state: Any, layers: Layers) -> tuple[Tensor, ...]:
    """The output of the last layer, and of each part of the state the final values, ``(layers·directions, B, H)``."""
    initial = (state,) if isinstance(state, Tensor) else state
    starts, weights = zip(*(part.unbind(0) for part in initial), strict=True), layers.weights()
    finals: list[State] = []
    for layer in range(layers.num_layers):
        if layer > 0 and layers.train and layers.dropout > 0:
            x = F.dropout(x, layers.dropout)
        outputs = []
        for reverse in layers.directions():
            output, final = _direction(step, x, sizes, next(starts), next(weights), reverse)
            outputs.append(output)
            finals.append(final)
        x = torch.cat(outputs, -1)
    return (x, *(torch.stack(part) for part in zip(*finals, strict=True)))


def _direction(
    step: Step, x: Tensor, sizes: list[int], initial: State, weights: Weights, reverse: bool
) -> tuple[Tensor, State]:
    """One layer from the front or from the back: ``(sum of sizes, H)``, and the final state.

    ``sizes`` says how many samples have a time step; the longest sequences come first. Those that end on the way
    leave the state, and from the back they join it.
    """
    steps = list(zip(torch.split(weights.enter(x), sizes), sizes, strict=True))
    steps = steps[::-1] if reverse else steps
    present = steps[0][1]
    state = tuple(part[:present] for part in initial)
    outputs: list[Tensor] = []
    ended: list[State] = []
    for entered, size in steps:
        if size < present:
            ended.append(tuple(part[size:] for part in state))
            state = tuple(part[:size] for part in state)
        elif size > present:
            state = tuple(torch.cat([part, start[present:size]]) for part, start in zip(state, initial, strict=True))
        state, present = step(entered, state, weights), size
        outputs.append(state[0])
    final = tuple(torch.cat(parts) for parts in zip(state, *ended[::-1], strict=True)) if ended else state
    return torch.cat(outputs[::-1] if reverse else outputs), final


# --- cells ------------------------------------------------------------------------------------------


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``torch.lstm_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    return _lstm_step(weights.enter(input), tuple(hx), weights)


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """``torch.gru_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    return _gru_step(weights.enter(input), (hx,), weights)[0]


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """``torch.rnn_tanh_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    return _tanh_step(weights.enter(input), (hx,), weights)[0]


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """``torch.rnn_relu_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    return _relu_step(weights.enter(input), (hx,), weights)[0]
