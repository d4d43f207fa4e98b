"""Columns of a Hessian (L3): derivatives of a gradient, forward over reverse, or reverse over reverse by symmetry.

Some operations have derivatives for reverse mode alone (``grid_sample``, a custom Function without ``jvp``). The
Hessian is symmetric, so its rows, which reverse mode makes, are its columns, too.

A chunk of columns has a part ``(N, C, *out, *in)`` for each leaf of the gradient: for each output and each
differentiated leaf, outputs outermost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._cache import remember, store
from jacfn._errors import JacfnError
from jacfn._evaluate import Evaluation, Method, Options, Result, Tracking, compute
from jacfn._memory import log
from jacfn._products import Linearisation, Stack, start_forward
from jacfn._selection import Side
from jacfn._tree import LeafType
from jacfn.second_order.gradient import Gradient, by_output

T = TypeVar("T")
Parts = list[Tensor]


class Reduce(Protocol):
    """What is wanted of a chunk of columns."""

    def kinds(self, gradient: Sequence[LeafType]) -> list[LeafType]:
        """Of its parts, for one sample and one column, from those of the gradient's leaves."""

    def __call__(self, low: int, high: int, parts: Parts) -> Parts:
        """From the columns ``low`` to ``high``."""


def columns_of(
    name: str,
    gradient: Gradient,
    bound: Bound,
    side: Side,
    options: Options,
    strict: bool,
    key: Hashable,
    reduce: Reduce | None = None,
) -> Result:
    """Columns of the Hessian, forward over reverse wherever that is possible.

    Where it is not, ``strict`` refuses, and the log says so once.
    """

    def run(start: Callable[..., Evaluation]) -> Result:
        def reduced(block: Bound, at_once: int | None, tracking: Tracking, probing: bool) -> Evaluation:
            evaluation = start(block, at_once, tracking, probing, side, options)
            return evaluation if reduce is None else _reduced(evaluation, reduce)

        return compute(Method(name, -1, reduced, samples_first=True, key=key), bound, options)

    ways = (lambda: run(_by_forward_mode), lambda: run(_by_reverse_mode))
    return forward_over_reverse(name, gradient, bound, strict, *ways)


def forward_over_reverse(
    name: str, gradient: Gradient, bound: Bound, strict: bool, forward: Callable[[], T], reverse: Callable[[], T]
) -> T:
    """``forward()``, or ``reverse()`` where an operation has no forward derivative, which is then known of ``fn``."""
    place = None if bound.signature is None else ("second order", bound.signature)
    if remember(gradient.fn, place, lambda: "forward") == "forward":
        try:
            return forward()
        except NotImplementedError as error:
            reason = _without_forward(error)
            if reason is None:
                raise
            if strict:
                raise JacfnError(f"strict: there is no forward over reverse: {reason}") from error
            log.warning("%s by reverse over reverse, which keeps more in memory: %s", name, reason)
            store(gradient.fn, place, "reverse")
    elif strict:
        raise JacfnError("strict: there is no forward over reverse: see the log of an earlier call without strict")
    return reverse()


def _reduced(evaluation: Evaluation, reduce: Reduce) -> Evaluation:
    chunks = ((low, high, reduce(low, high, list(parts))) for low, high, parts in evaluation.chunks)
    return dataclasses.replace(evaluation, others=reduce.kinds(evaluation.others), chunks=chunks)


def _without_forward(error: Exception) -> str | None:
    """What PyTorch says of an operation without a forward derivative; None if the error is about something else."""
    text = str(error)
    return text.splitlines()[0] if "forward AD" in text or "forward mode AD" in text else None


def _by_forward_mode(
    block: Bound, at_once: int | None, tracking: Tracking, probing: bool, side: Side, options: Options
) -> Evaluation:
    return start_forward(block, at_once, probing, side=side, options=options)


def _by_reverse_mode(
    block: Bound, at_once: int | None, tracking: Tracking, probing: bool, side: Side, options: Options
) -> Evaluation:
    """A vjp of the gradient for each column and each output."""
    ranges = side.probes(at_once) if probing else side.chunks(at_once)

    def linearised(leaves: Sequence[Tensor], data: Sequence[Tensor]) -> Linearisation:
        return linear_gradient(block, leaves, data, options.inner_randomness, tracking)

    if block.samples is None:
        linear = linearised(block.leaves, block.data)
        kinds = [LeafType.of(leaf) for leaf in linear.value]
        lazy = (
            (low, high, [part.unsqueeze(0) for part in by_symmetry(linear, side.basis(low, high), side.leaves)])
            for low, high in ranges
        )
        return Evaluation(side, kinds, linear.value, linear.aux, lazy)

    def all_columns(leaves: Sequence[Tensor], data: Sequence[Tensor]) -> tuple[list[Parts], Parts, Parts]:
        linear = linearised(leaves, data)
        parts = [by_symmetry(linear, side.basis(low, high), side.leaves) for low, high in ranges]
        return parts, linear.value, linear.aux

    parts, value, aux = block.vmapped(all_columns, options.randomness)(block.leaves, block.data)
    kinds = [LeafType(tuple(leaf.shape[1:]), leaf.dtype, leaf.device) for leaf in value]
    chunks = ((low, high, part) for (low, high), part in zip(ranges, parts, strict=True))
    return Evaluation(side, kinds, value, aux, chunks)


def linear_gradient(
    bound: Bound, leaves: Sequence[Tensor], data: Sequence[Tensor], randomness: str, tracking: Tracking
) -> Linearisation:
    """The bound gradient of one sample by reverse mode."""

    def call(*primals: Tensor) -> tuple[Parts, Parts]:
        return bound.call(primals, data)

    return Linearisation(call, leaves, randomness, tracking)


def by_symmetry(gradient: Linearisation, vectors: Stack, inputs: Sequence[LeafType]) -> Parts:
    """``(C, *out, *in)`` for each leaf of the gradient: the Hessian times ``C`` vectors."""
    count = next(len(stack) for stack in vectors if stack is not None)
    result: Parts = []
    for number, (out, _) in enumerate(by_output(gradient.value, inputs)):
        cotangents: list[Tensor | None] = [None] * len(gradient.value)
        for i, stack in enumerate(vectors):
            if stack is not None:
                cotangents[number * len(inputs) + i] = _for_each_output(stack, out)
        rows = gradient.pull(cotangents)
        result += [row.reshape(count, *out, *row.shape[1:]) for row in rows]
    return result


def _for_each_output(stack: Tensor, out: tuple[int, ...]) -> Tensor:
    """``(C * out, *out, *in)``: each of ``C`` vectors at each output alone."""
    count, size = len(stack), math.prod(out)
    eye = torch.eye(size, dtype=stack.dtype, device=stack.device)
    both = eye.unsqueeze(-1) * stack.reshape(count, 1, 1, -1)  # (C, out, out, in)
    return both.reshape(count * size, *out, *stack.shape[1:])
