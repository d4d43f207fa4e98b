"""Operators for SciPy (L3); the only module of this package that needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from jacfn._errors import JacfnError, JacfnTypeError
from jacfn._torch import inside_transform
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

    if operator.dtype == torch.bfloat16:
        raise JacfnTypeError("as_scipy: NumPy has no bfloat16; convert by J.astype(torch.float32)")

    def with_numpy(product: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        def run(v: Any) -> Any:
            if np.iscomplexobj(v):
                return run(v.real) + 1j * run(v.imag)
            return product(_tensor(v, operator)).detach().cpu().numpy()

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


def _tensor(v: Any, operator: Described) -> Tensor:
    """With a copy where PyTorch cannot use an array as it is: negative strides, foreign byte order, read-only."""
    kind = torch.empty(0, dtype=operator.dtype).numpy().dtype
    return torch.from_numpy(np.require(v, kind, ["C", "W"])).to(operator.device)


def largest_singular_values(operator: Operator, k: int) -> Tensor:
    """By Lanczos steps, in descending order: ``uᵀ J v`` of the vectors found carries derivatives where ``J`` does."""
    if k == min(operator.shape):
        raise JacfnError(
            f"k={k} is all singular values, which need a decomposition: give the operator more memory, ask for fewer, "
            "or call torch.linalg.svdvals(J.materialize())"
        )
    if inside_transform():
        raise JacfnError(
            "singular_values of an operator of this size go by SciPy, which cannot be transformed: call it outside, or "
            "torch.linalg.svdvals(J.materialize())"
        )
    try:
        from scipy.sparse.linalg import svds
    except ImportError as error:
        raise JacfnError(
            "singular_values of an operator of this size needs SciPy: pip install 'jacfn[scipy]'"
        ) from error
    found = svds(as_scipy(operator), k=k)
    u, v = (_tensor(x, operator) for x in (found[0], found[2].T))
    values: Tensor = (u * (operator @ v)).sum(0)
    return values.sort(descending=True).values
