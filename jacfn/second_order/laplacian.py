"""``laplacian`` (L3): the trace of the Hessian, forward, without the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jacfn import _tree
from jacfn._binding import Argnums, bind
from jacfn._evaluate import Options, by_columns
from jacfn._memory import Budget
from jacfn.second_order.along import Along
from jacfn.second_order.directions import directions_of, weights_of
from jacfn.second_order.jet import Sum


def laplacian(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    in_dims: Any = None,
    directions: Any = None,
    weights: Any = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    return_value: bool = False,
    differentiable: bool = True,
    strict: bool = False,
) -> Callable[..., Any]:
    """The Laplacian of ``fn``: the sum of its second derivatives with respect to each coordinate, in one pass forward.

    The value, the first derivatives along all directions and the sum of the second ones travel through ``fn``
    together, by a rule for each elementary operation. No Hessian, no gradient and no graph is made.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out, outputs of any
            shape. It may close over parameters, and branch on values where no transform is active.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample
            and the result leads with the samples.
        directions: along what to differentiate twice (default: all coordinates). Coordinates as an int, a slice, a
            1-D LongTensor into the raveled input (of one sample) or a pytree with one of these for each input leaf;
            vectors as a pytree like the input, leaves ``(K, *in)``; random ones as :class:`jacfn.Probes`.
        weights: of the sum over the directions, a number or a tensor ``(K,)`` (default 1; for ``Probes`` one over
            their count, which estimates the Laplacian).
        chunk_size: how many directions are carried at once (default: all).
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond the inputs and the result;
            samples and directions are carried in chunks that keep to it.
        randomness: as in :func:`torch.func.vmap`.
        return_value: return the value and the first derivatives of the same pass, too.
        differentiable: False detaches the result from every outer transform and graph.
        strict: raise where an operation has no rule. Otherwise such an operation is differentiated by PyTorch, and a
            ``fn`` that rules cannot follow (it uses transforms of its own, or changes views in place) by its gradient:
            as exact, slower, and said once by the logger ``jacfn``.

    Returns:
        A function of the arguments of ``fn``; its result has the structure and the shapes of the output of ``fn``,
        with ``in_dims`` led by the samples. ``(laplacian, (value, jacobian))`` with ``return_value``, where the
        Jacobian is laid out as that of :func:`jacfn.jac_fwd`, ``columns`` being the ``directions``. ``(laplacian,
        aux)`` with ``has_aux``, ``(laplacian, (value, jacobian, aux))`` with both.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``; the message
            names it.

    Cost: about ``K + 2`` evaluations of ``fn`` for ``K`` directions. Memory beyond the result: ``K + 2`` times the
    activations that are alive at once; with derivatives of its own, all activations.

    Example:
        >>> import torch
        >>> from jacfn import laplacian
        >>> laplacian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor(18.)
        >>> heat = laplacian(lambda x: torch.sin(x).prod(), in_dims=0, directions=slice(0, 2))
        >>> heat(torch.full((4, 3), torch.pi / 2))
        tensor([-2., -2., -2., -2.])

    The forward Laplacian of Li et al. (2024, doi:10.1038/s42256-024-00794-x), also known as collapsed Taylor mode
    (Dangel et al. 2025, arXiv:2505.13644).
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        bound = bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims)
        side = directions_of(bound, directions)
        total = Sum(weights=weights_of(weights, side, bound.leaf_types))
        result = Along("laplacian", argnums, side, total, options, strict).compute(bound)
        count = len(result.value) // 2
        value, sums = result.value[:count], result.value[count:]
        spec = bound.outputs.spec
        laplacian = _tree.unflatten(spec, sums)
        beside: tuple[Any, ...] = ()
        if return_value:
            result.value = value
            beside = (_tree.unflatten(spec, value), by_columns(bound, result))
        if has_aux:
            beside = (*beside, bound.outputs.aux(result.aux))
        return (laplacian, beside if len(beside) > 1 else beside[0]) if beside else laplacian

    return transformed
