"""Rows of a Jacobian as they are (L2): what a plain vjp gave, or what is smaller dense than in factors."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Dense:
    """``delta`` is the Jacobian itself, ``(R, N, *leaf)``: best a transposed view of ``(N, R, *leaf)``. No input."""

    needs_input = False

    def lay(self, delta: Tensor) -> Tensor:
        """As they are."""
        return delta

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing: there is no input."""
        return x

    def rows(self, delta: Tensor, x: object = None) -> Tensor:
        """``(N, R, *leaf)``, a view."""
        return delta.transpose(0, 1)

    def write(self, delta: Tensor, x: object, out: Tensor) -> None:
        """The same into ``out``."""
        out.copy_(self.rows(delta).reshape(out.shape))

    def mv(self, delta: Tensor, x: object, v: Tensor) -> Tensor:
        """``(N, R, S)``."""
        return times(delta.transpose(0, 1), v)

    def rmv(self, delta: Tensor, x: object, u: Tensor) -> Tensor:
        """``(S, *leaf)``."""
        return combined(delta.transpose(0, 1), u)


def times(rows: Tensor, v: Tensor) -> Tensor:
    """``(N, R, S)`` from rows ``(N, R, *leaf)`` and vectors ``(S, *leaf)``."""
    size = rows.shape[2:].numel()
    n, r = rows.shape[:2]
    columns = v.reshape(len(v), size).T
    if rows.is_contiguous():
        return (rows.reshape(n * r, size) @ columns).view(n, r, len(v))
    return (rows.transpose(0, 1).reshape(r * n, size) @ columns).view(r, n, len(v)).transpose(0, 1)


def combined(rows: Tensor, u: Tensor) -> Tensor:
    """``(S, *leaf)`` from rows ``(N, R, *leaf)`` and coefficients ``(N, R, S)``."""
    size = rows.shape[2:].numel()
    if not rows.is_contiguous():
        rows, u = rows.transpose(0, 1), u.transpose(0, 1)
    count = rows.shape[0] * rows.shape[1]
    product = u.reshape(count, u.shape[2]).T @ rows.reshape(count, size)
    return product.view(u.shape[2], *rows.shape[2:])
