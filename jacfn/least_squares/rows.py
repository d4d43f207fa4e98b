"""The Jacobian at one point, as the linear solvers see it (L4): flat vectors, for one problem or for many at once.

Shapes are ``(M, P)`` for one problem and ``(B, M, P)`` for ``B`` of them; vectors lead with the same axes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from jacfn.operator import JacobianOperator


class Rows(abc.ABC):
    """What the solvers need of a Jacobian."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(M, P)`` of one problem."""

    @abc.abstractmethod
    def mv(self, v: Tensor) -> Tensor:
        """``J v``."""

    @abc.abstractmethod
    def rmv(self, u: Tensor) -> Tensor:
        """``Jᵀ u``."""

    @abc.abstractmethod
    def column_norms(self) -> Tensor:
        """``(..., P)``."""

    @abc.abstractmethod
    def normal(self, dtype: torch.dtype) -> Tensor:
        """``JᵀJ``, summed in ``dtype``."""

    @abc.abstractmethod
    def gram(self, scale: Tensor | None) -> Tensor:
        """``J D⁻² Jᵀ`` for ``D = diag(scale)``, the identity if None."""

    @abc.abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Dense rows, ``(..., m, P)``, with the places of the ``m`` rows."""


@dataclasses.dataclass(frozen=True)
class OperatorRows(Rows):
    """The Jacobian of one problem."""

    operator: JacobianOperator

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, P)``."""
        return self.operator.shape

    def mv(self, v: Tensor) -> Tensor:
        """``J v``."""
        return self.operator @ v

    def rmv(self, u: Tensor) -> Tensor:
        """``Jᵀ u``."""
        return self.operator.T @ u

    def column_norms(self) -> Tensor:
        """``(P,)``."""
        return self.operator.column_norms()

    def normal(self, dtype: torch.dtype) -> Tensor:
        """``(P, P)``."""
        operator = self.operator if dtype == self.operator.dtype else self.operator.astype(dtype)
        return operator.normal()

    def gram(self, scale: Tensor | None) -> Tensor:
        """``(M, M)``, by the factors where there is no scale."""
        return (self.operator if scale is None else self.operator.column_weighted(1 / scale)).gram()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """In blocks as the operator has them."""
        yield from self.operator.blocks()


@dataclasses.dataclass(frozen=True)
class StackedRows(Rows):
    """The Jacobians of many problems, dense: ``(B, M, P)``."""

    dense: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, P)``."""
        m, p = self.dense.shape[1:]
        return m, p

    def mv(self, v: Tensor) -> Tensor:
        """``(B, M)``."""
        return (self.dense @ v.unsqueeze(-1)).squeeze(-1)

    def rmv(self, u: Tensor) -> Tensor:
        """``(B, P)``."""
        return (u.unsqueeze(-2) @ self.dense).squeeze(-2)

    def column_norms(self) -> Tensor:
        """``(B, P)``."""
        norms: Tensor = torch.linalg.vector_norm(self.dense, dim=-2)
        return norms

    def normal(self, dtype: torch.dtype) -> Tensor:
        """``(B, P, P)``."""
        dense = self.dense.to(dtype)
        return dense.mT @ dense

    def gram(self, scale: Tensor | None) -> Tensor:
        """``(B, M, M)``."""
        dense = self.dense if scale is None else self.dense / scale.unsqueeze(-2)
        return dense @ dense.mT

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows at once."""
        yield slice(0, self.dense.shape[1]), self.dense
