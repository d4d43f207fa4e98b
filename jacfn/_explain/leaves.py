"""What a learnt structure says about each leaf (L3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.overrides import resolve_name

from jacfn._binding import Bound
from jacfn._explain.records import LeafPlan
from jacfn.quasilinear.derived import leaves_behind
from jacfn.quasilinear.factors import Arranged, Form, Matmul
from jacfn.quasilinear.records import Claim, Derivation
from jacfn.quasilinear.structure import Structure

Use = tuple[Claim, int, Form]  # the claimed call, the source in it, the source's form


def leaf_plans(bound: Bound, structure: Structure, touched: Mapping[int, str]) -> tuple[LeafPlan, ...]:
    """A record for each leaf; ``touched`` has the first operation in which each leaf was seen."""
    times = structure.rows * (1 if bound.samples is None else bound.samples)
    sizes = _sizes(bound, structure)
    uses_of = _uses(structure, len(bound.leaves))
    plans = []
    for i, (name, kind) in enumerate(zip(bound.names, bound.leaf_types, strict=True)):
        uses = uses_of[i]
        rule = ", ".join(dict.fromkeys(_rule(structure, i, use, len(bound.leaves)) for use in uses))
        reason = structure.reasons[i]
        if structure.joined[i]:
            rule = f"{rule} + vjp" if uses else "vjp"
        elif not uses:
            rule = "zero"
            reason = f"no gradient comes back from {touched[i]}" if i in touched else "fn does not use it"
        flops = times * sum(_product_flops(use, sizes) for use in uses)
        size = times * kind.size * kind.dtype.itemsize
        plans.append(LeafPlan(name, kind.shape, rule, reason, len(uses), flops, size))
    return tuple(plans)


def unknown_leaves(bound: Bound, rows: int, why: str) -> tuple[LeafPlan, ...]:
    """The records where the structure could not be learnt: everything goes through reverse mode."""
    times = rows * (1 if bound.samples is None else bound.samples)
    kinds = zip(bound.names, bound.leaf_types, strict=True)
    return tuple(
        LeafPlan(name, kind.shape, "vjp", why, 0, 0, times * kind.size * kind.dtype.itemsize) for name, kind in kinds
    )


def product_flops(bound: Bound, structure: Structure) -> int:
    """Of all closed forms, for one row of one sample."""
    sizes = _sizes(bound, structure)
    uses = [(claim, source, form) for claim in structure.claims for source, form in claim.forms]
    return sum(_product_flops(use, sizes) for use in uses)


def _sizes(bound: Bound, structure: Structure) -> list[int]:
    """The number of elements of every source."""
    derived = [math.prod(shape) for derivation in structure.derivations for shape in derivation.shapes]
    return [kind.size for kind in bound.leaf_types] + derived


def _product_flops(use: Use, sizes: Sequence[int]) -> int:
    claim, source, form = use
    laid = form.lay(torch.empty((1, 1, *claim.shape), device="meta"))
    if isinstance(form, (Matmul, Arranged)):  # laid: (R, N, G, T, O); one position is an outer product
        positions = laid.shape[3]
        return sizes[source] * (2 * positions if positions > 1 else 1)
    return laid.numel() * (2 if form.needs_input else 1)


def _uses(structure: Structure, leaves: int) -> list[list[Use]]:
    """For each leaf, the claimed uses of it and of the values derived from it."""
    uses: list[list[Use]] = [[] for _ in range(leaves)]
    behind = {source: {source} for source in range(leaves)}
    behind |= {source: leaves_behind(structure.derivations, {source}, leaves) for source in structure.derived}
    for claim in structure.claims:
        for source, form in claim.forms:
            for leaf in behind[source]:
                uses[leaf].append((claim, source, form))
    return uses


def _rule(structure: Structure, leaf: int, use: Use, leaves: int) -> str:
    claim, source, _ = use
    if source == leaf:
        return claim.operation
    names = [_name(step) for step in _way(structure.derivations, leaf, source, leaves)]
    return f"{claim.operation} (through {', '.join(dict.fromkeys(names))})"


def _way(derivations: Sequence[Derivation], leaf: int, source: int, leaves: int) -> Iterator[Derivation]:
    """The derivations that lie between a leaf and a source, in order."""
    sources = {source}
    steps = []
    for step in reversed(derivations):
        made = set(range(step.first, step.first + len(step.shapes)))
        if made & sources and leaf in leaves_behind(derivations, made, leaves):
            steps.append(step)
            sources |= leaves_behind([step], made, step.first)  # its arguments
    yield from reversed(steps)


def _name(step: Derivation) -> str:
    """``t`` for ``torch.Tensor.t``, ``T`` for the property, ``add`` for ``torch.Tensor.__add__``."""
    function = step.function
    dotted = (resolve_name(function) or getattr(function, "__name__", str(function))).removesuffix(".__get__")
    return str(dotted).rpartition(".")[2].strip("_")
