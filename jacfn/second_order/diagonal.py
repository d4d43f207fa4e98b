"""``hessian_diag`` (L3): the diagonal alone, without the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jacfn import _tree
from jacfn._binding import Argnums
from jacfn._evaluate import Options
from jacfn._memory import Budget
from jacfn._selection import Side, select
from jacfn._tree import LeafType
from jacfn.second_order.columns import Parts, columns_of
from jacfn.second_order.gradient import Gradient, HandedThrough, by_output


def hessian_diag(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    in_dims: Any = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
    strict: bool = False,
) -> Callable[..., Any]:
    """The diagonal of the Hessian of ``fn``: every second derivative with respect to one element twice.

    Args:
        fn: as in :func:`jacfn.hessian`.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`.
        chunk_size: how many elements are differentiated at once (default: all).
        memory: a budget such as ``"512MiB"`` from which the chunk size is derived.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.
        strict: as in :func:`jacfn.hessian`.

    Returns:
        A function of the arguments of ``fn``. For a scalar ``fn`` its result has the structure and shapes of the
        differentiated arguments; else that of the output outside, leaves ``(*out, *in)``. With ``in_dims`` samples
        lead. ``(diagonal, aux)`` with ``has_aux``.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``.

    Cost: that of the columns of the Hessian, a jvp of the gradient for each element; only a chunk of them is held.

    Example:
        >>> import torch
        >>> from jacfn import hessian_diag
        >>> hessian_diag(lambda x: (x**3).sum() + x.prod())(torch.tensor([1.0, 2.0]))
        tensor([ 6., 12.])

    Forward over reverse as in :func:`jacfn.hessian`.
    """
    options = Options(False, chunk_size, memory, randomness, differentiable)
    gradient = Gradient(fn, argnums, has_aux, randomness)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        bound = gradient.bind(args, kwargs, in_dims)
        side = select(bound.leaf_types, bound.spec, None, "columns")
        result = columns_of("hessian_diag", gradient, bound, side, options, strict, "diagonal", _Diagonal(side))
        beside = HandedThrough.of(bound, result.aux)
        count = len(side.leaves)
        outputs = [
            _tree.unflatten(bound.spec, [result.parts[i, o].reshape((*lead, *side.shapes[i])) for i in range(count)])
            for o, lead in enumerate(beside.shapes)
        ]
        tree = _tree.unflatten(beside.spec, outputs)
        return (tree, beside.aux) if has_aux else tree

    return transformed


class _Diagonal:
    """The element of each column that is on the diagonal."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def kinds(self, gradient: Sequence[LeafType]) -> list[LeafType]:
        """``out`` for each output."""
        return [gradient[0]._replace(shape=out) for out, _ in by_output(gradient, self._side.leaves)]

    def __call__(self, low: int, high: int, parts: Parts) -> Parts:
        """``(N, C, *out)`` for each output."""
        leaves, result = self._side.leaves, []
        for lead, of_output in by_output(parts, leaves):
            picked = []
            for leaf, inside, places in self._side.split(low, high):
                rows = of_output[leaf].reshape((*lead, leaves[leaf].size))[:, inside, ..., places]
                picked.append(rows.diagonal(dim1=1, dim2=-1).movedim(-1, 1))
            result.append(torch.cat(picked, 1))
        return result
