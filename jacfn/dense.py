"""Dense Jacobians by reverse and by forward mode (L2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jacfn._binding import Argnums, Bound, bind
from jacfn._evaluate import Evaluation, Method, Options, Tracking, evaluate
from jacfn._memory import Budget
from jacfn._products import start_forward, start_reverse
from jacfn._selection import Selection, Side, frozen, select, selection_key
from jacfn._tree import LeafType


def jac_rev(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    return_value: bool = False,
    in_dims: Any = None,
    rows: Selection = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
) -> Callable[..., Any]:
    """The Jacobian of ``fn`` by reverse mode: one backward pass a row, rows vmapped in chunks.

    A drop-in for :func:`torch.func.jacrev` that also maps over samples, keeps to a memory budget and computes
    chosen rows alone.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out. Keyword arguments
            are not differentiated.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        return_value: return the value beside the Jacobian.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample
            and the result leads with the samples.
        rows: the rows to compute, places in the raveled output (of one sample): an int, a slice, a 1-D LongTensor,
            or a pytree with one of these for each output leaf. Other rows cost nothing.
        chunk_size: how many rows are evaluated at once (default: all).
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond the inputs and the result;
            the chunk size is derived from it.
        randomness: ``"error"``, ``"same"`` or ``"different"`` random numbers for the samples, as in
            :func:`torch.func.vmap`.
        differentiable: False detaches the result from every outer transform and graph.

    Returns:
        A function of the arguments of ``fn``. Its result has the structure of the output outside, that of the
        arguments inside, leaves ``(*out, *in)``, with ``in_dims`` ``(N, *out, *in)``; with ``rows`` the axis ``(R,)``
        stands in the place of the output. ``(jac, value)`` with ``return_value``, ``(jac, aux)`` with ``has_aux``,
        ``(jac, (value, aux))`` with both. Leaves have the dtype of the input.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``); the message names it. Complex
            inputs and outputs are refused.

    Cost: one forward pass, and a backward pass for each row. Memory beyond the result: the graph of one forward pass
    and the gradients of a chunk of rows.

    Example:
        >>> import torch
        >>> from jacfn import jac_rev
        >>> x = torch.tensor([1.0, 2.0])
        >>> jac_rev(lambda x: torch.stack([x.sum(), x.prod()]))(x)
        tensor([[1., 1.],
                [2., 1.]])
        >>> jac_rev(lambda w, x: w * x.sum(), in_dims=(None, 0))(torch.tensor(2.0), torch.ones(3, 2))
        tensor([2., 2., 2.])

    Reverse-mode differentiation with vmapped vjps, after JAX's ``jacrev`` (Bradbury et al. 2018).
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    method = reverse_method(frozen(rows), options)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        return evaluate(method, bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims), options)

    return jacobian


def jac_fwd(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    return_value: bool = False,
    in_dims: Any = None,
    columns: Selection = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
) -> Callable[..., Any]:
    """The Jacobian of ``fn`` by forward mode: one forward pass a column, columns vmapped in chunks.

    A drop-in for :func:`torch.func.jacfwd` that also maps over samples, keeps to a memory budget and computes
    chosen columns alone: the derivative of all residuals with respect to one weight costs one forward pass.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out. Keyword arguments
            are not differentiated.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        return_value: return the value beside the Jacobian.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample
            and the result leads with the samples. A column serves all samples at once.
        columns: the columns to compute, places in the raveled input (of one sample): an int, a slice, a 1-D
            LongTensor, or a pytree with one of these for each input leaf. Other columns cost nothing.
        chunk_size: how many columns are evaluated at once (default: all).
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond the inputs and the result;
            the chunk size is derived from it.
        randomness: ``"error"``, ``"same"`` or ``"different"`` random numbers for the samples, as in
            :func:`torch.func.vmap`; all columns belong to one draw.
        differentiable: False detaches the result from every outer transform and graph.

    Returns:
        A function of the arguments of ``fn``. Its result has the structure of the output outside, that of the
        arguments inside, leaves ``(*out, *in)``, with ``in_dims`` ``(N, *out, *in)``; with ``columns`` the axis
        ``(C,)`` stands in the place of the input. ``(jac, value)`` with ``return_value``, ``(jac, aux)`` with
        ``has_aux``, ``(jac, (value, aux))`` with both. Leaves have the dtype of the output.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``); the message names it. Complex
            inputs and outputs are refused.

    Cost: a forward pass with tangents for each column. Memory beyond the result: the activations of a chunk of
    columns; no graph is kept.

    Example:
        >>> import torch
        >>> from jacfn import jac_fwd
        >>> x = torch.tensor([1.0, 2.0])
        >>> jac_fwd(lambda x: torch.stack([x.sum(), x.prod()]))(x)
        tensor([[1., 1.],
                [2., 1.]])
        >>> jac_fwd(lambda x: x**2, columns=1)(x)
        tensor([[0.],
                [4.]])

    Forward-mode differentiation with vmapped jvps, after JAX's ``jacfwd`` (Bradbury et al. 2018).
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    method = forward_method(frozen(columns), options)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        return evaluate(method, bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims), options)

    return jacobian


def reverse_method(rows: Selection, options: Options) -> Method:
    """How ``jac_rev`` evaluates a block."""

    def side_of(value: Sequence[LeafType], block: Bound) -> Side:
        return select(value, block.outputs.spec, rows, "rows")

    start = partial(start_reverse, side_of=side_of, options=options)
    return Method("jac_rev", 1, start, samples_first=False, key=selection_key(rows))


def forward_method(columns: Selection, options: Options) -> Method:
    """How ``jac_fwd`` evaluates a block."""

    def start(block: Bound, columns_at_once: int | None, tracking: Tracking, probing: bool) -> Evaluation:
        side = select(block.leaf_types, block.spec, columns, "columns")
        return start_forward(block, columns_at_once, probing, side=side, options=options)

    return Method("jac_fwd", -1, start, samples_first=True, key=selection_key(columns))
