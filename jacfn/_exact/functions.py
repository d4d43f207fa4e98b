"""Custom ``torch.autograd.Function`` under several derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from jacfn._errors import JacfnError
from jacfn._exact.tables import ALWAYS, replaces
from jacfn._torch import custom_function_call, derivative_levels, forward_levels


class NoForwardError(JacfnError, NotImplementedError):
    """An operation has no forward derivative."""


@replaces(ALWAYS, custom_function_call)
def _custom_function_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The jvp of a custom function sees what it has saved without the outer tangent: its derivative misses terms."""
    if forward_levels() > 1:
        raise JacfnError(
            f"{function.__name__} is a torch.autograd.Function, which forward mode inside forward mode differentiates "
            "silently wrong in PyTorch: use jac_rev for one of the two"
        )
    if forward_levels() and function.jvp is torch.autograd.Function.jvp:
        raise NoForwardError(
            f"{function.__name__} is a torch.autograd.Function without jvp, so it has no derivative in forward mode "
            "(forward AD): write one, or use jac_rev"
        )
    if derivative_levels([]) > 1 and getattr(function.backward, "__code__", None) is _ONCE:
        raise JacfnError(
            f"{function.__name__} is a torch.autograd.Function whose backward is once_differentiable: PyTorch's "
            "transforms take its second derivative for zero; write a backward that can be differentiated"
        )
    return custom_function_call(function, *args, **kwargs)


_ONCE = once_differentiable(lambda ctx: None).__code__  # of the wrapper, which all of them share
