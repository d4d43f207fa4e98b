"""What will fail, be slow, or differ between the methods (L3): one short function for each kind of warning."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Options
from jacfn._explain.methods import Trial
from jacfn._explain.records import Caution, LeafPlan, MethodPlan
from jacfn._explain.table import byte_text
from jacfn._explain.watch import Notes

_SHOWN = 3  # leaves named in a warning
_HALF = (torch.float16, torch.bfloat16)


def of_methods(plans: Sequence[MethodPlan], trials: Mapping[str, Trial]) -> Iterator[Caution]:
    """Methods that fail, and operations that they can only loop over."""
    for plan in plans:
        if plan.fails:
            yield Caution("fails", f"jac_{plan.name} fails: {plan.note}")
    unknown: dict[str, list[str]] = {}
    for plan in plans:
        if plan.note and not plan.fails:
            unknown.setdefault(plan.note, []).append(f"jac_{plan.name}")
    for note, names in unknown.items():
        yield Caution(
            "no prediction",
            f"the peak of {_list(names)} cannot be predicted, since fn fails on tensors without data ({note}): pass "
            "chunk_size in the place of memory",
        )
    slow: dict[str, list[str]] = {}
    for name, trial in trials.items():
        for operation in trial.slow:
            slow.setdefault(operation, []).append(f"jac_{name}")
    for operation, names in slow.items():
        yield Caution(
            "slow operation",
            f"{operation} has no batching rule in PyTorch: {_list(names)} run it once for each sample, row or column",
        )


def of_function(bound: Bound, options: Options, notes: Notes) -> Iterator[Caution]:
    """What ``fn`` is and does as a whole."""
    if notes.random and options.randomness == "error":
        yield Caution(
            "random",
            "fn draws random numbers (dropout in training mode?), and randomness='error': call module.eval() first, or "
            "pass randomness='same' or 'different'",
        )
    if notes.changes:
        yield Caution(
            "in place",
            "fn changes its arguments in place: what it returns depends on how often it has run; let it work on a copy",
        )
    if not notes.finite:
        yield Caution("not finite", "fn's value at the first sample is not finite, nor will be its derivatives")
    if not _can_be_kept(bound.fn):
        yield Caution(
            "not kept",
            f"fn, a {type(bound.fn).__name__}, cannot be hashed or weakly referenced: jac_quasilinear and "
            "method='auto' learn it afresh at every call; wrap it in a function",
        )
    elif bound.signature is None:
        yield Caution(
            "not kept",
            "an argument that is no tensor cannot be hashed: jac_quasilinear and method='auto' learn fn afresh at "
            "every call; close over it",
        )
    elif isinstance(bound.fn, functools.partial) or getattr(bound.fn, "__name__", "") == "<lambda>":
        kind = "partial" if isinstance(bound.fn, functools.partial) else "lambda"
        yield Caution(
            "not kept",
            f"fn is a {kind}: made afresh for every call, it is learnt afresh by every call; make it once and keep it",
        )


def of_leaves(bound: Bound, plans: Sequence[LeafPlan], notes: Notes) -> Iterator[Caution]:
    """What some leaves have in common."""
    unused = [plan.path for plan in plans if plan.rule == "zero" and plan.reason == "fn does not use it"]
    if unused:
        yield Caution("unused", f"{_list(unused)}: fn does not use it, so its Jacobian is zero; leave it out")
    cut = [plan.path for plan in plans if plan.rule == "zero" and plan.path not in unused]
    if cut:
        yield Caution(
            "zero",
            f"{_list(cut)}: fn uses it, but no gradient comes back (detach, no_grad, a comparison, an index), so its "
            "Jacobian is zero",
        )
    joined = [plan.path for plan, shared in zip(plans, bound.leaves_mapped, strict=True) if not shared and plan.reason]
    joined = [path for path in joined if path not in (*unused, *cut)]
    if joined and bound.samples is not None and bound.samples > 1 and any(plan.closed for plan in plans):
        yield Caution(
            "joined",
            f"{_list(joined)}: differentiated by reverse mode beside the closed forms, which takes a gradient for each "
            "sample and row before it is written into the result",
        )
    half = [name for name, kind in zip(bound.names, bound.leaf_types, strict=True) if kind.dtype in _HALF]
    if half:
        yield Caution(
            "half precision",
            f"{_list(half)}: derivatives are rounded to {bound.leaves[0].dtype} at every step, and the methods differ "
            "by that; pass float32 where it matters",
        )


def of_result(plans: Sequence[LeafPlan], device: torch.device) -> Iterator[Caution]:
    """A result that the machine has no room for."""
    size, room = sum(plan.bytes for plan in plans), _memory_of(device)
    if room is not None and size > room:
        yield Caution(
            "too large",
            f"the result takes {byte_text(size)}, {device.type} has {byte_text(room)}: choose rows or columns, or "
            "multiply by vectors with pushforward and pullback",
        )


def of_values(trials: Mapping[str, Trial], rows: Any, tangents: Sequence[Tensor], notes: Notes) -> Iterator[Caution]:
    """Derivatives that are not finite where the value is, and those that forward and reverse mode disagree on."""
    reverse, forward = trials["rev"].result, trials["fwd"].result
    if reverse is None or not notes.finite:
        return
    # (N, R, 2) <- (N, R, *in) x (2, *in), summed over leaves
    leaves = [_raveled(part, 2) for part in reverse.parts.values()]
    if not all(leaf.isfinite().all() for leaf in leaves):
        yield Caution("not finite", "the derivative at the first samples is not finite, though the value is")
        return
    if forward is None or notes.random:
        return
    vectors = [_raveled(tangent, 1).T for tangent in tangents]
    mine = sum(leaf @ vector for leaf, vector in zip(leaves, vectors, strict=True))
    scale = sum(leaf.abs() @ vector.abs() for leaf, vector in zip(leaves, vectors, strict=True))
    outputs = torch.cat([_raveled(part, 2) for part in forward.parts.values()], 2)  # (N, 2, K)
    theirs = outputs.transpose(1, 2)[:, torch.as_tensor(rows, device=outputs.device)]
    assert isinstance(mine, Tensor)
    assert isinstance(scale, Tensor)
    dtypes = [*(kind.dtype for kind in notes.outputs), *(tangent.dtype for tangent in tangents)]
    precision = max(torch.finfo(dtype).eps for dtype in dtypes)
    if not bool(((mine - theirs).abs() <= precision**0.5 * (scale + scale.amax())).all()):
        difference = (mine - theirs).abs().max().item()
        yield Caution(
            "modes differ",
            f"forward and reverse mode disagree by {difference:.2g} (terms up to {scale.max().item():.2g}): an "
            "operation has a derivative of its own making, such as a custom autograd.Function",
        )


def _raveled(x: Tensor, lead: int) -> Tensor:
    """In double precision, with one axis behind the leading ones."""
    return x.double().reshape(*x.shape[:lead], math.prod(x.shape[lead:]))


def _can_be_kept(fn: Callable[..., Any]) -> bool:
    owner = getattr(fn, "__self__", fn)
    try:
        weakref.ref(owner)
        hash(owner)
    except TypeError:
        return False
    return True


def _memory_of(device: torch.device) -> int | None:
    """All memory of a device in bytes, None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
