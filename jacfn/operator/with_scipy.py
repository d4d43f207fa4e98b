"""Operators for SciPy (L3); the only module of this package that needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn.operator.arguments import Operator as Described


class Operator(Described, Protocol):
    """Products with flat vectors and matrices."""

    @property
    def T(self) -> Any:  # noqa: N802 (as tensors have it)
        """The transpose."""

    def __matmul__(self, v: Tensor) -> Tensor:
        """``J v``."""


def as_scipy(operator: Operator) -> Any:
    """A :class:`scipy.sparse.linalg.LinearOperator` on NumPy vectors."""
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise JacfnError("as_scipy needs SciPy: pip install 'jacfn[scipy]'") from error

    def with_numpy(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        def run(v: Any) -> Any:
            given = torch.as_tensor(v, dtype=operator.dtype, device=operator.device)
            return product(given).detach().cpu().numpy()

        return run

    there, back = with_numpy(lambda v: operator @ v), with_numpy(lambda u: operator.T @ u)
    return LinearOperator(
        operator.shape,
        matvec=lambda v: there(v.reshape(-1)),
        rmatvec=lambda u: back(u.reshape(-1)),
        matmat=there,
        rmatmat=back,
        dtype=torch.empty(0, dtype=operator.dtype).numpy().dtype,
    )


def largest_singular_values(operator: Operator, k: int) -> Tensor:
    """By Lanczos steps, in descending order."""
    try:
        from scipy.sparse.linalg import svds
    except ImportError as error:
        raise JacfnError(
            "singular_values of an operator of this size needs SciPy: pip install 'jacfn[scipy]'"
        ) from error
    found = svds(as_scipy(operator), k=k, return_singular_vectors=False)
    return torch.as_tensor(found.copy(), dtype=operator.dtype, device=operator.device).sort().values.flip(0)
