"""Derivatives of all three orders by differences of values alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1 / 80
# Central differences of order 8 (Fornberg, Generation of finite difference formulas on arbitrarily spaced grids, 1988):
# weights of what is ahead; behind they are the same, with the opposite sign for odd derivatives.
WEIGHTS = {
    1: (4 / 5, -1 / 5, 4 / 105, -1 / 280),
    2: (8 / 5, -1 / 5, 8 / 315, -1 / 560),
    3: (-1669 / 720, 4369 / 2520, -541 / 1120, 1261 / 15120, -41 / 6048),
}

Function = Callable[[Tensor], Tensor]


def along(fn: Function, x: Tensor, v: Tensor, order: int) -> Tensor:
    """The derivative of that order along a direction."""
    sign = (-1) ** order
    terms = []
    for i, weight in enumerate(WEIGHTS[order], 1):
        step = i * STEP * v
        terms.append(weight * (fn(x + step) + sign * fn(x - step)))
    if order == 2:
        terms.append(-2 * sum(WEIGHTS[2]) * fn(x))
    return torch.stack(terms).sum(0) / STEP**order


def gradient(fn: Function, x: Tensor) -> Tensor:
    """``(n,)``."""
    return torch.stack([along(fn, x, e, 1) for e in _basis(x)])


def hessian(fn: Function, x: Tensor) -> Tensor:
    """``(n, n)``; beside the diagonal by polarisation."""
    basis = _basis(x)
    result = torch.diag(torch.stack([along(fn, x, e, 2) for e in basis]))
    for i, j in itertools.combinations(range(len(x)), 2):
        twice = along(fn, x, basis[i] + basis[j], 2) - along(fn, x, basis[i] - basis[j], 2)
        result[i, j] = result[j, i] = twice / 4
    return result


def slope_of_laplacian(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    """The derivative of the Laplacian along a direction."""
    return torch.stack([mixed(fn, x, v, e) for e in _basis(x)]).sum()


def mixed(fn: Function, x: Tensor, v: Tensor, e: Tensor) -> Tensor:
    """The third derivative once along v and twice along e, by polarisation.

    The third derivatives along v + e and v - e have the sum 2 f'''[v, v, v] + 6 f'''[v, e, e].
    """
    return (along(fn, x, v + e, 3) + along(fn, x, v - e, 3) - 2 * along(fn, x, v, 3)) / 6


def _basis(x: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=x.dtype)
