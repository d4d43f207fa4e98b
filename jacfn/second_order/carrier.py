"""A jet in the shape of a tensor (L3), for ``fn`` to compute with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from jacfn._torch import wrapper
from jacfn.second_order.jet import Jet, UnseenError


class Engine(Protocol):
    """What runs the calls."""

    number: int  # those that begin later are further inside

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of torch."""


class Carrier(Tensor):
    """What torch is asked to do with it, ``engine`` does. It has no memory: what goes past the engine is an error."""

    jet: Jet
    engine: Engine
    shares: bool  # memory with another tensor, of which a change in place would have to tell
    has_rules = True  # of its own, which know no wrong derivatives

    @staticmethod
    def of(jet: Jet, engine: Engine) -> Carrier:
        """With the shape and the dtype of the value."""
        carrier = wrapper(Carrier, jet.value)
        carrier.__dict__.update(jet=jet, engine=engine, shares=False)
        return carrier

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """By the engine of the carriers among the arguments."""
        kwargs = kwargs or {}
        for kind in types:
            own, common = (getattr(x.__torch_function__, "__func__", None) for x in (kind, Tensor))
            if not issubclass(kind, Carrier) and own not in (None, common):
                raise UnseenError(f"fn uses {kind.__name__}, a tensor with functions of its own")
        return _innermost((args, kwargs))(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Only what went past the engine gets here."""
        raise UnseenError(f"fn hands a tensor to a transform of its own, or past torch's functions, to {func}")


def _innermost(tree: Any) -> Engine:
    """That of the carriers in there, or torch had not asked: of several, which belong to Laplacians inside each other.

    To the innermost one the carriers of others are tensors like any.
    """
    found: list[Engine] = []
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Carrier):
            found.append(item.__dict__["engine"])
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (tuple, list)):
            waiting += item
    if not found:
        raise UnseenError("fn hands a tensor over in a container that is no tuple, list or dict")
    return max(found, key=lambda engine: engine.number)
