"""``hessian_diag`` (L3): the diagonal alone, without the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jacfn._binding import Argnums, bind
from jacfn._evaluate import Options, by_columns
from jacfn._memory import Budget
from jacfn._selection import select
from jacfn.second_order.along import Along
from jacfn.second_order.jet import Sum


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
        fn: as in :func:`jacfn.laplacian`.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`.
        chunk_size: how many elements are differentiated at once (default: all).
        memory: a budget such as ``"512MiB"`` from which the chunks are derived.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.
        strict: as in :func:`jacfn.laplacian`.

    Returns:
        A function of the arguments of ``fn``. For a scalar ``fn`` its result has the structure and shapes of the
        differentiated arguments; else that of the output outside, leaves ``(*out, *in)``. With ``in_dims`` samples
        lead. ``(diagonal, aux)`` with ``has_aux``.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``.

    Cost: two evaluations for each element; only a chunk of them is held.

    Example:
        >>> import torch
        >>> from jacfn import hessian_diag
        >>> hessian_diag(lambda x: (x**3).sum() + x.prod())(torch.tensor([1.0, 2.0]))
        tensor([ 6., 12.])

    By the rules of :func:`jacfn.laplacian`, without the sum.
    """
    options = Options(False, chunk_size, memory, randomness, differentiable)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        bound = bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims)
        side = select(bound.leaf_types, bound.spec, None, "columns")
        result = Along("hessian_diag", argnums, side, Sum(apart=True), options, strict).compute(bound)
        diagonal = by_columns(bound, result)
        return (diagonal, bound.outputs.aux(result.aux)) if has_aux else diagonal

    return transformed
