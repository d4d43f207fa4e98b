"""The tables of rules and the decorators that fill them (L2)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from jacfn.quasilinear.factors import Form
from jacfn.quasilinear.rules._cases import Cases

Place = str | tuple[str, int]  # an argument of a call, by name; one of *args by name and position
Operation = Callable[..., Any]
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


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
    uses: Callable[..., Mapping[Any, Use]]
    names: tuple[str, ...]
    required: int  # the first so many have no default
    rest: str | None  # the name of *args
    evaluate: Callable[..., Tensor] | None = None  # the operation itself, in a way that is cheap to differentiate

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has the signature that the rule is written for."""
        if self.rest is None and len(args) > len(self.names):
            return False
        given = (*self.names[: len(args)], *kwargs)
        return all(name in self.names for name in kwargs) and all(name in given for name in self.names[: self.required])

    def place(self, position: int) -> Place:
        """What the positional argument of a call is called."""
        if position < len(self.names):
            return self.names[position]
        return str(self.rest), position - len(self.names)


RULES: dict[Operation, Rule] = {}
EXPANSIONS: dict[Operation, Callable[..., Any]] = {}
CASES: dict[Operation, Cases] = {}


def rule(
    *operations: Operation,
    cases: Cases,
    name: str | None = None,
    evaluate: Callable[..., Tensor] | None = None,
) -> Callable[[Function], Function]:
    """Enter a rule for these operations; its parameters are named as theirs.

    ``name`` is that of the decorated function, unless it serves several rules.
    ``evaluate`` stands in for an operation in a claimed call, where it is slow under vmap.

    ``cases`` makes example calls, in each of which every argument that the rule claims becomes the parameter once.
    """

    def enter(uses: Function) -> Function:
        entry = dataclasses.replace(rule_from(uses), evaluate=evaluate)
        entry = entry if name is None else dataclasses.replace(entry, name=name)
        RULES.update(dict.fromkeys(operations, entry))
        CASES.update(dict.fromkeys(operations, cases))
        return uses

    return enter


def rule_from(uses: Callable[..., Mapping[Any, Use]]) -> Rule:
    """The entry for a function of the arguments of an operation."""
    parameters = inspect.signature(uses).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    required = sum(p.default is p.empty and p.name in names for p in parameters)
    return Rule(getattr(uses, "__name__", str(uses)), uses, names, required, rest)


def expansion(*operations: Operation, cases: Cases) -> Callable[[Function], Function]:
    """Enter what these operations consist of: a function of the same arguments that calls simpler ones.

    It stands in for a call in which a differentiated parameter takes part, and its own calls are claimed in turn. It
    may return NotImplemented to leave the call as it is. ``cases`` makes example calls, in each of which every
    floating-point tensor becomes the parameter once.
    """

    def enter(expand: Function) -> Function:
        EXPANSIONS.update(dict.fromkeys(operations, expand))
        CASES.update(dict.fromkeys(operations, cases))
        return expand

    return enter


def find(table: dict[Operation, T], function: Operation) -> T | None:
    """The entry of a table of functions; torch.compile cannot hash builtin functions, but compares them."""
    if not torch.compiler.is_compiling():
        return table.get(function)
    for key, entry in table.items():
        if key is function:
            return entry
    return None
