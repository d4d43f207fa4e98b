"""What stands in for a package that is not installed (L5)."""

from __future__ import annotations

from typing import Any, NoReturn

from jacfn._errors import JacfnError


class MissingPackageError(JacfnError, ImportError):
    """An adapter was asked for and its package is not there."""

    def __init__(self, package: str, command: str) -> None:
        super().__init__(f"this adapter needs {package}: {command}")


def stand_in(package: str, command: str) -> type:
    """A base class in place of the package's own: the adapter can be imported and described, but not made."""

    class Missing:
        def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise MissingPackageError(package, command)

    return Missing
