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

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, G, O, I)`` in new memory."""
        d = self.geometry.cotangents(delta)
        if d.shape[3] == 1:
            return _outer(d, x)
        # (N, G, R·O, I) <- (N, G, R·O, T) x (N, G, T, I)
        r, n, g, t, o = d.shape
        stacked = d.permute(1, 2, 0, 4, 3).reshape(n, g, r * o, t)
        return (stacked @ x).view(n, g, r, o, x.shape[-1]).transpose(1, 2)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``, ``(N, R, *leaf)`` with contiguous leaves."""
        d = self.geometry.cotangents(delta)
        r, n, g, t, o = d.shape
        i = x.shape[-1]
        out = out.view(n, r, g, o, i)
        if t == 1:
            _outer(d, x, out=out)
        elif g > 1 or t == 0:
            out.copy_(self.rows(delta, x))
        elif r == 1:  # (N, O, I) <- (N, O, T) x (N, T, I)
            torch.bmm(d[0, :, 0].transpose(1, 2), x[:, 0], out=out[:, 0, 0])
        else:  # (N, R·O, I) <- (N, R·O, T) x (N, T, I)
            stacked = d[:, :, 0].permute(1, 0, 3, 2).reshape(n, r * o, t)
            torch.bmm(stacked, x[:, 0], out=out.view(n, r * o, i))


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
