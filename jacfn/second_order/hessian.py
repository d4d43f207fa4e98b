"""``hessian`` (L3): forward over reverse, for samples, chunked, with chosen rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Argnums
from jacfn._evaluate import Options, Result
from jacfn._memory import Budget
from jacfn._selection import Selection, Side, frozen, select, selection_key
from jacfn._tree import LeafType
from jacfn.second_order.columns import Parts, columns_of
from jacfn.second_order.gradient import Gradient, HandedThrough, by_output


def hessian(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    in_dims: Any = None,
    rows: Selection = None,
    columns: Selection = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
    strict: bool = False,
) -> Callable[..., Any]:
    """The Hessian of ``fn``, forward over reverse: one jvp of the gradient a column, columns vmapped in chunks.

    A drop-in for :func:`torch.func.hessian` that also maps over samples, keeps to a memory budget and computes chosen
    blocks alone.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out, outputs of any
            shape. Keyword arguments are not differentiated.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample
            and the result leads with the samples.
        rows: places in the raveled input (of one sample) of the first derivative: an int, a slice, a 1-D LongTensor,
            or a pytree with one of these for each input leaf.
        columns: the same of the second derivative. The cost is that of the columns, or, where ``rows`` are given
            alone, that of the rows: the Hessian is symmetric.
        chunk_size: how many columns are evaluated at once (default: all).
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond the inputs and the result;
            the chunk size is derived from it.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result from every outer transform and graph.
        strict: raise where an operation has no forward derivative. Otherwise such functions are differentiated
            reverse over reverse, which is as exact, keeps more in memory, and is said once by the logger ``jacfn``.

    Returns:
        A function of the arguments of ``fn``. Its result has the structure of the output outside, then twice that of
        the arguments, leaves ``(*out, *in, *in)``, with ``in_dims`` ``(N, *out, *in, *in)``; chosen rows and columns
        are an axis each, in the place of their arguments. ``(hessian, aux)`` with ``has_aux``.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``; the message
            names it.

    Cost: for each column a jvp of the gradient, about four evaluations of ``fn`` for scalar ``fn``; outputs with ``M``
    elements take ``M`` times the backward passes. Memory beyond the result: the activations of a chunk of columns.

    Example:
        >>> import torch
        >>> from jacfn import hessian
        >>> x = torch.tensor([1.0, 2.0])
        >>> hessian(lambda x: x[0] ** 2 * x[1])(x)
        tensor([[4., 2.],
                [2., 0.]])
        >>> hessian(lambda w, x: (w @ x) ** 3, argnums=1, in_dims=(None, 0), columns=0)(x, torch.ones(3, 2)).shape
        torch.Size([3, 2, 1])

    Pearlmutter (1994, doi:10.1162/neco.1994.6.1.147) for the product with a column.
    """
    options = Options(False, chunk_size, memory, randomness, differentiable)
    rows, columns = frozen(rows), frozen(columns)
    keys = (selection_key(rows), selection_key(columns))
    gradient = Gradient(fn, argnums, has_aux, randomness)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        bound = gradient.bind(args, kwargs, in_dims)
        first = select(bound.leaf_types, bound.spec, rows, "rows")
        second = select(bound.leaf_types, bound.spec, columns, "columns")
        by_rows = rows is not None and columns is None  # they are made as columns
        made, other = (first, second) if by_rows else (second, first)
        reduce = None if other.index is None else _Chosen(other)
        key = None if None in keys else keys
        result = columns_of("hessian", gradient, bound, made, options, strict, key, reduce)
        beside = HandedThrough.of(bound, result.aux)
        tree = _assembled(result, beside, other, by_rows)
        return (tree, beside.aux) if has_aux else tree

    return transformed


class _Chosen:
    """Chosen rows of a chunk of columns."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def kinds(self, gradient: Sequence[LeafType]) -> list[LeafType]:
        """``(*out, R)`` for each leaf of the choice."""
        outs = (out for out, _ in by_output(gradient, self._side.leaves))
        return [gradient[0]._replace(shape=(*out, *shape)) for out in outs for shape in self._side.shapes]

    def __call__(self, low: int, high: int, parts: Parts) -> Parts:
        """Those places of the raveled gradient."""
        leaves = self._side.leaves
        index = torch.as_tensor(self._side.index, device=parts[0].device)
        sizes = [high - low for low, high in self._side.bounds]
        chosen: Parts = []
        for lead, of_output in by_output(parts, leaves):
            flat = [part.reshape((*lead, leaf.size)) for part, leaf in zip(of_output, leaves, strict=True)]
            picked: tuple[Tensor, ...] = torch.split(torch.cat(flat, -1)[..., index], sizes, -1)
            chosen += picked
        return chosen


def _assembled(result: Result, beside: HandedThrough, other: Side, by_rows: bool) -> Any:
    """The pytree: outputs, rows, columns; ``by_rows`` where the chosen places, made as columns, are rows."""
    made = result.side
    rows, columns = (made, other) if by_rows else (other, made)

    def block(output: int, row: int, column: int) -> Tensor:
        """Of a leaf of the rows and one of the columns."""
        i, j = (column, row) if by_rows else (row, column)
        lead = beside.shapes[output]
        part = result.parts[j, output * len(other.shapes) + i]
        part = part.reshape((*lead, math.prod(other.shapes[i]), math.prod(made.shapes[j])))
        return (part.mT if by_rows else part).reshape((*lead, *rows.shapes[row], *columns.shapes[column]))

    def of_output(output: int) -> Any:
        places = range(len(columns.shapes))
        of_rows = [_nested(columns, [block(output, i, j) for j in places]) for i in range(len(rows.shapes))]
        return _nested(rows, of_rows)

    return _tree.unflatten(beside.spec, [of_output(number) for number in range(len(beside.shapes))])


def _nested(side: Side, parts: list[Any]) -> Any:
    """With the structure of a side; flat places have none."""
    return parts[0] if side.spec is None else _tree.unflatten(side.spec, parts)
