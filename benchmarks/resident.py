"""The peak of this process's resident memory over one call (Linux)."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class _Sampler(threading.Thread):
    """Reads the resident size every millisecond: what remains where the kernel's own mark cannot be reset."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self.done.wait(0.001):
            self.peak = max(self.peak, _status("VmRSS"))


def peak_growth(call: Callable[[], T]) -> tuple[T, int, float]:
    """The call's result, by how many bytes the resident size grew at its peak, and the seconds it took."""
    gc.collect()
    sampler = None if _reset_high_water_mark() else _Sampler()
    before = _status("VmRSS")
    if sampler:
        sampler.start()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    if sampler:
        sampler.done.set()
        sampler.join()
        return result, sampler.peak - before, seconds
    return result, _status("VmHWM") - before, seconds
