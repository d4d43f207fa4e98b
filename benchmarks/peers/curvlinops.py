"""curvlinops (Dangel et al. 2025): the Jacobian and its transpose as operators; each product runs the network."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor

from ..works import Work

Product = Callable[[Tensor], Tensor]


def operators(work: Work) -> tuple[Product, Product]:
    """``v -> J v`` and ``u -> Jᵀ u`` on flat vectors; the package's own checks are off."""
    from curvlinops import JacobianLinearOperator, TransposedJacobianLinearOperator

    net = copy.deepcopy(work.net)
    weights, data = [net.get_parameter(name) for name in work.params], [(work.x, work.x)]  # targets are not looked at
    jacobian, transposed = (
        kind(net, weights, data, check_deterministic=False)
        for kind in (JacobianLinearOperator, TransposedJacobianLinearOperator)
    )
    return jacobian.__matmul__, transposed.__matmul__
