"""The evaluation that the transforms share (L1): blocks of samples, chunks of rows or columns, one result.

A transform supplies a :class:`Method`: how one block of samples is evaluated, chunk by chunk. Everything else
(options, memory plans, writing into place, trees, value and aux) is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Bound, check_positive, check_randomness
from jacfn._cache import remember
from jacfn._errors import JacfnValueError
from jacfn._memory import Assembly, Budget, Chunks, log, parse_budget, plan, predict
from jacfn._random import Draw
from jacfn._selection import Side
from jacfn._torch import base_tensor, inside_transform
from jacfn._tree import LeafType


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that all transforms have in common, checked."""

    return_value: bool = False
    chunk_size: int | None = None
    memory: Budget = None
    randomness: str = "error"
    differentiable: bool = True

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        check_positive("chunk_size", self.chunk_size)
        check_randomness(self.randomness)
        parse_budget(self.memory)
        if self.chunk_size is not None and self.memory is not None:
            raise JacfnValueError(
                f"chunk_size={self.chunk_size} and memory={self.memory!r} both set the chunks: give one of them"
            )

    @property
    def inner_randomness(self) -> str:
        """For the vmap over rows or columns: all of them belong to one draw of a random function."""
        return "error" if self.randomness == "error" else "same"


Tracking = Literal["on", "auto", "off"]
"""Whether results carry derivatives: on (inside a transform), off, or auto (if fn's value turns out to)."""


def is_tracked(tracking: Tracking, value: Sequence[Tensor]) -> bool:
    """Whether the derivatives of ``value`` have to carry derivatives themselves.

    Tensors that ``fn`` closes over show in the value alone, under the wrappers of the transforms used inside.
    """
    if tracking != "auto":
        return tracking == "on"
    return torch.is_grad_enabled() and any(base_tensor(leaf).requires_grad for leaf in value)


