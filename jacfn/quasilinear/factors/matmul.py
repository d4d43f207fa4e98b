"""Matrix products (L2): linear layers, convolutions, einsum."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from jacfn.quasilinear.factors.cuts import cuts


class Layout(Protocol):
    """How ``y[g,t,o] = sum_i W[g,o,i] x[g,t,i]`` lays out its tensors; the weight's axes are G, O, I in this order."""

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)`` from the captured input with a leading N."""

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)`` from cotangents of the output with leading R and N."""


@dataclasses.dataclass(frozen=True)
class AsIs:
    """The layout of what is laid out already."""

    def inputs(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def cotangents(self, delta: Tensor) -> Tensor:
        """As they are."""
        return delta


@dataclasses.dataclass(frozen=True)
class Matmul:
    """``y[g,t,o] = sum_i W[g,o,i] x[g,t,i]``, so ``J[n,r,g,o,i] = sum_t delta[r,n,g,t,o] x[n,g,t,i]``.

    ``swapped``: the weight's axes are G, I, O, as in ``x @ W``.
    """

    layout: Layout
    swapped: bool = False
    needs_input = True

    def lay(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)``."""
        return self.layout.cotangents(delta)

    def prepare(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)``."""
        return self.layout.inputs(x)

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, G, O, I)``, or ``(N, R, G, I, O)``, in new memory."""
        r, n, g, t, o = delta.shape
        if t == 1:
            return _outer(delta, x, self.swapped)
        if self.swapped:
            # (N, R, G, I, O) <- (N, 1, G, I, T) x (N, R, G, T, O)
            return x.transpose(-1, -2).unsqueeze(1) @ delta.transpose(0, 1)
        # (N, G, R·O, I) <- (N, G, R·O, T) x (N, G, T, I)
        product = delta.permute(1, 2, 0, 4, 3).reshape(n, g, r * o, t) @ x
        return product.view(n, g, r, o, x.shape[-1]).transpose(1, 2)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``, ``(N, R, *leaf)`` with contiguous leaves."""
        r, n, g, t, o = delta.shape
        i = x.shape[-1]
        whole = out.view(n, r, g, *((i, o) if self.swapped else (o, i)))
        if t == 1:
            _outer(delta, x, self.swapped, whole)
        elif self.writes_straight(delta):
            _batched(delta[:, :, 0].transpose(0, 1), x[:, 0], whole[:, :, 0])
        else:
            whole.copy_(self.rows(delta, x))

    def writes_straight(self, delta: Tensor) -> bool:
        """Whether ``write`` makes no rows elsewhere first."""
        return delta.shape[3] == 1 or (delta.shape[2] == 1 and not self.swapped)

    def mv(self, delta: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """``(N, R, S)``: the output's tangents ``v x``, then their products with the cotangents."""
        (r, n, g, t, o), i, s = delta.shape, x.shape[-1], len(v)
        innermost = s > 1 and v.stride(0) == 1
        if s > 1 and g == 1 and o >= _WIDE and not self.swapped and v[0].is_contiguous():
            return _one_by_one(delta.reshape(r, n, t * o), x.reshape(n * t, i), v.view(s, o, i))
        v = v.reshape(s, g, i, o) if self.swapped else v.reshape(s, g, o, i).transpose(2, 3)
        # The vectors become the last axis: of the tangents, or of the weight where that is smaller or has them there.
        late = n * t <= i and not innermost
        weight = (v.permute(1, 2, 0, 3) if late else v.permute(1, 2, 3, 0)).reshape(g, i, s * o)
        if g == 1:
            tangents = x[:, 0] @ weight[0]  # (N, T, S·O) <- (N, T, I) x (I, S·O)
        else:  # (G, N·T, S·O) <- (G, N·T, I) x (G, I, S·O)
            tangents = (x.transpose(0, 1).reshape(g, n * t, i) @ weight).view(g, n, t, s * o).transpose(0, 1)
        if late:
            tangents = tangents.reshape(n, g * t, s, o).transpose(2, 3)
        # (N, R, S) <- (N, R, G·T·O) x (N, G·T·O, S)
        return delta.reshape(r, n, g * t * o).transpose(0, 1) @ tangents.reshape(n, g * t * o, s)

    def rmv(self, delta: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """``(S, G, O, I)``, or ``(S, G, I, O)``: cotangents combined, then one product over samples and positions."""
        (r, n, g, t, o), i, s = delta.shape, x.shape[-1], u.shape[-1]
        rows = delta.reshape(r, n, g * t * o)
        # (N, G·T·O, S) <- (N, G·T·O, R) x (N, R, S); one vector is too thin for a matrix product
        combined = (rows * u.transpose(0, 1)).sum(0) if s == 1 else rows.permute(1, 2, 0) @ u
        left = combined.view(n, g, t, o * s).permute(1, 3, 0, 2).reshape(g, o * s, n * t)
        right = x.transpose(0, 1).reshape(g, n * t, i)
        # (G, O·S, I) <- (G, O·S, N·T) x (G, N·T, I)
        product = (left[0] @ right[0] if g == 1 else left @ right).view(g, o, s, i)
        return self.in_order(product.permute(2, 0, 1, 3), 1)

    def in_order(self, product: Tensor, lead: int) -> Tensor:
        """``(..., G, O, I)``, behind ``lead`` axes, in the weight's order of axes."""
        return product.transpose(-1, -2) if self.swapped else product


def _one_by_one(delta: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """``(N, R, S)`` for vectors that are contiguous each: a product for each of them, and no copy of them."""
    tangents = (x @ v.mT).view(len(v), *delta.shape[1:])  # (S, N, T·O) <- (N·T, I) x (S, I, O)
    # (N, R, S) <- (N, R, T·O) x (N, T·O, S)
    return delta.transpose(0, 1) @ tangents.permute(1, 2, 0)


def _outer(d: Tensor, x: Tensor, swapped: bool, out: Tensor | None = None) -> Tensor:
    """``(N, R, G, O, I)`` from one position: a product that is written once."""
    left, right = d.squeeze(3).transpose(0, 1), x.squeeze(2).unsqueeze(1)  # (N, R, G, O), (N, 1, G, I)
    if out is None:
        left = left.contiguous()  # new memory takes its order of axes from it
    if swapped:
        left, right = right, left
    return torch.mul(left.unsqueeze(-1), right.unsqueeze(-2), out=out)


def _batched(d: Tensor, x: Tensor, out: Tensor) -> None:
    """``J[n,r,o,i] = sum_t d[n,r,t,o] x[n,t,i]`` into ``out``, whose samples are contiguous each.

    Whatever takes fewer calls: a product of all rows of a sample, or of a row of many samples by way of a buffer
    that stays in the cache. Both read the input in place. Small products go many at once, with a copy of the input
    for every row.
    """
    n, r, t, o = d.shape
    i = x.shape[-1]
    piece = min(n, _BUFFER // max(o * i * out.element_size(), 1))  # samples
    if 2 * r * t * o * i <= _LARGE and out.is_contiguous():
        for block in cuts(n, _COPIES // max(r * t * (o + i) * out.element_size(), 1)):
            m = block.stop - block.start
            # (N·R, O, I) <- (N·R, O, T) x (N·R, T, I)
            stacked = d[block].reshape(m * r, t, o).transpose(1, 2)
            repeated = x[block].unsqueeze(1).expand(m, r, t, i).reshape(m * r, t, i)
            torch.bmm(stacked, repeated, out=out[block].view(m * r, o, i))
    elif r * n < n * piece:
        buffer = out.new_empty(piece, o, i)
        for first in range(0, n, piece):
            block = slice(first, first + piece)
            product = buffer[: min(piece, n - first)]
            for row in range(r):
                # (N, O, I) <- (N, O, T) x (N, T, I)
                torch.bmm(d[block, row].transpose(1, 2), x[block], out=product)
                out[block, row] = product
    else:
        for delta, one, rows in zip(d, x, out, strict=True):
            # (R, O, I) <- (R, O, T) x (1, T, I)
            torch.bmm(delta.transpose(1, 2), one.expand(r, t, i), out=rows)


# Measured on two cores.
_WIDE = 64  # outputs, from which on vectors one by one are faster than side by side
_LARGE = 1 << 20  # operations in the product of a sample
_BUFFER = 4 << 20  # bytes
_COPIES = 8 << 20
