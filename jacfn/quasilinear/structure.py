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
from jacfn._torch import inside_transform
from jacfn.quasilinear.capture import Capture, Claim, Record
from jacfn.quasilinear.witness import scalar_like, witness


@dataclasses.dataclass(frozen=True)
class Structure:
    """The claimed calls in order; ``joined`` leaves have other uses, so they take part in the plain vjp, too."""

    claims: tuple[Claim, ...]
    joined: tuple[bool, ...]
    reasons: tuple[str, ...]  # why a leaf is joined, empty for one that is not
    rows: int  # of one sample
    random: bool  # fn draws random numbers

    def forms(self, leaf: int) -> list[tuple[int, int]]:
        """The uses of a leaf: (claim, place among the forms of the claim)."""
        return [
            (i, j) for i, claim in enumerate(self.claims) for j, (owner, _) in enumerate(claim.forms) if owner == leaf
        ]

    @property
    def cotangent_bytes(self) -> int:
        """Of all claimed outputs, for one row of one sample."""
        return sum(math.prod(claim.shape) * claim.dtype.itemsize for claim in self.claims)

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
        with torch.no_grad():
            record, values = _observe(one, one.expanded_leaves(), randomness, call_sites)
        joined, random = (True,) * len(one.leaves), False
        reasons = tuple(record.other.get(i, "") for i in range(len(joined)))
    else:
        one = one.clone()  # fn may change its inputs in place
        draw = Draw(one.leaves + one.data)
        try:
            record, values, seen = _witnessed(one, randomness, call_sites)
            random = draw.used()
        finally:
            draw.rewind()
        joined = tuple(i in seen for i in range(len(one.leaves)))
        reasons = tuple(record.other.get(i, _HIDDEN) if i in seen else "" for i in range(len(joined)))
    lead = 0 if one.samples is None else 1
    rows = sum(value.shape[lead:].numel() for value in values)
    return Structure(tuple(record.claims), joined, reasons, rows, random)


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

    def run(aliases: list[Tensor], data: list[Tensor], outers: list[Tensor]) -> list[Tensor]:
        record = Record()
        with Capture(aliases, outers, record, call_sites=call_sites):
            values, _ = one.call(aliases, data)
        record.check_inputs()
        records.append(record)
        return values

    dims = [[0] * len(aliases), [0] * len(one.data), one.leaf_dims]
    values = one.vmapped(run, randomness, *dims)(aliases, one.data, one.leaves)
    return records[0], values


def _witnessed(one: Bound, randomness: str, call_sites: bool) -> tuple[Record, list[Tensor], set[int]]:
    """The same, and the leaves that a backward pass reaches through uses that nobody claims."""
    seen: set[int] = set()
    records = []

    def call(scalar: Tensor) -> list[Tensor]:
        aliases = [witness([leaf], scalar, seen, number)[0] for number, leaf in enumerate(one.expanded_leaves())]
        record, values = _observe(one, aliases, randomness, call_sites)
        records.append(record)
        return values

    values: list[Tensor]
    values, vjp = torch.func.vjp(call, scalar_like(one.leaves[0]))  # type: ignore[misc]
    with torch.no_grad():
        vjp([torch.ones_like(value) for value in values])
    return records[0], values, seen
