"""Contractions by their letters (L2): the matrix product of a parameter with data, in any arrangement of axes."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from jacfn.quasilinear.factors import Arranged, Form, Matmul

# For the axes in front, as many as a tensor may have; products call their own k, m, n, i, o.
LETTERS = "".join(map(chr, range(ord("À"), ord("À") + 64)))


@dataclasses.dataclass(frozen=True)
class Contraction:
    """``y = einsum(f"{weight},{input}->{output}", W, x)``, one letter an axis.

    Letters of all three are groups; of input and output positions; of weight and output outputs; of weight and input
    inputs.
    """

    weight: str
    input: str
    output: str

    @property
    def groups(self) -> str:
        """In all three."""
        return _common(self.weight, self.input, self.output)

    @property
    def outputs(self) -> str:
        """What the weight alone gives to the output."""
        return "".join(c for c in self.weight if c in self.output and c not in self.input)

    @property
    def summed(self) -> str:
        """What the product sums over."""
        return "".join(c for c in self.weight if c in self.input and c not in self.output)

    @property
    def positions(self) -> str:
        """What shares the weight."""
        return "".join(c for c in self.output if c not in self.weight)

    def inputs(self, x: Tensor) -> Tensor:
        """``(N, G, T, I)``."""
        alone = [1 + axis for axis, c in enumerate(self.input) if c not in self.weight + self.output]
        letters = [c for c in self.input if c in self.weight + self.output]
        return _arranged(x.sum(alone) if alone else x, 1, letters, self.groups, self.positions, self.summed)

    def cotangents(self, delta: Tensor) -> Tensor:
        """``(R, N, G, T, O)``."""
        return _arranged(delta, 2, list(self.output), self.groups, self.positions, self.outputs)


def _arranged(x: Tensor, lead: int, letters: list[str], *blocks: str) -> Tensor:
    """The axes behind the leading ones, block by block, each block one axis."""
    places = [[lead + letters.index(c) for c in block] for block in blocks]
    sizes = [1] * len(blocks)
    for number, block in enumerate(places):
        for place in block:
            sizes[number] *= x.shape[place]
    order = [place for block in places for place in block]
    return x.permute(*range(lead), *order).reshape(*x.shape[:lead], *sizes)


def contraction(weight: str, input: str, output: str, sizes: Any = None) -> Form:
    """The form of a contraction; ``sizes`` of the weight's axes are needed when these are in no order of a product."""
    layout = Contraction(weight, input, output)
    g, o, i = layout.groups, layout.outputs, layout.summed
    if weight in (g + o + i, g + i + o):
        return Matmul(layout, swapped=weight != g + o + i)
    natural = g + o + i
    return Arranged(
        Matmul(layout), tuple(natural.index(c) for c in weight), tuple(sizes[weight.index(c)] for c in natural)
    )


def _common(first: str, *others: str) -> str:
    return "".join(c for c in first if all(c in other for other in others))
