"""Scales of the columns (L4): the units in which the length of a step is measured.

Moré, "The Levenberg-Marquardt algorithm: implementation and theory" (1978), section 6, compares the choices.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Scaling = Literal["more", "jacobi", "none"]
SCALINGS = get_args(Scaling)


def scales(kind: Scaling, norms: Tensor, before: Tensor | None) -> Tensor | None:
    """``D`` from the norms of the columns: their maximum so far, those of now, or None for the identity.

    A column of zeros has the scale 1.
    """
    if kind == "none":
        return None
    now = torch.where(norms > 0, norms, 1.0)
    if kind == "jacobi" or before is None:
        return now
    return torch.where(norms > 0, torch.maximum(before, norms), before)
