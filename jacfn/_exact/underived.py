"""Functions that PyTorch has no derivatives of, and takes these for zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._exact.tables import ALWAYS, Replacement, replaces
from jacfn._torch import is_differentiated

UNDERIVED = (
    "airy_ai chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w "
    "hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p "
    "shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v "
    "shifted_chebyshev_polynomial_w"
)


def _refused(name: str) -> Replacement:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Tensor) and is_differentiated(x) for x in args):
            raise JacfnError(f"torch.special.{name} has no derivatives in PyTorch, which takes them for zero")
        return NotImplemented

    return refuse


for _name in UNDERIVED.split():
    ALWAYS[getattr(torch.special, _name)] = _refused(_name)


@replaces(ALWAYS, torch.special.spherical_bessel_j0)
def _spherical_bessel_j0(input: Tensor, *, out: Tensor | None = None) -> Any:
    """``sin(x)/x``."""
    return NotImplemented if out is not None else torch.sinc(input / math.pi)
