"""Measurements in processes of their own, so that what one leaves in memory does not count for the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from ..memory import ALLOCATOR

#: A measurement that takes more seconds than this is given up.
LIMIT = 300


def run(part: str, *, module: str = "benchmarks.operator", limit: int = LIMIT, **arguments: Any) -> dict[str, Any]:
    """Call the ``child`` of a module's part in a new process; what it returned, or ``{"error": ...}``."""
    command = [sys.executable, "-m", module, "--child", json.dumps([part, arguments])]
    try:
        done = subprocess.run(
            command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"ended with code {done.returncode}"}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
