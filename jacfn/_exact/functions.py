"""Custom ``torch.autograd.Function`` under two levels of forward mode."""

from __future__ import annotations

from typing import Any

from jacfn._errors import JacfnError
from jacfn._exact.tables import ALWAYS, replaces
from jacfn._torch import custom_function_call, forward_levels


@replaces(ALWAYS, custom_function_call)
def _custom_function_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The jvp of a custom function sees what it has saved without the outer tangent: its derivative misses terms."""
    if forward_levels() > 1:
        raise JacfnError(
            f"{function.__name__} is a torch.autograd.Function, which forward mode inside forward mode differentiates "
            "silently wrong in PyTorch: use jac_rev for one of the two"
        )
    return custom_function_call(function, *args, **kwargs)
