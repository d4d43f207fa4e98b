"""The tables of rules and the decorators that fill them (L2)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from jacfn.quasilinear.factors import Form

Place = str | tuple[str, int]  # an argument of a call, by name; one of *args by name and position
T = TypeVar("T")


class Use(NamedTuple):
    """A linear use of an argument: its form, and the input that the form needs (None for a shift).

    The input may be a function without arguments, called only when this argument is a parameter.
    """

    form: Form
    input: Tensor | Callable[[], Tensor] | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule, and the names of its parameters by which the arguments of a call are told apart."""

    name: str
    uses: Callable[..., Mapping[Place, Use]]
    names: tuple[str, ...]
    required: int  # the first so many have no default
    rest: str | None  # the name of *args

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has the signature that the rule is written for."""
        if self.rest is None and len(args) > len(self.names):
            return False
        given = (*self.names[: len(args)], *kwargs)
        return all(name in self.names for name in kwargs) and all(
            name in given for name in self.names[: self.required]
        )

    def place(self, position: int) -> Place:
        """What the positional argument of a call is called."""
        if position < len(self.names):
            return self.names[position]
        return str(self.rest), position - len(self.names)


RULES: dict[Callable[..., Any], Rule] = {}
EXPANSIONS: dict[Callable[..., Any], Callable[..., Any]] = {}


def rule(
    *operations: Callable[..., Any],
) -> Callable[[Callable[..., Mapping[Place, Use]]], Callable[..., Mapping[Place, Use]]]:
    """Register a rule for these operations; its parameters are named as theirs."""

    def register(uses: Callable[..., Mapping[Place, Use]]) -> Callable[..., Mapping[Place, Use]]:
        parameters = inspect.signature(uses).parameters.values()
        names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        required = sum(p.default is p.empty and p.name in names for p in parameters)
        RULES.update(dict.fromkeys(operations, Rule(uses.__name__, uses, names, required, rest)))
        return uses

    return register


def expansion(*operations: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what these operations consist of: a function of the same arguments that calls simpler ones.

    It stands in for a call in which a differentiated parameter takes part, and its own calls are claimed in turn. It
    may return NotImplemented to leave the call as it is.
    """

    def register(expand: Callable[..., Any]) -> Callable[..., Any]:
        EXPANSIONS.update(dict.fromkeys(operations, expand))
        return expand

    return register


def find(table: dict[Callable[..., Any], T], function: Callable[..., Any]) -> T | None:
    """The entry of a table of functions; torch.compile cannot hash builtin functions, but compares them."""
    if not torch.compiler.is_compiling():
        return table.get(function)
    for key, entry in table.items():
        if key is function:
            return entry
    return None
