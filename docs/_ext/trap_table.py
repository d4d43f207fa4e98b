"""The directive ``traps``: tables of which ways to a derivative are right, from the verdicts in ``traps.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

FILE = Path(__file__).parents[1] / "traps.json"

RIGHT, WRONG, NAN, RAISES = KINDS = ("right", "wrong", "nan", "raises")  # as the verdicts begin
SIGNS = {RIGHT: "✓", WRONG: "**✗**", NAN: "**NaN**", RAISES: "–"}
WORST_LAST = (RIGHT, RAISES, NAN, WRONG)
# The others stand in the summary and in the lists alone.
NOT_LOOKED_UP = ("jacfn.hvp", "jacfn.hessian_diag", "jacfn.partial (third)", "grad of trace of jacfn.hessian")


class Table(NamedTuple):
    """What ``traps.json`` holds: paths to derivatives, and for each operation those that are not right."""

    paths: list[str]
    rows: dict[str, dict[str, str]]

    def kind(self, operation: str, path: str) -> str:
        """``right``, ``wrong``, ``nan`` or ``raises``."""
        return self.rows[operation].get(path, RIGHT).partition(":")[0]

    def of_samples(self, path: str) -> list[str]:
        """The same path under vmap and with in_dims, as far as there are such."""
        return [name for name in self.paths if name.startswith(f"{path}, ")]


def summary(table: Table) -> Iterator[str]:
    """How many operations each path gets right."""
    rows = []
    for path in table.paths:
        counts = Counter(table.kind(operation, path) for operation in table.rows)
        rows.append([path, *(str(counts[kind]) for kind in KINDS)])
    return _list_table([["Path", "right", "wrong", "NaN", "raises"], *rows])


def look_up(table: Table) -> Iterator[str]:
    """A table for each group of operations, a row for each of them."""
    shown = [path for path in table.paths if ", " not in path and path not in NOT_LOOKED_UP]
    for group in dict.fromkeys(row["group"] for row in table.rows.values()):
        members = [operation for operation, row in table.rows.items() if row["group"] == group]
        rows = [[f"``{name}``", *(_cell(table, name, path) for path in shown), _by(table, name)] for name in members]
        yield from (f".. rubric:: {group}", "", *_list_table([["Operation", *shown, "by"], *rows]), "")


def _cell(table: Table, operation: str, path: str) -> str:
    """The sign; behind it the worst one for samples, if that is another."""
    alone = table.kind(operation, path)
    kinds = [table.kind(operation, name) for name in table.of_samples(path)]
    worst = max(kinds, key=WORST_LAST.index, default=alone)
    return SIGNS[alone] if worst == alone else f"{SIGNS[alone]} {SIGNS[worst]}"


def _by(table: Table, operation: str) -> str:
    way = table.rows[operation]["by"].partition(":")[0]
    return SIGNS.get(way, way)


def wrong(table: Table) -> Iterator[str]:
    """For each path the operations that it gets wrong, with the error."""
    for path in table.paths:
        found = [operation for operation in table.rows if table.kind(operation, path) in (WRONG, NAN)]
        if found:
            named = ", ".join(f"``{operation}`` ({_error(table.rows[operation][path])})" for operation in found)
            yield from (path, f"   {named}", "")


def _error(verdict: str) -> str:
    return "NaN" if verdict == NAN else f"{float(verdict.partition(':')[2]):.2g}"


def raising(table: Table) -> Iterator[str]:
    """For each operation the errors of jacfn's paths."""
    ours = [path for path in table.paths if "jacfn." in path]
    for operation, row in table.rows.items():
        errors: dict[str, list[str]] = {}
        for path in ours:
            if table.kind(operation, path) == RAISES:
                errors.setdefault(row[path].partition(": ")[2].replace("`", "'"), []).append(path)
        if errors:
            yield f"``{operation}``"
        for message, paths in errors.items():
            yield from (f"   {'; '.join(paths)}: ``{message}``", "")


def without_rules(table: Table) -> Iterator[str]:
    """The operations of which the second derivatives do not go by rules, with the reason."""
    for operation, row in table.rows.items():
        way, _, reason = row["by"].partition(": ")
        if way not in ("rules", RAISES):
            yield from (f"``{operation}``", f"   {way}: ``{reason}``", "")


def _list_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "   :class: traps", "")
    for row in rows:
        yield from (f"   {'* -' if number == 0 else '  -'} {text}" for number, text in enumerate(row))


VIEWS: dict[str, Callable[[Table], Iterator[str]]] = {
    "summary": summary,
    "look-up": look_up,
    "wrong": wrong,
    "raising": raising,
    "without-rules": without_rules,
}


class Traps(SphinxDirective):
    """``.. traps:: summary`` (or ``look-up``, ``wrong``, ``raising``, ``without-rules``)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The tables."""
        self.env.note_dependency(str(FILE))
        kept = json.loads(FILE.read_text())
        lines = list(VIEWS[self.arguments[0]](Table(kept["paths"], kept["functions"])))
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(FILE)), self.content_offset, container)
        return list(container.children)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("traps", Traps)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
