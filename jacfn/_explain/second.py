"""By what ways second derivatives of a function are found (L3)."""

from __future__ import annotations

import dataclasses
import warnings

from jacfn._binding import Argnums, Bound
from jacfn._evaluate import Options
from jacfn._explain.methods import first_sentence
from jacfn._explain.records import SecondPlan
from jacfn._random import Draw
from jacfn._selection import Side, select
from jacfn.second_order.by_gradient import ByGradient
from jacfn.second_order.by_jets import ByJets
from jacfn.second_order.gradient import Gradient
from jacfn.second_order.jet import Sum, UnseenError
from jacfn.second_order.passes import stacks_of


def second_plan(bound: Bound, argnums: Argnums, options: Options) -> SecondPlan | None:
    """Tried on one sample along one direction; None where there is none."""
    few = bound.detach().block(0, min(1, bound.samples or 0)).clone()
    if few.samples == 0 or not any(kind.size for kind in few.leaf_types):
        return None
    side, draw = select(few.leaf_types, few.spec, 0, "columns"), Draw(few.tensors)
    options = dataclasses.replace(options, randomness="same", chunk_size=None, memory=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = SecondPlan(_by_rules(few, side), *_by_gradient(few, argnums, side, options))
    draw.rewind()
    return plan


def _by_rules(few: Bound, side: Side) -> str:
    """Why not."""
    try:
        ByJets(Sum(), "same")(few, *stacks_of(side, few)(0, 1), 0, 1, "off")
    except UnseenError as error:
        return str(error)
    except Exception as error:  # whatever fn raises is what the plan has to tell
        return _said(error)
    return ""


def _by_gradient(few: Bound, argnums: Argnums, side: Side, options: Options) -> tuple[str, str]:
    """Why not forward over reverse, and why not reverse over reverse either."""
    gradient, reasons = Gradient(few.fn, argnums, few.has_aux, "same"), ["", ""]
    for number, reverse in enumerate((False, True)):
        try:
            ByGradient(gradient, reverse, Sum(), options)(few, *stacks_of(side, few)(0, 1), 0, 1, "off")
            break
        except Exception as error:  # as above
            reasons[number] = _said(error)
    return reasons[0], reasons[1]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_sentence(str(error))}"
