"""The empirical neural tangent kernel (L3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._memory import Budget
from jacfn.operator.build import Method, jacobian_operator
from jacfn.operator.jacobian import JacobianOperator
from jacfn.operator.pairs import Progress, inner_products

Outputs = Literal["full", "trace", "diagonal"]


def ntk(
    fn: Callable[..., Any],
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "full",
    method: Method = "auto",
    chunk_size: int | None = None,
    memory: Budget = None,
    differentiable: bool = True,
    progress: Progress = None,
) -> Tensor:
    """The empirical neural tangent kernel ``J(x1) J(x2)ᵀ`` of ``fn(params, *sample)`` with respect to ``params``.

    ``J`` is not formed: layers that are linear in their weights contribute by inner products of their inputs and of
    their cotangents, or by slices of dense rows where that takes fewer operations.

    Args:
        fn: ``fn(params, *sample) -> output``, a function of one sample, as :func:`jacfn.make_functional` makes.
        params: a pytree of floating-point tensors.
        x1: the samples: a tensor ``(N1, ...)``, or a tuple of them for a function of several inputs.
        x2: a second set of samples, ``N2`` of them (default: ``x1``; then each pair is computed once).
        outputs: ``"full"`` for all pairs of outputs; ``"trace"`` for the sum over equal outputs; ``"diagonal"`` for
            equal outputs, one by one.
        method: how rows are made, as in :func:`jacfn.jacobian_operator`.
        chunk_size: how many rows are made at once.
        memory: a budget for all that is allocated beyond inputs and result; factors that do not fit are made again
            for each pair of blocks of samples.
        differentiable: False detaches the result.
        progress: called with the number of inner products done and their total after each pair of blocks.

    Returns:
        ``(N1, N2, K, K)`` with ``K`` elements of the output, raveled; ``(N1, N2)`` for the trace, ``(N1, N2, K)`` for
        the diagonal.

    Raises:
        JacfnError: an argument does not fit; the message names it.

    Cost: one pass over each set of samples, then for a linear layer ``N1 N2 (I + K² O)`` operations.

    Example:
        >>> import torch
        >>> from jacfn import make_functional, ntk
        >>> fn, params = make_functional(torch.nn.Linear(3, 2))
        >>> kernel = ntk(fn, params, torch.ones(4, 3))  # x·x' + 1 for equal outputs, 0 for others
        >>> kernel.shape, kernel[0, 1]
        (torch.Size([4, 4, 2, 2]), tensor([[4., 0.],
                [0., 4.]]))

    Jacot, Gabriel and Hongler (2018, arXiv:1806.07572) define the kernel; Novak, Sohl-Dickstein and Schoenholz (2022,
    arXiv:2206.08720) compare ways to compute it, among them the structured one used here.
    """
    if outputs not in ("full", "trace", "diagonal"):
        raise JacfnValueError(f"outputs must be 'full', 'trace' or 'diagonal', got {outputs!r}")

    def operator(x: Any, name: str) -> JacobianOperator:
        inputs = x if isinstance(x, tuple) else (x,)
        if not inputs or not all(isinstance(part, Tensor) and part.ndim for part in inputs):
            raise JacfnTypeError(
                f"{name} must be a tensor whose axis 0 counts samples, or a tuple of them, got {x!r:.80}"
            )
        return jacobian_operator(
            fn,
            params,
            *inputs,
            in_dims=(None, *(0 for _ in inputs)),
            method=method,
            chunk_size=chunk_size,
            memory=memory,
            differentiable=differentiable,
        )

    first = operator(x1, "x1")
    second = None if x2 is None else operator(x2, "x2")
    count, k = first.shape[0], first.rows.width
    if second is not None and second.rows.width != k:
        raise JacfnValueError(f"x2 must give outputs with {k} element(s) as x1 does, got {second.rows.width}")
    if not k:
        return _of_nothing(first, second, outputs)
    kernel = inner_products(first.source, None if second is None else second.source, outputs, k, progress)
    if outputs != "full":
        return kernel
    others = count if second is None else second.shape[0]
    lengths = (count // k, k, others // k, k)
    return kernel.reshape(lengths).transpose(1, 2)


def _of_nothing(first: JacobianOperator, second: JacobianOperator | None, outputs: Outputs) -> Tensor:
    """The kernel of a function without outputs."""
    samples = [operator.rows.samples or 0 for operator in (first, second or first)]
    last = {"full": (0, 0), "trace": (), "diagonal": (0,)}[outputs]
    return torch.zeros(*samples, *last, dtype=first.dtype, device=first.device)
