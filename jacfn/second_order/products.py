"""``hvp`` (L3): the product of a Hessian and a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from jacfn import _tree
from jacfn._binding import Bound, bind
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._evaluate import Options
from jacfn._products import push
from jacfn.second_order.columns import Parts, by_symmetry, forward_over_reverse, linear_gradient
from jacfn.second_order.gradient import Gradient, HandedThrough, by_output


def hvp(
    fn: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: bool = False,
    in_dims: Any = None,
    randomness: str = "error",
    differentiable: bool = True,
    strict: bool = False,
) -> Any:
    """``H v``: the derivative of the gradient of ``fn`` along ``tangents``, forward over reverse.

    Args:
        fn: ``fn(*primals) -> output``, pure; pytrees of floating-point tensors in and out.
        primals: a tuple with the arguments of ``fn``, all differentiated.
        tangents: a tuple of the same structure and shapes.
        has_aux: ``fn`` returns ``(output, aux)``.
        in_dims: which primals carry samples, as in :func:`torch.func.vmap`, and their tangents likewise: ``fn`` is
            then a function of one sample.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.
        strict: as in :func:`jacfn.hessian`.

    Returns:
        For one primal the product with its structure, for several a tuple of them; for a ``fn`` that is not scalar the
        structure of the output outside, leaves ``(*out, *in)``. With ``in_dims`` samples lead. ``(product, aux)`` with
        ``has_aux``.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``), or ``strict``.

    Cost: for scalar ``fn`` about four evaluations; no Hessian is formed.

    Example:
        >>> import torch
        >>> from jacfn import hvp
        >>> x = torch.tensor([1.0, 2.0])
        >>> hvp(lambda x: x[0] ** 2 * x[1], (x,), (torch.tensor([1.0, 0.0]),))
        tensor([4., 2.])

    Pearlmutter (1994, doi:10.1162/neco.1994.6.1.147); as ``jvp(grad(fn), primals, tangents)[1]`` for one primal.
    """
    options = Options(False, None, None, randomness, differentiable)
    for name, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, tuple) or not value:
            raise JacfnTypeError(
                f"{name} must be a non-empty tuple, got {type(value).__name__}: hvp(fn, (x,), (v,)) for one argument"
            )
    argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
    gradient = Gradient(fn, argnums, has_aux, randomness)
    bound = gradient.bind(primals, {}, in_dims)
    vectors = _vectors(bound, primals, tangents, in_dims)
    if not differentiable:
        bound, vectors = bound.detach(), [vector.detach() for vector in vectors]

    def forward() -> tuple[Parts, Parts]:
        call = bound.vmapped(bound.call, randomness)
        stacks = [vector.unsqueeze(0) for vector in vectors]
        parts, _, aux = push(lambda leaves: call(leaves, bound.data), bound.leaves, stacks, options.inner_randomness)
        return [part.squeeze(0) for part in parts], aux

    def reverse() -> tuple[Parts, Parts]:
        def product(leaves: list[Tensor], data: list[Tensor], along: list[Tensor]) -> tuple[Parts, Parts]:
            linear = linear_gradient(bound, leaves, data, options.inner_randomness, "on" if differentiable else "off")
            parts = by_symmetry(linear, [vector.unsqueeze(0) for vector in along], bound.leaf_types)
            return [part.squeeze(0) for part in parts], linear.aux

        dims = bound.leaf_dims
        mapped: tuple[Parts, Parts] = bound.vmapped(product, randomness, dims, 0 if bound.data else None, dims)(
            bound.leaves, bound.data, vectors
        )
        return mapped

    parts, handed = forward_over_reverse("hvp", gradient, bound, strict, forward, reverse)
    if not differentiable:
        parts, handed = [part.detach() for part in parts], [leaf.detach() for leaf in handed]
    beside = HandedThrough.of(bound, handed)
    outputs = [_tree.unflatten(bound.spec, leaves) for _, leaves in by_output(parts, bound.leaf_types)]
    product = _tree.unflatten(beside.spec, outputs)
    return (product, beside.aux) if has_aux else product


def _vectors(bound: Bound, primals: tuple[Any, ...], tangents: tuple[Any, ...], in_dims: Any) -> list[Tensor]:
    """The tangents' leaves, checked against those of the primals; samples lead."""
    spec = _tree.flatten(primals)[1]
    given = _tree.flatten_like(spec, tangents, "tangents")
    names = _tree.leaf_names(spec)
    for vector, primal, name in zip(given, _tree.flatten(primals)[0], names, strict=True):
        if not isinstance(vector, Tensor) or vector.shape != primal.shape:
            got = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise JacfnValueError(f"tangents{name} must have the shape {tuple(primal.shape)} of its primal, got {got}")
        if vector.dtype != primal.dtype:
            raise JacfnTypeError(f"tangents{name} must have the dtype {primal.dtype} of its primal, got {vector.dtype}")
    argnums = tuple(range(len(primals)))
    return bind(bound.fn, argnums, _tree.unflatten(spec, given), {}, in_dims=in_dims).leaves
