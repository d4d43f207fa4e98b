"""Products with a stack of vectors (L1): the engine under every transform.

:class:`Linearisation` pulls chunks of a stack of cotangents back, :func:`push` pushes chunks of a stack of tangents
forward; :func:`pullback` and :func:`pushforward` are the public functions that cut a whole stack into chunks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Bound, bind
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._evaluate import Evaluation, Method, Options, Tracking, compute, is_tracked, with_value
from jacfn._memory import Budget, repeats
from jacfn._random import Draw, refuse_unannounced
from jacfn._selection import Given, Side
from jacfn._tree import LeafType

Stack = Sequence[Tensor | None]  # one stack (S, *leaf) a leaf; None stands for zeros
Flat = tuple[list[Tensor], list[Tensor]]  # outputs and aux


class Linearisation:
    """``call(*leaves)`` at a point by reverse mode: its value, its aux, and its vjp for stacks of cotangents."""

    def __init__(
        self, call: Callable[..., Flat], leaves: Sequence[Tensor], randomness: str, tracking: Tracking
    ) -> None:
        self.value: list[Tensor]
        self.aux: list[Tensor]
        self.value, self._vjp, self.aux = torch.func.vjp(call, *leaves, has_aux=True)  # type: ignore[misc]
        self._randomness = randomness
        self.tracked = is_tracked(tracking, self.value)

    def pull(self, cotangents: Stack) -> list[Tensor]:
        """``(S, *leaf)`` for each leaf, from stacks ``(S, *output)``."""
        size = next(len(stack) for stack in cotangents if stack is not None)
        with contextlib.nullcontext() if self.tracked else torch.no_grad():
            if size == 1:  # no vmap: works also where an operation has no batching rule
                one = [None if stack is None else stack[0] for stack in cotangents]
                return [grad.unsqueeze(0) for grad in self._vjp(self._filled(one))]
            in_dims = ([None if stack is None else 0 for stack in cotangents],)
            pull = torch.func.vmap(self._vjp, in_dims=in_dims, randomness=self._randomness)
            return list(pull(self._filled(cotangents)))

    def _filled(self, cotangents: Stack) -> list[Tensor]:
        return [
            torch.zeros_like(value) if cotangent is None else cotangent
            for value, cotangent in zip(self.value, cotangents, strict=True)
        ]


def push(
    call: Callable[[Sequence[Tensor]], Flat], leaves: Sequence[Tensor], tangents: Stack, randomness: str
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """``(S, *output)`` for each output, from stacks ``(S, *leaf)``; then value and aux.

    Leaves without a tangent stay constants: what depends on them alone is computed without one.
    """
    active = [i for i, stack in enumerate(tangents) if stack is not None]
    # A dual tensor writes its tangent beside its primal, which memory that repeats does not allow.
    primals = tuple(leaves[i].contiguous() if repeats(leaves[i]) else leaves[i] for i in active)

    def restricted(*values: Tensor) -> Flat:
        full = list(leaves)
        for i, value in zip(active, values, strict=True):
            full[i] = value
        return call(full)

    def along(*directions: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        value, out, aux = torch.func.jvp(restricted, primals, directions, has_aux=True)  # type: ignore[misc]
        return out, value, aux

    stacks = [stack for stack in tangents if stack is not None]
    if len(stacks[0]) == 1:
        out, value, aux = along(*(stack[0] for stack in stacks))
        return [leaf.unsqueeze(0) for leaf in out], value, aux
    # Value and aux are the same for all directions, yet PyTorch may have batched them (so out_dims=None would fail).
    out, value, aux = torch.func.vmap(along, randomness=randomness)(*stacks)
    return out, [leaf[0] for leaf in value], [leaf[0] for leaf in aux]


def start_reverse(
    block: Bound,
    rows_at_once: int | None,
    tracking: Tracking,
    probing: bool,
    *,
    side_of: Callable[[Sequence[LeafType], Bound], Side],
    options: Options,
) -> Evaluation:
    """A block by reverse mode: one vjp a sample, then its rows chunk by chunk."""

    def linearise(leaves: Sequence[Tensor], data: Sequence[Tensor]) -> tuple[Linearisation, Side]:
        def call(*primals: Tensor) -> Flat:
            return block.call(primals, data)

        linear = Linearisation(call, leaves, options.inner_randomness, tracking)
        return linear, side_of([LeafType.of(leaf) for leaf in linear.value], block)

    others = block.leaf_types
    if block.samples is None or block.samples == 1:
        one = block.only_sample()
        # One sample is not mapped, so vmap does not see to the randomness.
        randomness = "same" if block.samples is None else options.randomness
        with refuse_unannounced(randomness, one.leaves), _recording(options):
            linear, side = linearise(one.leaves, one.data)
        chunks = (
            (low, high, [grad.unsqueeze(0) for grad in linear.pull(side.basis(low, high))])
            for low, high in (side.probes(rows_at_once) if probing else side.chunks(rows_at_once))
        )
        lead = 0 if block.samples == 1 else None
        return Evaluation(side, others, _lead(linear.value, lead), _lead(linear.aux, lead), chunks)

    sides: list[Side] = []

    def all_rows(leaves: Sequence[Tensor], data: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        linear, side = linearise(leaves, data)
        sides.append(side)
        parts = [linear.pull(side.basis(low, high)) for low, high in side.chunks(rows_at_once)]
        empty = [leaf.new_zeros(0, *leaf.shape) for leaf in leaves]
        rows = [torch.cat(chunks) if len(chunks) > 1 else chunks[0] for chunks in zip(*parts, strict=True)]
        return rows or empty, linear.value, linear.aux

    with _recording(options):
        rows, value, aux = block.vmapped(all_rows, options.randomness)(block.leaves, block.data)
    side = sides[0]
    return Evaluation(side, others, value, aux, iter([(0, side.total, rows)] if side.total else []))


def start_forward(
    block: Bound, columns_at_once: int | None, probing: bool, *, side: Side, options: Options
) -> Evaluation:
    """A block by forward mode: every chunk of columns is one evaluation of all its samples.

    The columns are mapped outside the samples: a tangent of a shared leaf then meets all samples in one product, and
    no operation makes a copy of it for each sample.
    """
    everything = block.leaves + block.data
    draw = Draw(everything) if options.randomness != "error" else None
    call = block.vmapped(block.call, options.randomness)

    def chunk_of(low: int, high: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if draw is not None:
            draw.rewind()  # all chunks belong to one draw of a random function
        tangents = _for_all_samples(block, side.basis(low, high))
        with refuse_unannounced(options.randomness, everything), _recording(options):
            out, value, aux = push(lambda f: call(f, block.data), block.leaves, tangents, options.inner_randomness)
        return [leaf.unsqueeze(0) if block.samples is None else leaf.transpose(0, 1) for leaf in out], value, aux

    ranges = side.probes(columns_at_once) if probing else side.chunks(columns_at_once)
    if not ranges:
        with _recording(options):
            value, aux = call(block.leaves, block.data)
        return Evaluation(side, _types(block, value), value, aux, iter(()))
    first, value, aux = chunk_of(*ranges[0])
    waiting = [first]
    del first  # the generator hands it on and keeps nothing

    def chunks() -> Iterator[tuple[int, int, list[Tensor]]]:
        yield (*ranges[0], waiting.pop())
        for low, high in ranges[1:]:
            yield low, high, chunk_of(low, high)[0]

    return Evaluation(side, _types(block, value), value, aux, chunks())


def _recording(options: Options) -> contextlib.AbstractContextManager[None]:
    """No graph of what ``fn`` closes over where the result is detached; torch.func records what it needs itself."""
    return contextlib.nullcontext() if options.differentiable else torch.no_grad()


def _for_all_samples(block: Bound, stacks: Stack) -> Stack:
    """The same tangent for every sample of a leaf that carries samples: ``(S, N, *leaf)``, in stride zero."""
    if block.samples is None:
        return stacks
    return [
        stack.unsqueeze(1).expand(-1, block.samples, *stack.shape[1:]) if mapped and stack is not None else stack
        for stack, mapped in zip(stacks, block.leaves_mapped, strict=True)
    ]


def _types(block: Bound, value: Sequence[Tensor]) -> list[LeafType]:
    lead = 0 if block.samples is None else 1
    return [LeafType(tuple(leaf.shape[lead:]), leaf.dtype, leaf.device) for leaf in value]


def _lead(tensors: Sequence[Tensor], axis: int | None) -> list[Tensor]:
    return list(tensors) if axis is None else [tensor.unsqueeze(axis) for tensor in tensors]


def pullback(
    fn: Callable[..., Any],
    primals: tuple[Any, ...],
    cotangents: Any,
    *,
    has_aux: bool = False,
    return_value: bool = False,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
) -> Any:
    """``Uᵀ J``: a stack of cotangents pulled back through ``fn``, chunk by chunk.

    Args:
        fn: ``fn(*primals) -> output``, pytrees of floating-point tensors in and out.
        primals: a tuple with the arguments of ``fn``, all differentiated.
        cotangents: the structure of the output, every leaf ``(S, *out)``.
        has_aux: ``fn`` returns ``(output, aux)``.
        return_value: return the value of ``fn`` beside the product.
        chunk_size: how many of the ``S`` cotangents are pulled back at once (default: all).
        memory: a budget such as ``"256MiB"`` from which the chunk size is derived.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.

    Returns:
        A tuple with the structure of ``primals``, every leaf ``(S, *in)``; ``(product, value)`` with ``return_value``,
        ``(product, aux)`` with ``has_aux``, ``(product, (value, aux))`` with both. One evaluation of ``fn`` and ``S``
        reverse passes. Where ``fn`` hands an argument through, the product may be ``cotangents`` itself, as that of
        :func:`torch.func.vjp` is.

    Raises:
        JacfnError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from jacfn import pullback
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> (grad,) = pullback(lambda x: x**2, (x,), torch.eye(3))
        >>> grad.diagonal()
        tensor([2., 4., 6.])

    Reverse-mode differentiation as :func:`torch.func.vjp`, vmapped over the stack.
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    bound = _bind_all(fn, primals, has_aux, "pullback")

    def side_of(value: Sequence[LeafType], block: Bound) -> Side:
        stacks = _tree.flatten_like(block.outputs.spec, cotangents, "cotangents")
        return given(stacks, value, _tree.leaf_names(block.outputs.spec), "cotangents")

    start = partial(start_reverse, side_of=side_of, options=options)
    result = compute(Method("pullback", 1, start, samples_first=False), bound, options)
    product = _tree.unflatten(bound.spec, [result.parts[0, j].squeeze(0) for j in range(len(bound.leaves))])
    return with_value(bound, options, result, product)


