"""What is learnt about a function once (L2): its claimed calls, and which leaves have other uses as well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._errors import JacfnError
from jacfn._random import Draw
from jacfn._torch import innermost_level, inside_transform
from jacfn.quasilinear.autocast import autocast_of
from jacfn.quasilinear.capture import Capture
from jacfn.quasilinear.derived import leaves_behind
from jacfn.quasilinear.records import Claim, Derivation, Record
from jacfn.quasilinear.witness import scalar_like, witness


@dataclasses.dataclass(frozen=True)
class Structure:
    """The claimed calls in order; ``joined`` leaves have other uses, so they take part in the plain vjp, too."""

    claims: tuple[Claim, ...]
    derivations: tuple[Derivation, ...]
    joined: tuple[bool, ...]
    reasons: tuple[str, ...]  # why a leaf is joined, empty for one that is not
    rows: int  # of one sample
    random: bool  # fn draws random numbers
    rounded: frozenset[torch.dtype] = frozenset()  # the dtypes of what fn computes
    autocast: torch.dtype | None = None  # the caller's

    def forms(self, leaf: int) -> list[tuple[int, int]]:
        """The uses of a leaf: (claim, place among the forms of the claim)."""
        return [
            (i, j) for i, claim in enumerate(self.claims) for j, (owner, _) in enumerate(claim.forms) if owner == leaf
        ]

    def fits(self, record: Record) -> bool:
        """Whether a run did what was learnt."""
        return tuple(record.claims) == self.claims and tuple(record.derivations) == self.derivations

    @property
    def derived(self) -> dict[int, tuple[int, ...]]:
        """The derived sources with claimed uses, and their shapes."""
        shapes = {d.first + i: shape for d in self.derivations for i, shape in enumerate(d.shapes)}
        claimed = self.dtypes
        return {source: shape for source, shape in shapes.items() if source in claimed}

    @property
    def dtypes(self) -> dict[int, torch.dtype]:
        """Of the sources with claimed uses: a claimed call gives the dtype of its arguments."""
        return {source: claim.dtype for claim in self.claims for source, _ in claim.forms}

    @property
    def cotangent_bytes(self) -> int:
        """Of all claimed outputs and derived values, for one row of one sample."""
        width = self.claims[0].dtype.itemsize if self.claims else 0
        return sum(self.tap_bytes) + 2 * width * sum(math.prod(shape) for shape in self.derived.values())

    @property
    def tap_bytes(self) -> list[int]:
        """Of each claimed output, for one row of one sample."""
        return [math.prod(claim.shape) * claim.dtype.itemsize for claim in self.claims]

    def all_joined(self) -> Structure:
        """The same with every leaf in the plain vjp as well: exact whatever ``fn`` does beside the claims."""
        return dataclasses.replace(self, joined=(True,) * len(self.joined))


_HIDDEN = "a use that the capture cannot see (a custom autograd.Function, scripted code, or fn's own output)"


def learn(bound: Bound, randomness: str, call_sites: bool = False) -> Structure:
    """Run ``fn`` once, on one sample, and see what it does with the leaves.

    Outside transforms a backward pass tells which leaves have other uses. Inside, where it might be recorded, every
    leaf is taken to have some.
    """
    one = bound if bound.samples is None else bound.block(0, min(1, bound.samples))
    if inside_transform():
        record, values, _ = _witnessed(one, randomness, call_sites, pull=False)
        joined, random = (True,) * len(one.leaves), False
        reasons = tuple(record.other.get(i, "") for i in range(len(joined)))
    else:
        one = one.clone()  # fn may change its inputs in place
        draw = Draw(one.leaves + one.data)
        try:
            record, values, seen = _witnessed(one, randomness, call_sites, pull=True)
            random = draw.used()
        finally:
            draw.rewind()
        joined = tuple(i in seen for i in range(len(one.leaves)))
        for source, use in list(record.other.items()):
            for leaf in leaves_behind(record.derivations, {source}, len(joined)):
                record.other.setdefault(leaf, use)
        reasons = tuple(record.other.get(i, _HIDDEN) if i in seen else "" for i in range(len(joined)))
    lead = 0 if one.samples is None else 1
    rows = sum(value.shape[lead:].numel() for value in values)
    return Structure(
        tuple(record.claims),
        tuple(record.derivations),
        joined,
        reasons,
        rows,
        random,
        frozenset(record.dtypes),
        autocast_of(bound.leaves),
    )


def check_strict(structure: Structure, names: Sequence[str]) -> None:
    """Raise where a leaf needs more than closed forms."""
    open_leaves = [f"{name}: {reason}" for name, reason in zip(names, structure.reasons, strict=True) if reason]
    if open_leaves:
        raise JacfnError(
            "strict=True: no closed form for every use of\n  "
            + "\n  ".join(open_leaves)
            + "\nDrop strict=True (these uses then go through vjp, exactly), or choose other argnums"
        )


def _observe(one: Bound, aliases: list[Tensor], randomness: str, call_sites: bool) -> tuple[Record, list[Tensor]]:
    """What ``fn`` does with the aliases (which lead with the samples), and its value."""
    records = []

    def run(aliases: list[Tensor], data: list[Tensor], mapped: list[Tensor]) -> list[Tensor]:
        record = new_record(one, aliases, mapped)
        with Capture(record, level=level_of_samples(one), call_sites=call_sites):
            values, _ = one.call(aliases, data)
        record.check_kept()
        records.append(record)
        return values

    values = one.vmapped(run, randomness, 0, 0, 0)(aliases, one.data, mapped_leaves(one))
    return records[0], values


def _witnessed(one: Bound, randomness: str, call_sites: bool, pull: bool) -> tuple[Record, list[Tensor], set[int]]:
    """The same, and the leaves that a backward pass reaches through uses that nobody claims."""
    seen: set[int] = set()
    records = []

    def call(scalar: Tensor) -> list[Tensor]:
        leaves = one.leaves
        if pull:
            leaves = [witness(leaf, scalar, seen, number) for number, leaf in enumerate(leaves)]
        record, values = _observe(one, one.expanded(leaves), randomness, call_sites)
        records.append(record)
        return values

    values: list[Tensor]
    values, vjp = torch.func.vjp(call, scalar_like(one.leaves))  # type: ignore[misc]
    if pull:
        with torch.no_grad():
            vjp([torch.ones_like(value) for value in values])
    return records[0], values, seen


def mapped_leaves(block: Bound) -> list[Tensor]:
    """The leaves that carry samples."""
    return [leaf for leaf, mapped in zip(block.leaves, block.leaves_mapped, strict=True) if mapped]


def new_record(block: Bound, aliases: list[Tensor], mapped: list[Tensor]) -> Record:
    """For a run on one sample, given its part of the mapped leaves; the others are closed over."""
    parts = iter(mapped)
    both = zip(block.leaves, block.leaves_mapped, strict=True)
    outers = [next(parts) if is_mapped else leaf for leaf, is_mapped in both]
    return Record(aliases, outers, [not is_mapped for is_mapped in block.leaves_mapped])


def level_of_samples(block: Bound) -> int | None:
    """The level of the vmap over samples, when called inside it and it tells parameters from data."""
    if block.samples is None or all(block.leaves_mapped):
        return None
    return innermost_level()
