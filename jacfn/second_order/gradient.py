"""The first derivative as a function to differentiate again (L3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import optree
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Argnums, Bound, bind
from jacfn._tree import LeafType
from jacfn.dense import jac_rev


class Gradient:
    """``fn``'s Jacobian by reverse mode, flat: ``gradient(*args) -> (leaves, (value, aux))``.

    There is a leaf ``(*out, *in)`` for each output and each differentiated leaf, outputs outermost.
    """

    def __init__(self, fn: Callable[..., Any], argnums: Argnums, has_aux: bool, randomness: str) -> None:
        self.fn, self._argnums, self._has_aux = fn, argnums, has_aux
        self._reverse = jac_rev(fn, argnums, has_aux=has_aux, return_value=True, randomness=randomness)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], tuple[Any, Any]]:
        """The leaves, and what is handed through."""
        jacobian, rest = self._reverse(*args, **kwargs)
        return _tree.flatten(jacobian)[0], rest if self._has_aux else (rest, ())

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], in_dims: Any) -> Bound:
        """At a point, as a function of the differentiated leaves."""
        bound = bind(self.fn, self._argnums, args, kwargs, in_dims=in_dims)
        return dataclasses.replace(bound, fn=self, has_aux=True)


Leaf = TypeVar("Leaf", Tensor, LeafType)


def by_output(gradient: Sequence[Leaf], inputs: Sequence[LeafType]) -> Iterator[tuple[tuple[int, ...], Sequence[Leaf]]]:
    """The gradient's leaves of each output, and the axes that they have in front of those of their input."""
    for start in range(0, len(gradient), len(inputs)):
        leaves = gradient[start : start + len(inputs)]
        shape = tuple(leaves[0].shape)
        yield shape[: len(shape) - len(inputs[0].shape)], leaves


class HandedThrough(NamedTuple):
    """What stood beside the gradient: the structure of ``fn``'s output, the shapes of its leaves, aux."""

    spec: optree.PyTreeSpec
    shapes: list[tuple[int, ...]]  # with the samples
    aux: Any

    @classmethod
    def of(cls, bound: Bound, tensors: Sequence[Tensor]) -> HandedThrough:
        """From what an evaluation of the gradient handed through."""
        value, aux = bound.outputs.aux(tensors)
        leaves, spec = _tree.flatten(value)
        return cls(spec, [tuple(leaf.shape) for leaf in leaves], aux)
