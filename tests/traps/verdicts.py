"""Whether a path to a derivative of a case is right, wrong, or raises; and the table of all this, which is kept."""

from __future__ import annotations

import functools
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

import jacfn

from . import differences
from .case import HERE, NEARBY, Case, D
from .functions import CASES
from .paths import PATHS, Path

TABLE = File(__file__).parents[2] / "docs" / "traps.json"
VERSION = torch.__version__.partition("+")[0]
RIGHT, WRONG, NAN, RAISES = "right", "wrong", "nan", "raises"

ALONG = torch.tensor([0.5, -0.4], dtype=D)
SMALL = 1e-2
TOLERANCE = 1e-5  # differences are good to 1e-6, and what is wrong is wrong by 1e-3 and more


@functools.cache
def expected(name: str) -> dict[str, Tensor]:
    """All kinds of results, by differences."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slopes, matrix = differences.gradient(CASES[name], HERE), differences.hessian(CASES[name], HERE)
        third = differences.slope_of_laplacian(CASES[name], HERE, ALONG)
        mixed = differences.mixed(CASES[name], HERE, *torch.eye(2, dtype=D).flip(0))
    return {
        "gradient": slopes,
        "slope": slopes @ ALONG,
        "hessian": matrix,
        "product": matrix @ ALONG,
        "curvature": ALONG @ matrix @ ALONG,
        "diagonal": matrix.diagonal(),
        "laplacian": matrix.trace(),
        "third": third,
        "mixed": mixed,
    }


def verdict(case: Case, path: Path) -> str:
    """``right``, ``wrong: 4e-1``, which is the error, ``nan``, or ``raises: `` with the error's type and first line."""
    try:
        off = error(case, path)
    except Exception as reason:
        return f"{RAISES}: {type(reason).__name__}: {_first_line(str(reason))}"
    return NAN if off != off else RIGHT if off < TOLERANCE else f"{WRONG}: {off:.0e}"


def error(case: Case, path: Path) -> float:
    """Relative to the largest entry, if that is not small."""
    points = torch.stack([NEARBY, HERE]) if path.samples else HERE.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels without batching rules
        result = path.way(lambda x: case(x), points, ALONG).detach()
    result = result[1] if path.samples else result
    wanted = expected(case.name)[path.result]
    assert result.shape == wanted.shape, f"{path.name}: {tuple(result.shape)} for {tuple(wanted.shape)}"
    return ((result - wanted).abs().max() / wanted.abs().max().clamp(min=SMALL)).item()


def kind(text: str) -> str:
    """The word in front."""
    return text.partition(":")[0]


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"0x[0-9a-f]+", "0x…", line)
    return line if len(line) <= 160 else line[:159] + "…"


def by(case: Case) -> str:
    """How ``jacfn.laplacian`` goes: by ``rules``, or ``exact: `` or ``gradient: `` with what has no rule."""
    with _reports() as reports:
        try:
            jacfn.laplacian(lambda x: case(x))(HERE.clone())
        except Exception as reason:
            return f"{RAISES}: {type(reason).__name__}: {_first_line(str(reason))}"
    for way, says in (("gradient", "which rules do not cover: "), ("exact", "no rule for ")):
        for report in reports:
            if says in report:
                return f"{way}: {_first_line(report.partition(says)[2])}"
    return "rules"


@contextmanager
def _reports() -> Iterator[list[str]]:
    """What jacfn logs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("jacfn")
    spread, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)
        log.propagate = spread


def judged(case: Case) -> dict[str, str]:
    """A row: the group, how jacfn goes, and the paths that are not right."""
    with _reports():  # which would be said of every path
        verdicts = {name: verdict(case, path) for name, path in PATHS.items()}
    return {"group": case.group, "by": by(case)} | {name: text for name, text in verdicts.items() if text != RIGHT}


def kept() -> dict[str, Any]:
    """The table as it is in the documentation: the version of torch, the paths, and a row for each case."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table
