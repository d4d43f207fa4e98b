"""The canonical forms and their algebra (L2).

A parameter that enters its operation linearly has the Jacobian ``cotangent x input``. A rule says which form an
operation has and how its tensors are laid out (a *layout*); what the form *is* stands here, once.

Axes: ``N`` samples, ``R`` rows (cotangents), ``G`` groups, ``T`` positions that share the weight, ``O`` and ``I``
the weight's outputs and inputs, ``V`` the rows of a table and ``D`` what is in one of them. Every form takes

* ``lay(delta)``: cotangents ``(R, N, *y)`` of the output, laid out as the form wants them,
* ``prepare(x)``: the captured input ``(N, ...)``, likewise, once for all rows,
* ``rows(delta, x)``: the Jacobian ``(N, R, *leaf)`` from both, in new memory; ``write`` puts it into ``out``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How ``y[g,t,o] = sum_i W[g,o,i] x[g,t,i]`` lays out its tensors; the weight's axes are G, O, I in this order."""

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)`` from the captured input with a leading N."""

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)`` from cotangents of the output with leading R and N."""


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
        elif g == 1 and not self.swapped:
            _batched(delta[:, :, 0].transpose(0, 1), x[:, 0], whole[:, :, 0])
        else:
            whole.copy_(self.rows(delta, x))


@dataclasses.dataclass(frozen=True)
class Arranged:
    """A matrix product whose weight has its axes in another order: ``axes[k]`` is where the k-th of them stands."""

    product: Matmul
    axes: tuple[int, ...]
    sizes: tuple[int, ...]  # of the product's axes, in its order
    needs_input = True

    def lay(self, delta: Tensor) -> Tensor:
        """As the product has it."""
        return self.product.lay(delta)

    def prepare(self, x: Tensor) -> Tensor:
        """As the product has it."""
        return self.product.prepare(x)

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, *leaf)``."""
        product = self.product.rows(delta, x)
        return product.reshape(*product.shape[:2], *self.sizes).permute(0, 1, *(2 + axis for axis in self.axes))

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``."""
        out.copy_(self.rows(delta, x).reshape(out.shape))


@dataclasses.dataclass(frozen=True)
class Scale:
    """``y = W x`` elementwise, broadcast: ``J[n,r,w] = sum delta[r,n,y] x[n,y]`` over the y that share the weight w.

    ``shape`` is that of the weight, aligned with y's last axes.
    """

    shape: tuple[int, ...]
    needs_input = True

    def lay(self, delta: Tensor) -> Tensor:
        """As they are."""
        return delta

    def prepare(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, *shape)``."""
        x = x.reshape(x.shape[0], *(1,) * (delta.ndim - x.ndim - 1), *x.shape[1:])
        return _sum_to(delta * x, self.shape)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``."""
        out.copy_(self.rows(delta, x).reshape(out.shape))


@dataclasses.dataclass(frozen=True)
class Shift:
    """``y = b + ...`` elementwise, broadcast: ``J[n,r,b] = sum delta[r,n,y]`` over the y that share the element b."""

    shape: tuple[int, ...]
    needs_input = False

    def lay(self, delta: Tensor) -> Tensor:
        """As they are."""
        return delta

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing: a shift has no input."""
        return x

    def rows(self, delta: Tensor, x: object = None) -> Tensor:
        """``(N, R, *shape)``."""
        return _sum_to(delta, self.shape)

    def write(self, delta: Tensor, x: object, out: Tensor) -> None:
        """The same into ``out``."""
        out.copy_(self.rows(delta).reshape(out.shape))


@dataclasses.dataclass(frozen=True)
class Gather:
    """``y[t] = W[index[t]]``, so ``J[n,r,v] = sum of delta[r,n,t]`` over the t with ``index[n,t] = v``.

    The index has any shape and stands first in y's; ``skipped`` is a row of the table that gets no derivative.
    """

    size: int  # V
    skipped: int | None = None
    needs_input = True

    def lay(self, delta: Tensor) -> Tensor:
        """As they are."""
        return delta

    def prepare(self, x: Tensor) -> Tensor:
        """The index ``(N, T)``, from the front."""
        return x.reshape(x.shape[0], -1).remainder(self.size)

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, V, D)``."""
        source, places = self._scattered(delta, x)
        table = source.new_zeros(*source.shape[:2], self.size, source.shape[-1])
        return table.index_put(places, source, accumulate=True)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``."""
        source, places = self._scattered(delta, x)
        table = out.zero_().view(*source.shape[:2], self.size, source.shape[-1])
        table.index_put_(places, source, accumulate=True)

    def _scattered(self, delta: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``(N, R, T, D)``, and the sample, row and row of the table where each ``D`` belongs."""
        r, (n, t) = delta.shape[0], x.shape
        source = delta.reshape(r, n, t, math.prod(delta.shape[2:]) // max(t, 1)).transpose(0, 1)
        if self.skipped is not None:
            source = source * (x != self.skipped % self.size)[:, None, :, None]
        samples, rows = torch.arange(n, device=x.device), torch.arange(r, device=x.device)
        return source, (samples[:, None, None], rows[None, :, None], x.unsqueeze(1))


Form = Matmul | Arranged | Scale | Shift | Gather


def joined(uses: list[tuple[Form, Tensor, Tensor]]) -> list[tuple[Form, Tensor, Tensor]]:
    """The same sum with fewer terms: matrix products of one weight are one product over the positions of all."""
    first: dict[tuple[bool, int, int, int], list[tuple[Form, Tensor, Tensor]]] = {}
    rest = []
    for form, delta, x in uses:
        if isinstance(form, Matmul):
            first.setdefault((form.swapped, x.shape[1], delta.shape[-1], x.shape[-1]), []).append((form, delta, x))
        else:
            rest.append((form, delta, x))
    together: list[tuple[Form, Tensor, Tensor]] = []
    for terms in first.values():
        if len(terms) == 1:
            together += terms
        else:
            deltas, inputs = [delta for _, delta, _ in terms], [x for _, _, x in terms]
            together.append((terms[0][0], torch.cat(deltas, 3), torch.cat(inputs, 2)))
    return together + rest


def _sum_to(delta: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(N, R, *shape)`` from ``(R, N, *y)``: the sum over all axes of y along which ``shape`` was broadcast."""
    extra = delta.ndim - 2 - len(shape)
    if extra:
        delta = delta.reshape(*delta.shape[:2], math.prod(delta.shape[2 : 2 + extra]), *delta.shape[2 + extra :])
    axes = [2] * bool(extra)
    axes += [axis for axis in range(-len(shape), 0) if shape[axis] == 1 != delta.shape[axis]]
    summed = delta.sum(axes) if axes else delta
    return summed.transpose(0, 1).reshape(delta.shape[1], delta.shape[0], *shape)


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
    that stays in the cache. Both read the input in place. Small products go all at once, with a copy of the input
    for every row.
    """
    n, r, t, o = d.shape
    i = x.shape[-1]
    piece = min(n, _BUFFER // max(o * i * out.element_size(), 1))  # samples
    if 2 * r * t * o * i <= _LARGE and out.is_contiguous():
        # (N·R, O, I) <- (N·R, O, T) x (N·R, T, I)
        stacked = d.reshape(n * r, t, o).transpose(1, 2)
        repeated = x.unsqueeze(1).expand(n, r, t, i).reshape(n * r, t, i)
        torch.bmm(stacked, repeated, out=out.view(n * r, o, i))
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
_LARGE = 1 << 20  # operations in the product of a sample
_BUFFER = 4 << 20  # bytes
