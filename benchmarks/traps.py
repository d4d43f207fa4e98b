"""Which ways to a derivative PyTorch and jacfn get right: the table of the documentation.

``python -m benchmarks.traps`` judges every function of ``tests/traps`` by every path against finite differences, and
prints how many are right by each path; ``--save docs/traps.json`` keeps the verdicts, to which the tests hold both.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import tables


def judge() -> dict[str, Any]:
    """The version of torch, the paths, and for each function how jacfn goes and what is not right."""
    verdicts, cases = import_module("tests.traps.verdicts"), import_module("tests.traps.functions").CASES
    rows = {name: verdicts.judged(case) for name, case in cases.items()}
    return {"torch": verdicts.VERSION, "paths": list(verdicts.PATHS), "functions": rows}


def summary(table: dict[str, Any]) -> str:
    """How many functions are right by each path."""
    kinds, lines = ("right", "wrong", "nan", "raises"), []
    rows = table["functions"].values()
    for path in table["paths"]:
        counts = Counter(row.get(path, "right").partition(":")[0] for row in rows)
        lines.append([path, *(str(counts[kind]) for kind in kinds)])
    ways = Counter(row["by"].partition(":")[0] for row in rows)
    return tables.grid(["", *kinds], lines) + "\n\njacfn goes by " + ", ".join(f"{way}: {n}" for way, n in ways.items())


def main() -> None:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="the file to keep the verdicts in")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = judge()
    print(summary(table))
    if options.save:
        options.save.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(f"\nsaved {options.save}")


if __name__ == "__main__":
    main()
