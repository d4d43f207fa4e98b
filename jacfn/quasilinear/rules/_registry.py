"""The table of rules and the decorator that fills it (L2)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from jacfn.quasilinear.factors import Form


class Use(NamedTuple):
    """A linear use of an argument: its form, and the input that the form needs (None for a shift)."""

    form: Form
    input: Tensor | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with the signature by which calls are read."""

    name: str
    uses: Callable[..., dict[str, Use]]
    signature: inspect.Signature

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
        """The call's arguments by name; None where the call does not fit the signature."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        return bound


RULES: dict[Callable[..., Any], Rule] = {}


def rule(*operations: Callable[..., Any]) -> Callable[[Callable[..., dict[str, Use]]], Callable[..., Any]]:
    """Register a rule for these operations; its parameters are named as theirs."""

    def register(uses: Callable[..., dict[str, Use]]) -> Callable[..., dict[str, Use]]:
        entry = Rule(uses.__name__, uses, inspect.signature(uses))
        RULES.update(dict.fromkeys(operations, entry))
        return uses

    return register
