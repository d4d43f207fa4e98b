"""Matrix products whose weight has its axes in another order (L2)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from jacfn.quasilinear.factors.matmul import Matmul


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
        return self.in_order(self.product.rows(delta, x), 2)

    def write(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        """The same into ``out``."""
        out.copy_(self.rows(delta, x).reshape(out.shape))

    def mv(self, delta: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """``(N, R, S)``."""
        places = (1 + self.axes.index(axis) for axis in range(len(self.axes)))
        return self.product.mv(delta, x, v.permute(0, *places))

    def rmv(self, delta: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """``(S, *leaf)``."""
        return self.in_order(self.product.rmv(delta, x, u), 1)

    def in_order(self, product: Tensor, lead: int) -> Tensor:
        """``(..., G, O, I)``, behind ``lead`` axes, in the weight's order of axes."""
        product = product.reshape(*product.shape[:lead], *self.sizes)
        return product.permute(*range(lead), *(lead + axis for axis in self.axes))
