"""The directive ``jet-rules``: the operations that carry second derivatives, from their tables."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from torch.overrides import resolve_name

from jacfn.second_order import rules
from jacfn.second_order.composites import COMPOSITES
from jacfn.second_order.rules import RULES


def rows() -> Iterator[tuple[str, list[Any]]]:
    """What kind of operations, and which."""
    named = {
        name: importlib.import_module(f"{rules.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(rules.__path__)
    }
    entered: dict[str, list[Any]] = {name: [] for name in named}
    for operation, rule in RULES.items():
        entered[_home(rule, list(named))].append(operation)
    for name, operations in entered.items():
        if operations:
            yield (named[name].__doc__ or "").partition(" (L3)")[0].rstrip("."), operations
    yield "By others of these", list(COMPOSITES)


def _home(rule: Callable[..., Any], names: list[str]) -> str:
    return rule.__module__.rpartition(".")[2]


def _name(operation: Any) -> str:
    packet = getattr(operation, "overloadpacket", None)
    if packet is not None:
        return str(packet).replace("aten.", "")
    return str(resolve_name(operation) or operation.__name__).replace("torch.nn.functional.", "F.")


class JetRules(SphinxDirective):
    """``.. jet-rules::``."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        lines = [
            ".. list-table::",
            "   :header-rows: 1",
            "",
            "   * - Operations",
            "     - Names (ATen's, but for ``torch.`` and ``F.``)",
        ]
        for kind, operations in rows():
            names = sorted({_name(operation) for operation in operations})
            lines += [f"   * - {kind}", f"     - {', '.join(f'``{name}``' for name in names)}"]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source="registry"), self.content_offset, container)
        return list(container.children)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("jet-rules", JetRules)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
