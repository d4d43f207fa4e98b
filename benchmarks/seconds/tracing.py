"""How long the first call takes, in which torch's functions are taken apart into operations that have rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import jacfn

from .. import tables, timing
from ..operators import children
from ..operators.compare import heading, prose, targets
from .attention import plain

#: Seconds that the first call may take.
MOST = 2.0
#: Width of the layer, and tokens of its input.
WIDTH, TOKENS = 32, 4

FIRST, AGAIN = "first call in a new process", "again"
OTHER, OTHER_AGAIN = "first call with one more token", "again with that"

HOW = f"""\
Seconds of jacfn.laplacian of the mean output of an nn.TransformerEncoderLayer of width {WIDTH} with respect to {TOKENS}
tokens, in a process in which nothing was computed before: the first call imports what tracing needs, and traces. With
one more token only the tracing is new. Calls with the same shapes find what was traced."""


def child(threads: int) -> dict[str, float]:
    """Time the calls."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True).eval()

    def mean(tokens: Tensor) -> Tensor:
        return layer(tokens.unsqueeze(0)).mean()

    laplacian = jacfn.laplacian(mean, differentiable=False, strict=True)
    seconds = {}
    with plain():
        for count, names in ((TOKENS, (FIRST, AGAIN)), (TOKENS + 1, (OTHER, OTHER_AGAIN))):
            x = torch.randn(count, WIDTH)
            for name in names:
                _, seconds[name] = timing.once(lambda x=x: laplacian(x))
    return seconds


def measure(threads: int) -> dict[str, Any]:
    """In a new process: seconds of each call, or ``{"error": ...}``."""
    return children.run("trace", module="benchmarks.second_order", threads=threads)


def section(measured: dict[str, Any]) -> str:
    """The calls, and the target."""
    title = [heading("Tracing"), prose(HOW)]
    if "error" in measured:
        return "\n\n".join([*title, f"failed: {measured['error']}"])
    rows = [[name, tables.significant(seconds)] for name, seconds in measured.items()]
    verdict = "met" if measured[FIRST] < MOST else "missed"
    wanted = [f"{FIRST}, seconds", f"< {MOST:g}", tables.significant(measured[FIRST]), verdict]
    return "\n\n".join([*title, tables.grid(["call", "seconds"], rows), targets([wanted])])
