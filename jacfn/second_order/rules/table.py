"""Where rules are entered (L3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Rule = Callable[..., Any]
Entered = TypeVar("Entered", bound=Rule)

RULES: dict[Any, Rule] = {}
"""The rule of an elementary operation takes its arguments, jets among them; NotImplemented: not for these."""

CONSTANT: set[Any] = set()
"""Operations whose floating-point results have no derivatives."""


def rule(*operations: Any) -> Callable[[Entered], Entered]:
    """Enter the decorated function as the rule of ``operations``."""

    def enter(function: Entered) -> Entered:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return enter
