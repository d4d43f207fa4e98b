"""Plain text tables, and the line that says on what machine they were made."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path

import torch


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out in columns: the first is aligned left, the others right; an empty row becomes a rule."""
    cells = [list(header), *(list(row) for row in rows if row)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(row: Sequence[str]) -> str:
        if not row:
            return rule
        return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()

    return "\n".join([line(header), rule, *map(line, rows)])


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(threads: int) -> str:
    """One line: processor, threads, versions."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{cpu_model()}, {threads} threads, {versions}, float32"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three significant digits."""
    return significant(seconds * 1e3)


def significant(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(torch.tensor(abs(value)).log10().floor()))
    return f"{value:.{digits}f}"


def save(folder: Path, name: str, text: str) -> None:
    """Write a table as it was printed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")
    print(f"\nsaved {folder / name}")
