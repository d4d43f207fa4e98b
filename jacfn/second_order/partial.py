"""``partial`` (L3): one chosen partial derivative."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from jacfn import _tree
from jacfn._binding import Argnums, Bound, bind
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._evaluate import Options
from jacfn._selection import Given, Side
from jacfn.dense import jac_fwd
from jacfn.second_order.along import Along
from jacfn.second_order.jet import Sum

_HIGHEST = 3


def partial(
    fn: Callable[..., Any],
    places: Sequence[int],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    in_dims: Any = None,
    randomness: str = "error",
    differentiable: bool = True,
    strict: bool = False,
) -> Callable[..., Any]:
    """One chosen partial derivative of ``fn``, of first, second or third order.

    Args:
        fn: as in :func:`jacfn.laplacian`.
        places: with respect to what to differentiate, in turn: one to three ints, places in the raveled input (of one
            sample). ``(0, 0, 1)`` is the derivative twice by the first coordinate and once by the second.
        argnums: which positional arguments to differentiate, an int or a tuple of ints; ``places`` count through all
            of their elements.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.
        strict: as in :func:`jacfn.laplacian`.

    Returns:
        A function of the arguments of ``fn``; its result has the structure and the shapes of the output of ``fn``,
        with ``in_dims`` led by the samples. ``(derivative, aux)`` with ``has_aux``.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``.

    Cost: two or three evaluations; a third derivative doubles that. No gradient and no Hessian is made.

    Example:
        >>> import torch
        >>> from jacfn import partial
        >>> x = torch.tensor([2.0, 3.0])
        >>> partial(lambda x: x[0] ** 3 * x[1] ** 2, (0, 1))(x)
        tensor(72.)
        >>> partial(lambda x: x[0] ** 3 * x[1] ** 2, (0, 0, 1))(x)
        tensor(72.)

    The second derivative along one direction by the rules of :func:`jacfn.laplacian`, a mixed one by polarisation,
    ``4 ∂i ∂j = (∂i + ∂j)² - (∂i - ∂j)²``; a third is a derivative of that by forward mode.
    """
    order = _checked(places)
    options = Options(False, None, None, randomness, differentiable)
    if len(order) == 2:
        return _second(fn, order, argnums, has_aux, in_dims, options, strict)
    inner = fn if len(order) == 1 else _second(fn, order[:2], argnums, has_aux, None, options, strict)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        column = jac_fwd(
            inner,
            argnums,
            has_aux,
            in_dims=in_dims,
            columns=order[-1],
            randomness=randomness,
            differentiable=differentiable,
        )(*args, **kwargs)
        column, *aux = column if has_aux else (column,)
        leaves, spec = _tree.flatten(column)
        derivative = _tree.unflatten(spec, [leaf.squeeze(-1) for leaf in leaves])
        return (derivative, *aux) if has_aux else derivative

    return transformed


def _checked(places: Any) -> tuple[int, ...]:
    if isinstance(places, int):
        places = (places,)
    try:
        order = tuple(map(operator.index, places))
    except TypeError:
        raise JacfnTypeError(f"places must be a sequence of ints such as (0, 1), got {places!r}") from None
    if not 1 <= len(order) <= _HIGHEST:
        raise JacfnValueError(
            f"places must name one to {_HIGHEST} derivatives, got {len(order)}: differentiate a partial derivative of "
            "lower order for more"
        )
    return order


def _second(
    fn: Callable[..., Any],
    places: tuple[int, ...],
    argnums: Argnums,
    has_aux: bool,
    in_dims: Any,
    options: Options,
    strict: bool,
) -> Callable[..., Any]:
    def transformed(*args: Any, **kwargs: Any) -> Any:
        bound = bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims)
        side, total = _polarised(bound, places)
        result = Along("partial", argnums, side, total, options, strict).compute(bound)
        derivative = _tree.unflatten(bound.outputs.spec, result.value[len(result.value) // 2 :])
        return (derivative, bound.outputs.aux(result.aux)) if has_aux else derivative

    return transformed


def _polarised(bound: Bound, places: tuple[int, ...]) -> tuple[Side, Sum]:
    """Directions and weights whose sum is the derivative by the two places."""
    leaves = tuple(bound.leaf_types)
    size = sum(leaf.size for leaf in leaves)
    for place in places:
        if not -size <= place < size:
            raise JacfnValueError(
                f"places must lie in [-{size}, {size}), since the input has {size} element(s), got {place}"
            )
    i, j = (place % size for place in places)
    if i == j:
        return Side(leaves, np.array([i]), ((1,),), None), Sum()
    ones = Side(leaves, np.array([i, j]), ((2,),), None).basis(0, 2)
    stacks = tuple(
        torch.zeros(2, *leaf.shape, dtype=leaf.dtype, device=leaf.device)
        if stack is None
        else torch.stack([stack[0] + stack[1], stack[0] - stack[1]])
        for stack, leaf in zip(ones, leaves, strict=True)
    )
    weights = torch.tensor([0.25, -0.25], dtype=leaves[0].dtype, device=leaves[0].device)
    return Given(leaves, None, ((2,),), None, stacks), Sum(weights=weights)
