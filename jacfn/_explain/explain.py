"""``explain`` (L3): what the transforms would do with a function."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from jacfn._binding import Argnums, Bound, bind
from jacfn._errors import JacfnError, JacfnTypeError
from jacfn._evaluate import Options
from jacfn._explain import cautions
from jacfn._explain.leaves import leaf_plans, unknown_leaves
from jacfn._explain.methods import (
    Trial,
    along,
    directions,
    first_rows,
    method_plan,
    run_trial,
)
from jacfn._explain.plan import Plan
from jacfn._explain.records import MethodPlan
from jacfn._explain.second import second_plan
from jacfn._explain.watch import Notes, watch
from jacfn._memory import Budget
from jacfn._selection import Given
from jacfn._torch import inside_transform
from jacfn.auto import Choice, choose_method
from jacfn.dense import forward_method, reverse_method
from jacfn.quasilinear.structure import Structure, learn
from jacfn.quasilinear.transform import quasilinear_method


def explain(
    fn: Callable[..., Any],
    *primals: Any,
    argnums: Argnums = 0,
    in_dims: Any = None,
    has_aux: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
) -> Plan:
    """What the transforms would do with ``fn`` at a point: closed forms, cost, memory, and what to beware of.

    Args:
        fn: the function, as for :func:`jacfn.jacobian`.
        *primals: its positional arguments.
        argnums: which of them to differentiate, an int or a tuple of ints.
        in_dims: which of them carry samples, as in :func:`torch.func.vmap`.
        has_aux: ``fn`` returns ``(output, aux)``.
        kwargs: the keyword arguments of ``fn``, as a dict: those of ``explain`` itself are its options.
        chunk_size: as it would be passed to the transform.
        memory: likewise.
        randomness: likewise.

    Returns:
        A :class:`jacfn.Plan`. Printed, it is a table of the leaves (which operations have closed forms, what goes
        through vjp and why), one of the three methods, and the warnings; its last line sums up. Its fields say the
        same to programs.

        The passes in the table are those of one sample: samples share them. FLOPs are those of matrix products,
        convolutions and attention of all samples, with a backward pass taken for two forward passes: an order of
        magnitude, to compare methods by. The peak is predicted for the chunk that is shown, without running it.

    Raises:
        JacfnError: an argument does not fit, or ``explain`` is called inside a transform. What ``fn`` itself raises
            when it is called on a sample is raised; what it raises under one of the methods becomes a warning.

    Cost: ``fn`` runs a few times on one or two samples; memory is predicted without memory, which takes about a
    millisecond for each operation that is evaluated.

    Example:
        >>> import torch, jacfn
        >>> fn, params = jacfn.make_functional(torch.nn.Linear(3, 2))
        >>> plan = jacfn.explain(fn, params, torch.ones(10, 3), in_dims=(None, 0))
        >>> plan.method, [leaf.rule for leaf in plan.leaves]
        ('quasilinear', ['linear', 'linear'])
        >>> print(str(plan).splitlines()[2])
        ['weight']  (2, 3)  linear     1    120  480 B
    """
    options = Options(chunk_size=chunk_size, memory=memory, randomness=randomness)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise JacfnTypeError(f"kwargs must be a dict of keyword arguments of fn, got {type(kwargs).__name__}")
    if inside_transform():
        raise JacfnError("explain looks at values, which a transform or a compiled region hides: call it outside")
    bound = bind(fn, argnums, primals, dict(kwargs or {}), has_aux=has_aux, in_dims=in_dims)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the plan says it in its own words
        return _plan(bound, argnums, options)


def _plan(bound: Bound, argnums: Argnums, options: Options) -> Plan:
    notes = watch(bound)
    choice, failure = _choose(bound, options, notes)
    structure = choice.structure if choice else None
    if structure is None:
        leaves = unknown_leaves(bound, notes.rows, failure)
    else:
        leaves = leaf_plans(bound, _with_call_sites(bound, options, notes, structure), notes.touched)
    trials = _try(bound, options, notes, structure, failure)
    methods = _methods(bound, options, notes, structure, trials)
    found = chain(
        cautions.of_methods(methods, trials),
        cautions.of_function(bound, options, notes),
        cautions.of_leaves(bound, leaves, notes),
        cautions.of_result(leaves, bound.leaves[0].device),
        cautions.of_values(trials, first_rows(notes.outputs), directions(bound), notes),
    )
    second = second_plan(bound, argnums, options)
    columns = sum(kind.size for kind in bound.leaf_types)
    method, why = (choice.method, choice.why) if choice else (None, failure)
    return Plan(leaves, methods, method, why, notes.rows, columns, bound.samples, tuple(found), second)


def _choose(bound: Bound, options: Options, notes: Notes) -> tuple[Choice | None, str]:
    """What ``jacobian`` would take, or the error that it would raise while it learns ``fn``."""
    try:
        return choose_method(bound, _drawing(options, notes)), ""
    except Exception as error:  # whatever fn raises when it is learnt is what the plan has to tell
        return None, f"{type(error).__name__}: {error}"


def _drawing(options: Options, notes: Notes) -> Options:
    """Options under which a random function can be learnt; that they are needed is a warning."""
    refused = notes.random and options.randomness == "error"
    return dataclasses.replace(options, randomness="different") if refused else options


def _with_call_sites(bound: Bound, options: Options, notes: Notes, structure: Structure) -> Structure:
    """The same with reasons that say where in the source an operation stands."""
    if not any(structure.reasons):
        return structure
    reasons = learn(bound.detach(), _drawing(options, notes).randomness, call_sites=True).reasons
    pairs = zip(structure.reasons, reasons, strict=True)
    return dataclasses.replace(structure, reasons=tuple(placed or reason for reason, placed in pairs))


def _try(bound: Bound, options: Options, notes: Notes, structure: Structure | None, failure: str) -> dict[str, Trial]:
    """Two samples by each method."""
    if not notes.rows or not any(kind.size for kind in bound.leaf_types) or bound.samples == 0:
        return {name: Trial(None, "", ()) for name in ("rev", "fwd", "quasilinear")}
    rows = first_rows(notes.outputs)
    tangents = Given(tuple(bound.leaf_types), None, ((2,),), None, tuple(directions(bound)))
    trials = {
        "rev": run_trial(reverse_method(rows, options), bound, options),
        "fwd": run_trial(along(tangents, options), bound, options),
        "quasilinear": Trial(None, failure, ()),
    }
    if structure is not None:
        trials["quasilinear"] = run_trial(quasilinear_method(structure, rows, options), bound, options)
    return trials


def _methods(
    bound: Bound, options: Options, notes: Notes, structure: Structure | None, trials: dict[str, Trial]
) -> tuple[MethodPlan, ...]:
    methods = {"rev": reverse_method(None, options), "fwd": forward_method(None, options)}
    # Without a structure its trial has failed, and the method is not asked for anything.
    methods["quasilinear"] = quasilinear_method(structure, None, options) if structure else methods["rev"]
    return tuple(
        method_plan(name, method, bound, options, notes, structure, trials[name]) for name, method in methods.items()
    )
