"""The Jacobian at one point, as the linear solvers see it (L4): flat vectors, for one problem or for many at once.

Shapes are ``(M, P)`` for one problem and ``(B, M, P)`` for ``B`` of them; vectors lead with the same axes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from jacfn.operator import JacobianOperator
from jacfn.operator.weighted import weighted_gram

_WIDE = 1024  # up to this side, small matrices are summed and factored in float64, whatever the Jacobian's dtype
_BLOCK = 8 << 20  # bytes of dense rows at a time
_NEAR = 1 << 20  # bytes of them in another dtype: what the nearest caches hold


class Rows(abc.ABC):
    """What the solvers need of a Jacobian."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the Jacobian."""

    @property
    def small_dtype(self) -> torch.dtype:
        """Of the matrices that are made of it, whose side is the lesser of ``M`` and ``P``."""
        return torch.float64 if min(self.shape) <= _WIDE else self.dtype

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

    @functools.cached_property
    def normal(self) -> Tensor:
        """``JᵀJ``, made once."""
        return self._normal()

    def squared_image(self, h: Tensor) -> Tensor:
        """``‖J h‖²`` in float64: by the normal matrix where that has been made with more digits than ``J`` has."""
        if "normal" not in self.__dict__ or self.small_dtype == self.dtype:
            return self.mv(h.to(self.dtype)).double().square().sum(-1)
        h = h.to(self.small_dtype)
        return (h * (self.normal @ h.unsqueeze(-1)).squeeze(-1)).sum(-1)

    @abc.abstractmethod
    def _normal(self) -> Tensor:
        """The same, in :attr:`small_dtype`."""

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
    def dtype(self) -> torch.dtype:
        """Of the operator."""
        return self.operator.dtype

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

    def _normal(self) -> Tensor:
        """``(P, P)``: of few columns by dense rows, which then make one product."""
        p = self.shape[1]
        if p > _WIDE:
            return self.operator.normal()
        total = torch.zeros(p, p, dtype=self.small_dtype, device=self.operator.device)
        for _, block in self.blocks():
            _add_product(total, block)
        return total

    def gram(self, scale: Tensor | None) -> Tensor:
        """``(M, M)``, by the factors of the layers."""
        if scale is None:
            return self.operator.gram()
        weights = self.operator.columns.stacks(scale.square().reciprocal().unsqueeze(0))
        return weighted_gram(self.operator.source, [stack[0] for stack in weights])

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """In blocks that stay in the caches."""
        yield from self.operator.blocks(max(_BLOCK // (self.shape[1] * self.dtype.itemsize), 1))


@dataclasses.dataclass(frozen=True)
class StackedRows(Rows):
    """The Jacobians of many problems, dense: ``(B, M, P)``."""

    dense: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.dense.dtype

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

    def _normal(self) -> Tensor:
        """``(B, P, P)``."""
        dense = self.dense.to(self.small_dtype)
        return dense.mT @ dense

    def gram(self, scale: Tensor | None) -> Tensor:
        """``(B, M, M)``."""
        dense = self.dense if scale is None else self.dense / scale.unsqueeze(-2)
        return dense @ dense.mT

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows at once."""
        yield slice(0, self.dense.shape[1]), self.dense


def _add_product(total: Tensor, rows: Tensor) -> None:
    """Add ``rowsᵀ rows`` to a matrix that may be of a wider dtype, some rows after the other.

    Each part is laid out with its columns in memory one after the other, which matrix products read faster.
    """
    count, p = rows.shape
    near = total.new_empty(p, min(count, max(_NEAR // (p * total.dtype.itemsize), 1)))
    for part in torch.split(rows, near.shape[1]):
        columns = near[:, : len(part)].copy_(part.T)
        total.addmm_(columns, columns.T)
