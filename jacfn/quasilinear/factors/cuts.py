"""Ranges that cut an axis into pieces (L2)."""

from __future__ import annotations


def cuts(total: int, step: int) -> list[slice]:
    """Slices of ``range(total)`` of at most ``step``, and of one at least; a single empty one of nothing."""
    step = max(step, 1)
    return [slice(start, min(start + step, total)) for start in range(0, max(total, 1), step)]
