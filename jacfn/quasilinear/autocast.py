"""Autocast (L2): ``fn`` runs as its caller says, the algebra of factors in their own dtypes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor


def autocast_of(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """What autocast rounds to where these tensors are; None where it is off, or being compiled."""
    kind = tensors[0].device.type if tensors else "cpu"
    if torch.compiler.is_compiling() or not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast_to(dtype: torch.dtype | None, tensors: Sequence[Tensor]) -> contextlib.AbstractContextManager[object]:
    """Autocast to ``dtype`` where these tensors are, or none."""
    if autocast_of(tensors) == dtype:
        return contextlib.nullcontext()
    return torch.autocast(tensors[0].device.type if tensors else "cpu", dtype, enabled=dtype is not None)
