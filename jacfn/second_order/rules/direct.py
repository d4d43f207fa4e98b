"""Torch functions with a rule of their own (L3), for which taking them apart would cost time."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from jacfn.second_order.jet import Jet
from jacfn.second_order.rules.binary import combined
from jacfn.second_order.rules.table import rule


@rule(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """With a constant weight: one product with it for each part of the jet."""
    if not isinstance(input, Jet) or isinstance(weight, Jet):
        return NotImplemented
    if isinstance(bias, Jet):
        return combined(_linear(input, weight), bias, 1, 1)
    second = None if input.second is None else F.linear(input.second, weight)
    return input.new(F.linear(input.value, weight, bias), lambda: F.linear(input.first, weight), second)
