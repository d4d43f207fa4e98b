"""The directive ``rule-coverage``: tables of what has a closed form, from the registry and its example calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from jacfn.quasilinear.derived import PURE
from jacfn.quasilinear.factors import Arranged
from jacfn.quasilinear.rules import CASES, EXPANSIONS, RULES
from jacfn.quasilinear.rules._cases import Call, Random

Operation = Callable[..., Any]


def claimed() -> Iterator[list[str]]:
    """Rows of operations, the arguments that have a closed form, and the tensors that do not."""
    yield ["Operations", "Closed forms", "Through vjp"]
    for operations in _together({op: rule.uses for op, rule in RULES.items() if op in CASES}):
        forms: dict[str, set[str]] = {}
        others: set[str] = set()
        for operation in operations:
            for call in CASES[operation](Random()):
                _read(operation, call, forms, others)
        named = ", ".join(f"``{place}``: {' or '.join(sorted(kinds))}" for place, kinds in forms.items())
        yield [_names(operations), named, ", ".join(f"``{x}``" for x in sorted(others - set(forms)))]


def _read(operation: Operation, call: Call, forms: dict[str, set[str]], others: set[str]) -> None:
    """What the rule says about the arguments of one call."""
    rule = RULES[operation]
    uses = rule.uses(*call.args, **call.kwargs)
    given = {rule.place(i): value for i, value in enumerate(call.args)} | call.kwargs
    for place, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        name = place if isinstance(place, str) else f"*{place[0]}"
        if place in uses:
            kind = type(uses[place].form)
            forms.setdefault(name, set()).add("Matmul" if kind is Arranged else kind.__name__)
        elif operation is not Tensor.expand_as:  # which reads the shape alone
            others.add(name)


class Calls(TorchFunctionMode):
    """Notes the calls that have rules."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RULES:
            self.names[RULES[func].name] = None
        return func(*args, **(kwargs or {}))


def expanded() -> Iterator[list[str]]:
    """Rows of operations, what they are, and the rules of which they consist."""
    yield ["Operations", "What it is", "Rules of its parts"]
    for operations in _together({op: expand for op, expand in EXPANSIONS.items() if op in CASES}):
        parts = Calls()
        for operation in operations:
            for call in CASES[operation](Random()):
                with parts:
                    EXPANSIONS[operation](*call.args, **call.kwargs)
        summary = (EXPANSIONS[operations[0]].__doc__ or "").partition("\n")[0]
        yield [_names(operations), summary, ", ".join(f"``{name}``" for name in sorted(parts.names))]


def derived() -> Iterator[list[str]]:
    """One row: the operations on parameters alone."""
    yield ["Operations on parameters alone"]
    names = {str(resolve_name(operation)).rpartition(".")[2] for operation in PURE if resolve_name(operation)}
    public = sorted(name for name in names if not name.startswith("_"))
    yield [", ".join(f"``{name}``" for name in public)]


def _together(table: dict[Operation, Any]) -> list[list[Operation]]:
    """The operations that share an entry."""
    groups: dict[int, list[Operation]] = {}
    for operation, entry in table.items():
        groups.setdefault(id(entry), []).append(operation)
    return list(groups.values())


SPELT = {torch.mm: "torch.mm", **{getattr(torch, f"conv{n}d"): f"F.conv{n}d" for n in (1, 2, 3)}}


def _name(operation: Operation) -> str:
    """As people write it; torch.mm has an alias that PyTorch finds first."""
    name = SPELT.get(operation) or str(resolve_name(operation))
    return (
        name.replace("torch.nn.functional.", "F.")
        .replace("torch.functional.", "torch.")
        .replace("torch.Tensor", "Tensor")
    )


def _names(operations: list[Operation]) -> str:
    return ", ".join(f"``{_name(operation)}``" for operation in operations)


TABLES = {"rules": claimed, "expansions": expanded, "derived": derived}


class RuleCoverage(SphinxDirective):
    """``.. rule-coverage:: rules`` (or ``expansions``, ``derived``)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        lines = [".. list-table::", "   :header-rows: 1", "   :class: rule-coverage", ""]
        for row in TABLES[self.arguments[0]]():
            lines += [f"   {'* -' if number == 0 else '  -'} {text}" for number, text in enumerate(row)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source="registry"), self.content_offset, container)
        return list(container.children)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("rule-coverage", RuleCoverage)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
