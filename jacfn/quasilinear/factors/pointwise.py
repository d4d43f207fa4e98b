"""Parameters that scale or shift data element by element (L2)."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from jacfn.quasilinear.factors.dense import combined, times


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

    def mv(self, delta: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """``(N, R, S)``, from the rows, which are smaller than the cotangents."""
        return times(self.rows(delta, x), v)

    def rmv(self, delta: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """``(S, *shape)``, likewise."""
        return combined(self.rows(delta, x), u)


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

    def mv(self, delta: Tensor, x: object, v: Tensor) -> Tensor:
        """``(N, R, S)``, from the rows, which are smaller than the cotangents."""
        return times(self.rows(delta, x), v)

    def rmv(self, delta: Tensor, x: object, u: Tensor) -> Tensor:
        """``(S, *shape)``, likewise."""
        return combined(self.rows(delta, x), u)


def _sum_to(delta: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(N, R, *shape)`` from ``(R, N, *y)``: the sum over all axes of y along which ``shape`` was broadcast."""
    extra = delta.ndim - 2 - len(shape)
    if extra:
        delta = delta.reshape(*delta.shape[:2], math.prod(delta.shape[2 : 2 + extra]), *delta.shape[2 + extra :])
    if extra and delta.shape[2] == 1:  # nothing to sum: the cotangents themselves
        delta, extra = delta.squeeze(2), 0
    axes = [2] * bool(extra)
    axes += [axis for axis in range(-len(shape), 0) if shape[axis] == 1 != delta.shape[axis]]
    summed = delta.sum(axes) if axes else delta
    return summed.transpose(0, 1).reshape(delta.shape[1], delta.shape[0], *shape)
