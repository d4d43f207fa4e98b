"""Which calls are replaced, by what, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from jacfn._errors import JacfnError

Operation = Callable[..., Any]
Replacement = Callable[..., Any]
Entered = TypeVar("Entered", bound=Replacement)

NESTED: dict[Operation, Replacement] = {}  # where two or more derivatives are under way
MAPPED: dict[Operation, Replacement] = {}  # there, and where a derivative is mapped over samples
ALWAYS: dict[Operation, Replacement] = {}


def replaces(table: dict[Operation, Replacement], *operations: Operation) -> Callable[[Entered], Entered]:
    """Enter the decorated function as the replacement of ``operations``."""

    def register(replacement: Entered) -> Entered:
        table.update(dict.fromkeys(operations, replacement))
        return replacement

    return register


def refused(name: str, instead: str) -> Replacement:
    """For what nobody needs under two derivatives, and PyTorch gets silently wrong there."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise JacfnError(f"{name} is silently wrong in PyTorch under these transforms: use {instead}")

    return refuse


def in_place(replacement: Replacement) -> Replacement:
    """The in-place form of a replacement."""

    def replace(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return input.copy_(replacement(input.clone(), *args, **kwargs))

    return replace
