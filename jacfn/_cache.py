"""The one piece of global state (L0): what was learnt about a function, kept while the function lives.

Keyed by the identity of the function, weakly (a bound method by its instance and its function), then by an abstract
signature of the call. A lambda made afresh for each call is a new function each time and learns anew.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

_LIMIT = 32  # entries for one function; the oldest goes first
_learnt: dict[int, tuple[weakref.ref[Any], dict[Hashable, Any]]] = {}  # by identity: a function need not be hashable

T = TypeVar("T")


def remember(fn: Callable[..., Any], signature: Hashable | None, learn: Callable[[], T]) -> T:
    """What ``learn()`` returned for this function and signature the first time."""
    entries = _entries(fn) if signature is not None else None
    if entries is None:
        return learn()
    key = (getattr(fn, "__func__", None), signature)
    if key not in entries:
        store(fn, signature, learn())
    return cast(T, entries[key])


def store(fn: Callable[..., Any], signature: Hashable | None, value: object) -> None:
    """Put ``value`` in the place of what was learnt before."""
    entries = _entries(fn) if signature is not None else None
    if entries is None:
        return
    entries[(getattr(fn, "__func__", None), signature)] = value
    while len(entries) > _LIMIT:
        del entries[next(iter(entries))]


def _entries(fn: Callable[..., Any]) -> dict[Hashable, Any] | None:
    if torch.compiler.is_compiling():
        return None
    owner = getattr(fn, "__self__", fn)
    if id(owner) not in _learnt:
        try:
            reference = weakref.ref(owner, functools.partial(_forget, id(owner)))
        except TypeError:  # not to be referenced weakly
            return None
        _learnt[id(owner)] = reference, {}
    return _learnt[id(owner)][1]


def _forget(number: int, _: Any) -> None:
    _learnt.pop(number, None)
