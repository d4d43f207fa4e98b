"""Rows of a table, chosen by an index (L2)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


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
        return x.reshape(x.shape[0], math.prod(x.shape[1:])).remainder(self.size)

    def rows(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, V, D)``."""
        return scattered(self.source(delta, x), x, self.size)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``."""
        source = self.source(delta, x)
        table = out.zero_().view(*source.shape[:2], self.size, source.shape[-1])
        table.index_put_(_places(source, x), source, accumulate=True)

    def mv(self, delta: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """``(N, R, S)``: what the index takes from the vectors, times the cotangents."""
        source, (n, t), s = self.source(delta, x), x.shape, len(v)
        size = source.shape[-1]
        # (N, T·D, S) <- (S, N, T, D)
        taken = v.reshape(s, self.size, size)[:, x].permute(1, 2, 3, 0).reshape(n, t * size, s)
        return source.reshape(n, len(delta), t * size) @ taken

    def rmv(self, delta: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """``(S, V, D)``: cotangents combined, then added where the index says."""
        source, (n, t), s = self.source(delta, x), x.shape, u.shape[-1]
        size = source.shape[-1]
        # (S, N·T, D) <- (N, S, T·D) <- (N, S, R) x (N, R, T·D)
        combined = u.transpose(1, 2) @ source.reshape(n, len(delta), t * size)
        combined = combined.transpose(0, 1).reshape(s, n * t, size)
        return combined.new_zeros(s, self.size, size).index_add(1, x.reshape(n * t), combined)

    def source(self, delta: Tensor, x: Tensor) -> Tensor:
        """``(N, R, T, D)``, zero where the index is skipped."""
        r, (n, t) = delta.shape[0], x.shape
        source = delta.reshape(r, n, t, math.prod(delta.shape[2:]) // max(t, 1)).transpose(0, 1)
        if self.skipped is not None:
            source = source * (x != self.skipped % self.size)[:, None, :, None]
        return source


def scattered(source: Tensor, x: Tensor, size: int) -> Tensor:
    """``(N, R, size, D)``: what ``(N, R, T, D)`` adds to the rows ``x`` ``(N, T)`` of a table of zeros."""
    table = source.new_zeros(*source.shape[:2], size, source.shape[-1])
    return table.index_put(_places(source, x), source, accumulate=True)


def _places(source: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The sample, row and row of the table where each ``D`` of the source belongs."""
    samples, rows = (torch.arange(size, device=x.device) for size in source.shape[:2])
    return samples[:, None, None], rows[None, :, None], x.unsqueeze(1)
