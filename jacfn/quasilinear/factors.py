"""The canonical forms and their algebra (L2).

A parameter that enters its operation linearly has the Jacobian ``cotangent x input``. A rule says which form an
operation has and how its tensors are laid out (:class:`Geometry`); what the form *is* stands here, once.

Axes: ``N`` samples, ``R`` rows (cotangents), ``G`` groups, ``T`` positions that share the weight, ``O`` and ``I``
the weight's outputs and inputs.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor


class Geometry(Protocol):
    """How an operation ``y[g,t,o] = sum_i W[g,o,i] x[g,t,i] + b[g,o]`` lays out its tensors."""

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)`` from the captured input with a leading N."""

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)`` from cotangents of the output with leading R and N."""


@dataclasses.dataclass(frozen=True)
class Matmul:
    """``y[g,t,o] = sum_i W[g,o,i] x[g,t,i]``, so ``J[n,r,g,o,i] = sum_t delta[r,n,g,t,o] x[n,g,t,i]``."""

    geometry: Geometry
    needs_input = True

    def prepare(self, x: Tensor) -> Tensor:
        """What is computed from the input once, for all rows."""
        return self.geometry.inputs(x)

    def rows(self, delta: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``(N, R, G, O, I)``, in ``out`` (contiguous) or in new memory."""
        d = self.geometry.cotangents(delta)
        r, n, g, t, o = d.shape
        i = x.shape[-1]
        if t == 1:
            return _outer(d, x, out)
        if g > 1 or out is None:
            # (N, G, R·O, I) <- (N, G, R·O, T) x (N, G, T, I)
            product = d.permute(1, 2, 0, 4, 3).reshape(n, g, r * o, t) @ x
            product = product.view(n, g, r, o, i).transpose(1, 2)
            return product if out is None else out.copy_(product)
        return _batched(d[:, :, 0], x[:, 0], out)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``, ``(N, R, *leaf)`` with contiguous leaves."""
        d = self.geometry.cotangents(delta)
        r, n, g, t, o = d.shape
        whole = out.view(n, r, g, o, x.shape[-1])
        if t == 1 or out.is_contiguous():
            self.rows(delta, x, whole)
        else:  # a batched product into strides is a loop over the batch
            whole.copy_(self.rows(delta, x))


@dataclasses.dataclass(frozen=True)
class Shift:
    """``y[g,t,o] = b[g,o] + ...``, so ``J[n,r,g,o] = sum_t delta[r,n,g,t,o]``."""

    geometry: Geometry
    needs_input = False

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing: a shift has no input."""
        return x

    def rows(self, delta: Tensor, x: object = None) -> Tensor:
        """``(N, R, G, O)`` in new memory."""
        return self.geometry.cotangents(delta).sum(3).transpose(0, 1)

    def write(self, delta: Tensor, x: object, out: Tensor) -> None:
        """The same into ``out``, ``(N, R, *leaf)``."""
        out.copy_(self.rows(delta).reshape(out.shape))


Form = Matmul | Shift


def _outer(d: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """``(N, R, G, O, I)`` from one position: a product that is written once."""
    left = d.squeeze(3).transpose(0, 1).unsqueeze(-1)  # (N, R, G, O, 1)
    right = x.squeeze(2)[:, None, :, None, :]  # (N, 1, G, 1, I)
    return torch.mul(left, right, out=out)


def _batched(d: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """``(N, R, 1, O, I)`` in ``out`` by one batched product; ``d`` is ``(R, N, T, O)``, ``x`` is ``(N, T, I)``.

    Which operand is copied depends on how the cotangents lie: positions innermost (a convolution) makes R and O one
    axis for free or by a plain copy; outputs innermost (a linear layer) would have to be transposed, so the input is
    repeated instead.
    """
    r, n, t, o = d.shape
    i = x.shape[-1]
    if d.stride(2) <= d.stride(3) or r == 1:
        # (N, R·O, I) <- (N, R·O, T) x (N, T, I)
        stacked = d.permute(1, 0, 3, 2).reshape(n, r * o, t)
        torch.bmm(stacked, x, out=out.view(n, r * o, i))
    else:
        # (N·R, O, I) <- (N·R, O, T) x (N·R, T, I)
        stacked = d.transpose(0, 1).reshape(n * r, t, o).transpose(1, 2)
        repeated = x.unsqueeze(1).expand(n, r, t, i).reshape(n * r, t, i)
        torch.bmm(stacked, repeated, out=out.view(n * r, o, i))
    return out
