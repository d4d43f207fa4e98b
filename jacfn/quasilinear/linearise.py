"""``fn`` at a block of samples, linearised (L2): cotangents of claimed calls, their inputs, and all other uses."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Tracking
from jacfn._products import Linearisation
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.quasilinear.autocast import autocast_to
from jacfn.quasilinear.capture import Capture
from jacfn.quasilinear.derived import leaves_behind, replay
from jacfn.quasilinear.factors import Dense, Form, Leaf, Term, joined
from jacfn.quasilinear.structure import Structure, level_of_samples, mapped_leaves, new_record
from jacfn.quasilinear.witness import scalar_like, witness


class StructureChangedError(Exception):
    """A run of ``fn`` did not do what was learnt about it."""


class Factors:
    """``fn`` at a block, linearised by one vjp around all its samples."""

    def __init__(self, block: Bound, structure: Structure, randomness: str, inner: str, tracking: Tracking) -> None:
        self._block, self._structure = block, structure
        self._lead = () if block.samples is None else (block.samples,)
        self._joined = [i for i, is_joined in enumerate(structure.joined) if is_joined]
        self._seen: set[int] = set()
        self._randomness = randomness
        leaves = block.expanded(block.leaves)
        primals = [*self._taps(), *(leaves[i] for i in self._joined), scalar_like(block.leaves)]
        self.linear = Linearisation(self._call, primals, inner, tracking)
        self.value = self.linear.value
        self.aux: list[Tensor]
        self.aux, captured = self.linear.aux  # type: ignore[assignment]
        places = [
            (i, j)
            for i, claim in enumerate(structure.claims)
            for j, (_, form) in enumerate(claim.forms)
            if form.needs_input
        ]
        self._inputs = dict(zip(places, captured[: len(places)], strict=True))
        constants = list(captured[len(places) :])  # the same for all samples
        self._constants = [x[0] for x in constants] if block.samples else constants
        self._prepared: dict[tuple[int, int], Tensor] = {}

    @property
    def samples(self) -> int | None:
        """In the block, None where there is no sample axis."""
        return self._block.samples

    def _taps(self) -> list[Tensor]:
        return [
            torch.zeros((), dtype=claim.dtype, device=self._block.leaves[0].device).expand((*self._lead, *claim.shape))
            for claim in self._structure.claims
        ]

    def _call(self, *primals: Tensor) -> tuple[list[Tensor], Any]:
        """``fn`` with taps and aliases; its aux are fn's aux and the captured tensors."""
        block, structure = self._block, self._structure
        claims = len(structure.claims)
        taps, taking_part, scalar = primals[:claims], iter(primals[claims:-1]), primals[-1]
        aliases = block.expanded(
            [
                leaf if is_joined else witness(leaf, scalar, self._seen)
                for leaf, is_joined in zip(block.leaves, structure.joined, strict=True)
            ]
        )
        aliases = [
            next(taking_part) if is_joined else alias
            for alias, is_joined in zip(aliases, structure.joined, strict=True)
        ]

        def run(aliases: list[Tensor], data: list[Tensor], mapped: list[Tensor], taps: list[Tensor]) -> Any:
            record = new_record(block, aliases, mapped)
            autocast = autocast_to(structure.autocast, block.leaves)
            with autocast, Capture(record, taps, level=level_of_samples(block)):
                values, aux = block.call(aliases, data)
            if not torch.compiler.is_compiling() and not structure.fits(record):
                raise StructureChangedError
            record.check_kept()
            return values, aux, record.captured

        vmapped = block.vmapped(run, self._randomness, 0, 0, 0, 0)
        values, aux, captured = vmapped(aliases, block.data, mapped_leaves(block), list(taps))
        return values, (aux, captured)

    def rows(self, cotangents: Sequence[Tensor | None], keep: bool) -> list[Leaf]:
        """The rows of every leaf for stacks ``(R, *out)`` of one sample's cotangents; ``keep`` for the next call."""
        size = next(len(stack) for stack in cotangents if stack is not None)
        if self._lead:
            cotangents = [
                None if stack is None else stack.unsqueeze(1).expand(size, *self._lead, *stack.shape[1:])
                for stack in cotangents
            ]
        grads = self.linear.pull(cotangents)[:-1]  # (R, N, ...) each
        if self._seen:
            raise StructureChangedError
        if not self._lead:
            grads = [grad.unsqueeze(1) for grad in grads]
        claims = len(self._structure.claims)
        deltas, others = grads[:claims], grads[claims:]
        leaves = self._block.leaf_types
        terms = [self._terms(leaf, deltas, keep) for leaf in range(len(leaves))]
        for leaf, grad in zip(self._joined, others, strict=True):
            if not _is_zero(grad):
                terms[leaf].append(Term(Dense(), grad, None))
        for leaf, grad in self._behind_derived(deltas, size, keep):
            terms[leaf].append(Term(Dense(), grad.transpose(0, 1), None))
        return [self._leaf(of_leaf, size, kind) for of_leaf, kind in zip(terms, leaves, strict=True)]

    def _leaf(self, terms: list[Term], size: int, kind: LeafType) -> Leaf:
        in_place = not self.linear.tracked and not inside_transform()
        shape = (*(self._lead or (1,)), size, *kind.shape)
        return Leaf(joined(terms), shape, kind.dtype, kind.device, in_place)

    def _terms(self, source: int, deltas: list[Tensor], keep: bool) -> list[Term]:
        """The claimed uses of a source."""
        terms = []
        for i, j in self._structure.forms(source):
            form = self._structure.claims[i].forms[j][1]
            terms.append(Term(form, form.lay(deltas[i]), self._input(i, j, form, keep)))
        return terms

    def _input(self, claim: int, place: int, form: Form, keep: bool) -> Any:
        """What the form makes of its captured input: once, if more rows are to come."""
        key = (claim, place)
        if key not in self._inputs:
            return None
        if key not in self._prepared:
            x = self._inputs[key]
            prepared = form.prepare(x if self._lead else x.unsqueeze(0))
            if not keep:
                return prepared
            self._prepared[key] = prepared
        return self._prepared[key]

    def _behind_derived(self, deltas: list[Tensor], size: int, keep: bool) -> list[tuple[int, Tensor]]:
        """What derived values add to the leaves behind them, ``(N, R, *leaf)`` each."""
        structure, block = self._structure, self._block
        derived = structure.derived
        if not derived or self._lead == (0,):
            return []
        like = block.leaf_types[0]
        dtypes = structure.dtypes
        kinds = {i: like._replace(shape=shape, dtype=dtypes[i]) for i, shape in derived.items()}
        stacks = [self._leaf(self._terms(i, deltas, keep), size, kind).dense() for i, kind in kinds.items()]
        behind = sorted(leaves_behind(structure.derivations, set(derived), len(block.leaves)))

        def pulled(values: list[Tensor], stacks: list[Tensor]) -> list[Tensor]:
            def derive(*values: Tensor) -> list[Tensor]:
                leaves = list(block.leaves)
                for leaf, value in zip(behind, values, strict=True):
                    leaves[leaf] = value
                sources = replay(structure.derivations, leaves, self._constants)
                return [sources[source] for source in derived]

            _, vjp = torch.func.vjp(derive, *values)  # type: ignore[misc]
            return list(torch.func.vmap(vjp)(stacks))

        values = [block.leaves[leaf] for leaf in behind]
        with contextlib.nullcontext() if self.linear.tracked else torch.no_grad():
            if not self._lead:
                terms = [term.unsqueeze(0) for term in pulled(values, [stack[0] for stack in stacks])]
            else:
                dims = [block.leaf_dims[leaf] for leaf in behind]
                terms = torch.func.vmap(pulled, (dims, 0))(values, stacks)
        return list(zip(behind, terms, strict=True))


def _is_zero(grads: Tensor) -> bool:
    """Whether gradients ``(R, ...)`` are the same for all of several rows: being linear in the row, they are zero."""
    return grads.shape[0] > 1 and grads.stride(0) == 0
