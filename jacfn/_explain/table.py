"""A plan as text (L3): aligned columns, human units."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from jacfn._explain.records import LeafPlan, MethodPlan

_WIDTH = 120


def byte_text(size: int | None) -> str:
    """``1536`` as ``1.5 KiB``."""
    return _scaled(size, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])


def count_text(number: int | None) -> str:
    """``1536`` as ``1.54 k``."""
    return _scaled(number, 1000, ["", "k", "M", "G", "T", "P", "E"])


def _scaled(number: int | None, base: int, units: Sequence[str]) -> str:
    if number is None:
        return "?"
    value, power = float(number), 0
    while value >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = f"{value:.0f}" if power == 0 or value >= 100 else f"{value:.3g}"
    return f"{digits} {units[power]}".rstrip()


def leaf_table(leaves: Sequence[LeafPlan]) -> str:
    """A line for each leaf; the argument that it belongs to is named where there are several."""
    several = len({re.match(r"argument \d+|", leaf.path)[0] for leaf in leaves}) > 1  # type: ignore[index]
    head = ["leaf", "shape", "rule", "uses", "FLOPs", "bytes", "why not in closed form"]
    if not any(leaf.reason for leaf in leaves):
        head.pop()
    return aligned(head, [_leaf(leaf, several) for leaf in leaves], right={3, 4, 5})


def _leaf(leaf: LeafPlan, several: bool) -> list[str]:
    path = leaf.path if several else re.sub(r"^argument \d+(?=.)", "", leaf.path)
    reason = re.sub(r" at (?:\S*[/\\])?([^/\\\s]+:\d+)", r" at \1", leaf.reason)  # the file without its folder
    return [
        path,
        str(leaf.shape),
        leaf.rule,
        str(leaf.uses or "-"),
        count_text(leaf.flops) if leaf.uses else "-",
        byte_text(leaf.bytes),
        reason,
    ]


def method_table(methods: Sequence[MethodPlan], chosen: str | None) -> str:
    """A line for each method."""
    head = ["method", "forward", "backward", "FLOPs", "result", "chunk", "peak", ""]
    return aligned(head, [_method(method, chosen) for method in methods], right={1, 2, 3, 4, 5, 6})


def _method(method: MethodPlan, chosen: str | None) -> list[str]:
    mark = "fails" if method.fails else "chosen" if method.name == chosen else ""
    chunk = str(method.at_once)
    chunk = chunk if method.samples_at_once is None else f"{method.samples_at_once} x {chunk}"
    return [
        f"jac_{method.name}",
        str(method.forward_passes),
        str(method.backward_passes),
        count_text(method.flops),
        byte_text(method.bytes),
        chunk,
        byte_text(method.peak),
        mark,
    ]


def aligned(head: list[str], rows: list[list[str]], right: set[int]) -> str:
    """Columns under their heads; those of the numbers ``right`` are aligned to the right."""
    cells = [head, *(row[: len(head)] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: list[str]) -> str:
        padded = [x.rjust(w) if i in right else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths if width), *map(line, cells[1:])])


def item(text: str) -> str:
    """A warning, in lines of readable length."""
    return textwrap.fill(text, _WIDTH, initial_indent="! ", subsequent_indent="  ", break_on_hyphens=False)
