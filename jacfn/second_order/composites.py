"""Torch functions that jets see as others (L3): kernels without second derivatives, and what cannot be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jacfn._exact import ALWAYS
from jacfn._torch import weight_norm

COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    function: ALWAYS[function]
    for function in (
        torch.lstm,
        torch.gru,
        torch.rnn_tanh,
        torch.rnn_relu,
        torch.lstm_cell,
        torch.gru_cell,
        torch.rnn_tanh_cell,
        torch.rnn_relu_cell,
        F.embedding_bag,
        torch.cdist,
        weight_norm,
    )
}
"""NotImplemented: not for these arguments."""


def _getitem(x: Tensor, index: Any) -> Any:
    """How many elements a mask selects shows in its values: their places are found beforehand."""
    parts = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(part, Tensor) and part.dtype == torch.bool and part.ndim for part in parts):
        return NotImplemented
    places: list[Any] = []
    for part in parts:
        places += part.nonzero(as_tuple=True) if isinstance(part, Tensor) and part.dtype == torch.bool else [part]
    return x[tuple(places)]


def _masked_select(input: Tensor, mask: Tensor) -> Any:
    shape = torch.broadcast_shapes(input.shape, mask.shape)  # type: ignore[no-untyped-call]
    return input.expand(shape)[mask.expand(shape)]


def _iterator(x: Tensor) -> Iterator[Tensor]:
    return iter(x.unbind(0))


COMPOSITES |= {
    Tensor.__getitem__: _getitem,
    torch.masked_select: _masked_select,
    Tensor.masked_select: _masked_select,
    Tensor.__iter__: _iterator,
    Tensor.requires_grad.__get__: lambda x: True,  # type: ignore[attr-defined]
}