def pushforward(
    fn: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: bool = False,
    return_value: bool = False,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
) -> Any:
    """``J V``: a stack of tangents pushed forward through ``fn``, chunk by chunk.

    Args:
        fn: ``fn(*primals) -> output``, pytrees of floating-point tensors in and out.
        primals: a tuple with the arguments of ``fn``, all differentiated.
        tangents: the structure of ``primals``, every leaf ``(S, *in)``.
        has_aux: ``fn`` returns ``(output, aux)``.
        return_value: return the value of ``fn`` beside the product.
        chunk_size: how many of the ``S`` tangents are pushed at once (default: all).
        memory: a budget such as ``"256MiB"`` from which the chunk size is derived.
        randomness: as in :func:`torch.func.vmap`.
        differentiable: False detaches the result.

    Returns:
        The structure of the output, every leaf ``(S, *out)``; ``(product, value)`` with ``return_value``,
        ``(product, aux)`` with ``has_aux``, ``(product, (value, aux))`` with both. Each tangent costs about as much as
        an evaluation of ``fn``; nothing is kept for a backward pass.

    Raises:
        JacfnError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from jacfn import pushforward
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> pushforward(lambda x: x**2, (x,), (torch.ones(1, 3),))
        tensor([[2., 4., 6.]])

    Forward-mode differentiation as :func:`torch.func.jvp`, vmapped over the stack.
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    bound = _bind_all(fn, primals, has_aux, "pushforward")
    stacks = _tree.flatten_like(bound.spec, tangents, "tangents")
    side = given(stacks, bound.leaf_types, _tree.leaf_names(bound.spec), "tangents")

    def start(block: Bound, at_once: int | None, tracking: Tracking, probing: bool) -> Evaluation:
        return start_forward(block, at_once, probing, side=side, options=options)

    result = compute(Method("pushforward", 1, start, samples_first=True), bound, options)
    product = [result.parts[0, j].squeeze(0) for j in range(len(result.value))]
    return with_value(bound, options, result, _tree.unflatten(bound.outputs.spec, product))


def _bind_all(fn: Callable[..., Any], primals: Any, has_aux: bool, name: str) -> Bound:
    if not isinstance(primals, tuple) or not primals:
        raise JacfnTypeError(
            f"primals must be a non-empty tuple with the arguments of fn, got {type(primals).__name__}: "
            f"{name}(fn, (x,), ...) for a single argument"
        )
    return bind(fn, tuple(range(len(primals))), primals, {}, has_aux=has_aux)


def given(stacks: Sequence[Any], like: Sequence[LeafType], names: Sequence[str], what: str) -> Given:
    """The stacks as a side, when every one is ``(S, *leaf)`` with the same S."""
    for stack, leaf, name in zip(stacks, like, names, strict=True):
        if not isinstance(stack, Tensor) or stack.ndim == 0 or stack.shape[1:] != leaf.shape:
            got = tuple(stack.shape) if isinstance(stack, Tensor) else type(stack).__name__
            wanted = ", ".join(["S", *map(str, leaf.shape)])
            raise JacfnValueError(f"{what}{name} must be a stack of shape ({wanted}), got {got}")
        if stack.dtype != leaf.dtype:
            raise JacfnTypeError(f"{what}{name} must have dtype {leaf.dtype}, got {stack.dtype}")
    sizes = {len(stack) for stack in stacks}
    if len(sizes) != 1:
        raise JacfnValueError(f"{what}: all stacks must have the same length, got {sorted(sizes)}")
    return Given(tuple(like), None, ((sizes.pop(),),), None, tuple(stacks))
