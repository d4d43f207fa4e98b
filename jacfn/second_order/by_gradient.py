"""Derivatives along directions by the gradient (L3): exact for whatever PyTorch differentiates twice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Options, Tracking
from jacfn._products import push
from jacfn._tree import LeafType
from jacfn.second_order.columns import by_symmetry, linear_gradient
from jacfn.second_order.gradient import Gradient, by_output
from jacfn.second_order.jet import Sum
from jacfn.second_order.passes import Pass, Stacks, mapped

Derivatives = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]  # of the gradient, the gradient, the rest


@dataclasses.dataclass(frozen=True)
class ByGradient:
    """Of a block along directions: the gradient's derivative, forward or reverse over reverse."""

    gradient: Gradient
    reverse: bool
    sum: Sum
    options: Options

    def __call__(self, block: Bound, stacks: Stacks, dim: int | None, low: int, high: int, tracking: Tracking) -> Pass:
        """Along the directions from ``low`` to ``high``."""
        sum = self.sum.restricted(low, high)

        def one(leaves: Sequence[Tensor], data: Sequence[Tensor], stacks: Stacks) -> Pass:
            of_gradient = dataclasses.replace(block, fn=self.gradient, has_aux=True, seen={})
            differentiate = self._reverse if self.reverse else self._forward
            parts, slopes, rest = differentiate(of_gradient, leaves, data, stacks, tracking)
            value, aux = of_gradient.outputs.aux(rest)
            outputs, handed = block.note((value, aux) if block.has_aux else value)
            second = [sum.of(part) for part in _contracted(parts, stacks, block.leaf_types, stacked=True)]
            return Pass(outputs, _contracted(slopes, stacks, block.leaf_types, stacked=False), second, handed)

        with torch.set_grad_enabled(tracking != "off" and torch.is_grad_enabled()):
            return mapped(one, block, stacks, dim, self.options.randomness)

    def _forward(
        self, bound: Bound, leaves: Sequence[Tensor], data: Sequence[Tensor], stacks: Stacks, tracking: Tracking
    ) -> Derivatives:
        parts, slopes, rest = push(lambda x: bound.call(x, data), leaves, stacks, self.options.inner_randomness)
        return parts, slopes, rest

    def _reverse(
        self, bound: Bound, leaves: Sequence[Tensor], data: Sequence[Tensor], stacks: Stacks, tracking: Tracking
    ) -> Derivatives:
        linear = linear_gradient(bound, leaves, data, self.options.inner_randomness, tracking)
        return by_symmetry(linear, stacks, bound.leaf_types), linear.value, linear.aux


def _contracted(
    gradient: Sequence[Tensor], stacks: Stacks, inputs: Sequence[LeafType], *, stacked: bool
) -> list[Tensor]:
    """``(C, *out)`` for each output: leaves ``(*out, *in)`` of the gradient, or a stack of such, times directions."""
    results = []
    for shape, leaves in by_output(gradient, inputs):
        out = shape[1:] if stacked else shape
        terms = []
        for leaf, stack, kind in zip(leaves, stacks, inputs, strict=True):
            if stack is not None:
                rows = leaf.reshape(*shape[: len(shape) - len(out)], math.prod(out), kind.size)  # ([C,] out, in)
                terms.append(rows @ stack.reshape(len(stack), kind.size, 1))  # (C, out, 1)
        results.append(sum(terms[1:], terms[0]).reshape(-1, *out))
    return results