class Deferred(Protocol):
    """A chunk that is computed when its place is known."""

    samples: int  # in this block
    in_place: bool  # False where it carries derivatives

    def write(self, out: Tensor) -> None:
        """Compute into ``out``."""

    def dense(self) -> Tensor:
        """Compute into new memory."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One block of samples under way.

    ``chunks`` yields ``(start, stop, parts)``: for each of the ``others`` (the leaves on the other side) a tensor or
    :class:`Deferred`, ``(samples, stop - start, *other)``.
    """

    side: Side
    others: Sequence[LeafType]  # for one sample
    value: list[Tensor]
    aux: list[Tensor]
    chunks: Iterator[tuple[int, int, Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Method:
    """How a transform evaluates a block, and what its chunks are made of."""

    name: str
    axis: int  # where the chunked side stands in the result: 1 for rows, -1 for columns
    start: Callable[[Bound, int | None, Tracking, bool], Evaluation]  # (block, rows at once or None, ..., probing)
    samples_first: bool  # which of the two a budget lets grow first
    default: Callable[[Bound], Chunks] | None = None
    key: Hashable = None  # of the memory plan, beside the signature of the call; None: not kept


@dataclasses.dataclass
class Result:
    """The leaves of a Jacobian, value and aux, all with samples first where there are any."""

    side: Side
    parts: dict[tuple[int, int], Tensor]  # (leaf of the chunked side, leaf of the other side)
    value: list[Tensor]
    aux: list[Tensor]


def evaluate(method: Method, bound: Bound, options: Options) -> Any:
    """The Jacobian as a pytree, with value and aux beside it where they are asked for."""
    result = compute(method, bound, options)
    jacobian = _by_rows(bound, result) if method.axis == 1 else by_columns(bound, result)
    return with_value(bound, options, result, jacobian)


def compute(method: Method, bound: Bound, options: Options) -> Result:
    """The leaves of the result, in the chunks that the options ask for."""
    if not options.differentiable:
        bound = bound.detach()
    tracking: Tracking = "off" if not options.differentiable else "on" if bound.tracked() else "auto"
    chunks = choose(method, bound, options)
    if not torch.compiler.is_compiling():
        log.debug("%s: chunk %s", method.name, chunks, extra={"jacfn_chunks": chunks})
    result = _run_backing_off(method, bound, options, chunks, tracking)
    if not options.differentiable:
        result.parts = {key: part.detach() for key, part in result.parts.items()}
        result.value = [leaf.detach() for leaf in result.value]
        result.aux = [leaf.detach() for leaf in result.aux]
    return result


def with_value(bound: Bound, options: Options, result: Result, derivative: Any) -> Any:
    """The derivative alone, or with value and aux as ``torch.func.grad_and_value`` arranges them."""
    value = _tree.unflatten(bound.outputs.spec, result.value)
    if not bound.has_aux:
        return (derivative, value) if options.return_value else derivative
    aux = bound.outputs.aux(result.aux)
    return (derivative, (value, aux)) if options.return_value else (derivative, aux)


def choose(method: Method, bound: Bound, options: Options) -> Chunks:
    """The chunks that the options ask for."""
    samples, budget = bound.samples, parse_budget(options.memory)
    if budget is not None:
        if inside_transform():
            raise JacfnValueError(
                "memory: a budget cannot be planned inside a transform or a compiled region, where sizes are unknown; "
                "pass chunk_size"
            )
        key = (
            None
            if method.key is None or bound.signature is None
            else (method.name, method.key, bound.signature, samples, budget)
        )
        return remember(bound.fn, key, lambda: _plan(method, bound, options, budget))
    if options.chunk_size is None:
        return method.default(bound) if method.default else Chunks(samples, _ALL)
    if samples is None:
        return Chunks(None, options.chunk_size)
    if method.axis != 1:  # one column is a column of all samples
        return Chunks(samples, options.chunk_size)
    block = min(samples, options.chunk_size)
    return Chunks(block, max(options.chunk_size // max(block, 1), 1))


_ALL = 1 << 62  # rows at a time: as many as there are


def _plan(method: Method, bound: Bound, options: Options, budget: int) -> Chunks:
    total = 0

    def peak(samples: int, rows: int) -> int:
        def run(fake: Callable[[Tensor], Tensor]) -> list[Tensor]:
            nonlocal total
            block = bound.block(0, samples) if bound.samples is not None else bound
            block = block.replace(
                [fake(leaf.detach()) for leaf in block.leaves], [fake(x) for x in block.data], block.samples
            )
            chunks = Chunks(block.samples, rows)
            result = _run(method, block, options, chunks, "off", probing=True, samples=bound.samples)
            total = result.side.total
            return [*result.parts.values(), *result.value, *result.aux]

        return predict(run)

    if bound.samples == 0:
        return Chunks(0, _ALL, budget, 0)
    peak(1, 1)
    what = "row" if method.axis == 1 else "column"
    return plan(peak, bound.samples, total, budget, samples_first=method.samples_first, what=what)


def _run_backing_off(method: Method, bound: Bound, options: Options, chunks: Chunks, tracking: Tracking) -> Result:
    """Run; where an accelerator runs out of memory and the caller set no chunk, with half of it."""
    while True:
        try:
            return _run(method, bound, options, chunks, tracking)
        except torch.OutOfMemoryError:
            if options.chunk_size is not None or tracking == "on" or ((chunks.samples or 1) == 1 and chunks.rows == 1):
                raise
        # Not before the error is gone: the frames of its traceback hold what had been computed.
        torch.cuda.empty_cache()
        chunks = _halved(chunks)
        log.warning("%s: out of memory, trying again with chunk %s", method.name, chunks)


def _halved(chunks: Chunks) -> Chunks:
    if chunks.samples is not None and chunks.samples > 1:
        return dataclasses.replace(chunks, samples=chunks.samples // 2)
    return dataclasses.replace(chunks, rows=max(min(chunks.rows, 1 << 10) // 2, 1))


def _run(
    method: Method,
    bound: Bound,
    options: Options,
    chunks: Chunks,
    tracking: Tracking,
    *,
    probing: bool = False,
    samples: int | None = None,
) -> Result:
    """Evaluate block by block. Probing: one block and a few chunks of a result for ``samples``, to see the memory."""
    samples = bound.samples if samples is None else samples
    starts = _starts(bound.samples, chunks.samples)
    table: dict[tuple[int, int], Assembly] = {}
    heads: list[Assembly] = []
    side: Side | None = None
    draw = Draw(bound.leaves + bound.data) if options.randomness == "same" and len(starts) > 1 else None
    for start in starts:
        block = bound
        if bound.samples is not None:
            block = bound.block(start, min(chunks.samples or 1, bound.samples - start))
        if draw is not None:
            draw.rewind()
        evaluation = method.start(block, None if chunks.rows == _ALL else chunks.rows, tracking, probing)
        side = evaluation.side
        if not table:
            table = _tables(method.axis, 1 if samples is None else samples, evaluation)
        _collect_heads(heads, evaluation, samples, start)
        for low, high, parts in evaluation.chunks:
            _place(table, method.axis, start, low, high, side, parts)
            del parts  # before the next chunk is made
        aux_count = len(evaluation.aux)
        del block, evaluation  # the graph of this block, before the next one is built
    assert side is not None
    flat = [head.result() for head in heads]
    count = len(flat) - aux_count
    if samples is None:
        flat = [leaf.squeeze(0) for leaf in flat]
    return Result(side, {key: leaf.result() for key, leaf in table.items()}, flat[:count], flat[count:])


def _starts(samples: int | None, block: int | None) -> Sequence[int]:
    if not samples:
        return [0]  # also for no samples at all: shapes have to come from somewhere
    return range(0, samples, block or 1)


def _tables(axis: int, samples: int, evaluation: Evaluation) -> dict[tuple[int, int], Assembly]:
    table = {}
    for leaf, (low, high) in enumerate(evaluation.side.bounds):
        for j, other in enumerate(evaluation.others):
            places = (high - low,)
            shape = (*places, *other.shape) if axis == 1 else (*other.shape, *places)
            table[leaf, j] = Assembly(other._replace(shape=(samples, *shape)), axis)
    return table


def _collect_heads(heads: list[Assembly], evaluation: Evaluation, samples: int | None, start: int) -> None:
    """Value and aux of this block, behind those of the blocks before."""
    for i, leaf in enumerate([*evaluation.value, *evaluation.aux]):
        leaf = leaf.unsqueeze(0) if samples is None else leaf
        if i == len(heads):
            whole = LeafType.of(leaf)._replace(shape=(1 if samples is None else samples, *leaf.shape[1:]))
            heads.append(Assembly(whole, 0))
        heads[i].add(leaf, start, 0)


def _place(
    table: dict[tuple[int, int], Assembly],
    axis: int,
    start: int,
    low: int,
    high: int,
    side: Side,
    parts: Sequence[Tensor | Deferred],
) -> None:
    """Cut a chunk at the borders of the result's leaves and put each piece where it belongs."""
    pieces = side.split(low, high)
    for j, part in enumerate(parts):
        if not isinstance(part, Tensor):
            if len(pieces) == 1 and part.in_place:
                leaf, _, places = pieces[0]
                part.write(table[leaf, j].slot(start, part.samples, places.start, high - low))
                continue
            part = part.dense()
        for leaf, inside, places in pieces:
            piece = part.narrow(1, inside.start, inside.stop - inside.start).movedim(1, axis)
            table[leaf, j].add(piece, start, places.start)


def _by_rows(bound: Bound, result: Result) -> Any:
    lead = () if bound.samples is None else (bound.samples,)

    def inner(leaf: int) -> Any:
        parts = [
            result.parts[leaf, j].reshape((*lead, *result.side.shapes[leaf], *shape))
            for j, (shape, _, _) in enumerate(bound.leaf_types)
        ]
        return _tree.unflatten(bound.spec, parts)

    if result.side.spec is None:
        return inner(0)
    return _tree.unflatten(result.side.spec, [inner(leaf) for leaf in range(len(result.side.shapes))])


def by_columns(bound: Bound, result: Result) -> Any:
    """The Jacobian as a pytree, from parts in which the inputs were chunked."""
    lead = () if bound.samples is None else (bound.samples,)

    def inner(j: int) -> Any:
        out = result.value[j].shape[len(lead) :]
        parts = [result.parts[leaf, j].reshape((*lead, *out, *shape)) for leaf, shape in enumerate(result.side.shapes)]
        return parts[0] if result.side.spec is None else _tree.unflatten(result.side.spec, parts)

    return _tree.unflatten(bound.outputs.spec, [inner(j) for j in range(len(result.value))])
