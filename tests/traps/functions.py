"""All cases: one for each way in which people call an operation, away from kinks and well conditioned."""

from __future__ import annotations

from . import algebra, elementwise, losses, networks, places, programs
from .case import Case

PARTS = (elementwise, networks, algebra, places, losses, programs)
CASES: dict[str, Case] = {case.name: case for part in PARTS for case in part.CASES}
assert len(CASES) == sum(len(part.CASES) for part in PARTS), "two cases of a name"
