"""A guard against forward mode over forward mode (L0), which PyTorch gets silently wrong in places.

The forward derivative of some operations treats what it saved from the forward pass as constant, or is computed by a
kernel that has no forward derivative of its own: the second derivative then misses terms, and nothing is said.
Measured against finite differences on torch 2.13; the table is kept honest by a test.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from jacfn._errors import JacfnError
from jacfn._torch import forward_depth

WRONG_TWICE_FORWARD = frozenset(
    {
        F.layer_norm, torch.layer_norm, torch.native_layer_norm,
        F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm,
        F.group_norm, torch.group_norm,
        torch.slogdet, torch.linalg.slogdet, torch.logdet, torch.det, torch.linalg.det, torch.linalg.solve,
        Tensor.slogdet, Tensor.logdet, Tensor.det,
    }
)  # fmt: skip


class NestedForwardGuard(TorchFunctionMode):
    """Raises where an operation that is wrong under jvp of jvp meets a tensor that carries two tangents."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call through, or refuse it."""
        kwargs = kwargs or {}
        if func in WRONG_TWICE_FORWARD and not torch.compiler.is_compiling():
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if any(forward_depth(tensor) > 1 for tensor in tensors):
                raise JacfnError(
                    f"forward mode over forward mode through {func.__name__} is silently wrong in PyTorch: "
                    "use reverse mode for one of the two (jac_rev or jac_quasilinear inside jac_fwd)"
                )
        return func(*args, **kwargs)
