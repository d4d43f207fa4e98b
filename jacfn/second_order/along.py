"""Second derivatives along directions (L3): by jets if they can follow ``fn``, else by its gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from jacfn._binding import Argnums, Bound
from jacfn._cache import remember, store
from jacfn._errors import JacfnError
from jacfn._evaluate import Evaluation, Method, Options, Result, Tracking, compute
from jacfn._memory import Chunks, log
from jacfn._random import Draw
from jacfn._selection import Side
from jacfn._tree import LeafType
from jacfn.second_order.by_gradient import ByGradient
from jacfn.second_order.by_jets import ByJets
from jacfn.second_order.columns import forward_over_reverse
from jacfn.second_order.gradient import Gradient
from jacfn.second_order.jet import Sum, UnseenError
from jacfn.second_order.passes import Block, Pass, Stacks, stacks_of

_ROOM = 6 << 20  # bytes of a stack of derivatives, as long as that takes fewer samples at a time alone
_MOST = 32 << 20  # bytes of one: beyond, memory is given back to the system at each step, and fetched anew
_CALLS = 20  # of torch: more of them cost more time for each block, which then has to have more samples
_FEW = 1 << 10  # directions of samples, not worth to be looked at beforehand


@dataclasses.dataclass(frozen=True)
class Along:
    """Second derivatives of ``fn`` along the directions of a side, summed or apart."""

    name: str
    argnums: Argnums
    side: Side
    sum: Sum
    options: Options
    strict: bool

    def compute(self, bound: Bound) -> Result:
        """The way is remembered of ``fn``; that it is not by jets is said once, and refused by ``strict``."""
        if torch.compiler.is_compiling():  # nobody can trace a trace
            if self.strict:
                raise JacfnError("strict: rules cannot be followed in a compiled region: compile without strict")
            return self._by_gradient(bound)
        known = _uncovered(bound)
        if known is None:
            try:
                return self._by_jets(bound)
            except UnseenError as error:
                reason = str(error)
        if self.strict:
            raise JacfnError(f"strict: fn is not covered by rules: {known or reason}")
        result = self._by_gradient(bound)
        if known is None:
            log.warning("%s by the gradient of fn, which rules do not cover: %s", self.name, reason)
            store(bound.fn, _place(bound), reason)
        return result

    def _by_jets(self, bound: Bound) -> Result:
        by_jets = ByJets(self.sum, self.options.randomness, self.options.return_value)
        return self._evaluated(by_jets, bound, partial(self._blocks, by_jets))

    def _by_gradient(self, bound: Bound) -> Result:
        gradient = Gradient(bound.fn, self.argnums, bound.has_aux, self.options.randomness)

        def by(reverse: bool) -> Result:
            return self._evaluated(ByGradient(gradient, reverse, self.sum, self.options), bound)

        return forward_over_reverse(
            self.name, gradient, bound, self.strict, lambda: by(reverse=False), lambda: by(reverse=True)
        )

    def _evaluated(self, of: Block, bound: Bound, default: Callable[[Bound], Chunks] | None = None) -> Result:
        start = _Start(of, self.side, self.sum.apart, self.options.return_value, self.options.randomness)
        key = (type(of), self.side.total, self.options.return_value)
        method = Method(self.name, -1, start, samples_first=False, default=default, key=key)
        return compute(method, bound, self.options)

    def _blocks(self, by_jets: ByJets, bound: Bound) -> Chunks:
        """So many samples that no stack of derivatives leaves the caches; each with all directions, where they fit."""
        total, samples = max(self.side.total, 1), bound.samples or 1
        if samples * total <= _FEW:
            return Chunks(bound.samples, total)
        signature = None if bound.signature is None else ("look", bound.signature)
        widest, calls = remember(bound.fn, signature, lambda: by_jets.look(bound, self.side))
        room = min(_ROOM * max(calls // _CALLS, 1), _MOST)
        together = max(room // (widest * total), 1)
        blocks = math.ceil(samples / together)
        return Chunks(bound.samples and math.ceil(samples / blocks), max(min(_MOST // widest, total), 1))


@dataclasses.dataclass(frozen=True)
class _Start:
    """A block's evaluation, for :func:`jacfn._evaluate.compute`.

    Apart, the chunks of the result are those of the second derivatives. Summed, the sums stand behind the value, and
    the chunks are those of the first derivatives, if anybody wants them.
    """

    of: Block
    side: Side
    apart: bool
    return_value: bool
    randomness: str

    def __call__(self, block: Bound, at_once: int | None, tracking: Tracking, probing: bool) -> Evaluation:
        """Along all directions, ``at_once`` of them at a time."""
        ranges = self.side.probes(at_once) if probing else self.side.chunks(at_once)
        if not ranges:
            return self._without_directions(block)
        stacks = stacks_of(self.side, block)
        draw = Draw(block.tensors) if len(ranges) > 1 else None

        def passes() -> Passes:
            for low, high in ranges:
                if draw is not None:
                    draw.rewind()  # all chunks belong to one draw of a random function
                yield low, high, self.of(block, *stacks(low, high), low, high, tracking)

        return (self._apart if self.apart else self._summed)(block, passes())

    def _without_directions(self, block: Bound) -> Evaluation:
        value, aux = block.vmapped(block.call, self.randomness)(block.leaves, block.data)
        sums = [] if self.apart else [torch.zeros_like(leaf) for leaf in value]
        return Evaluation(self.side, _kinds(block, value), [*value, *sums], aux, iter(()))

    def _apart(self, block: Bound, passes: Passes) -> Evaluation:
        low, high, (value, _, second, aux) = next(passes)
        waiting = [second]
        del second  # the generator hands it on and keeps nothing

        def chunks() -> Parts:
            yield low, high, _stacks(block, waiting.pop())
            for start, stop, done in passes:
                yield start, stop, _stacks(block, done.second)

        return Evaluation(self.side, _kinds(block, value), value, aux, chunks())

    def _summed(self, block: Bound, passes: Passes) -> Evaluation:
        low, high, (value, first, total, aux) = next(passes)
        chunks = [(low, high, _stacks(block, first))] if self.return_value else []
        for low, high, done in passes:
            total = [a + b for a, b in zip(total, done.second, strict=True)]
            if self.return_value:
                chunks.append((low, high, _stacks(block, done.first)))
        kinds = _kinds(block, value) if self.return_value else []
        return Evaluation(self.side, kinds, [*value, *total], aux, iter(chunks))


Passes = Iterator[tuple[int, int, Pass]]
Parts = Iterator[tuple[int, int, list[Tensor]]]


def _stacks(block: Bound, parts: Sequence[Tensor]) -> list[Tensor]:
    """``(N, C, *out)``."""
    return [part.unsqueeze(0) for part in parts] if block.samples is None else list(parts)


def _kinds(block: Bound, value: Sequence[Tensor]) -> list[LeafType]:
    lead = block.samples is not None
    return [LeafType(tuple(leaf.shape[lead:]), leaf.dtype, leaf.device) for leaf in value]


def curvature(bound: Bound, tangents: Stacks, dim: int | None) -> list[Tensor] | None:
    """The second derivative along one direction, ``(1, *leaf)`` for each leaf; ``dim`` 0: of each sample, which lead.

    None where rules do not cover ``fn``, which is remembered of it. The result is detached.
    """
    if _uncovered(bound) is not None:
        return None
    try:
        return ByJets(Sum(), "error")(bound, tangents, dim, 0, 1, "off").second
    except UnseenError as error:
        store(bound.fn, _place(bound), str(error))
        return None


def _uncovered(bound: Bound) -> str | None:
    """What is known of ``fn``: why rules do not cover it."""
    return remember(bound.fn, _place(bound), lambda: None)


def _place(bound: Bound) -> Hashable | None:
    return None if bound.signature is None else ("jets", bound.signature)
