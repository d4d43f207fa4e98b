"""What is asked of the value of a jet alone (L3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTES = (
    "shape dtype device ndim layout is_cuda is_cpu is_meta is_mps is_sparse is_quantized is_nested is_mkldnn names "
    "grad_fn is_leaf grad itemsize nbytes data"
)
_METHODS = (
    "dim size numel nelement stride storage_offset element_size is_floating_point is_complex is_contiguous is_pinned "
    "is_signed is_conj is_neg get_device __len__ __bool__ __float__ __int__ __index__ __complex__ __repr__ __format__ "
    "__hash__ item tolist detach is_inference data_ptr __contains__ __str__ nonzero argwhere"
)
_FUNCTIONS = (
    "is_floating_point is_complex numel is_tensor is_nonzero is_conj is_neg is_same_size detach equal allclose nonzero "
    "argwhere"
)

VALUES: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split() if hasattr(Tensor, name)),
        *(getattr(Tensor, name) for name in _METHODS.split() if hasattr(Tensor, name)),
        *(getattr(torch, name) for name in _FUNCTIONS.split() if hasattr(torch, name)),
    ]
)
