"""Pytrees (L0): optree in the namespace ``jacfn``, where dictionaries keep insertion order.

Columns of a Jacobian then stand in the order of ``module.parameters()``, not in alphabetical order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from jacfn._errors import JacfnValueError
from jacfn._torch import torch_registration

NAMESPACE = "jacfn"

# Entered once and for good: the mode belongs to the namespace, and entering it inside a compiled region fails.
# The name keeps the context manager alive: collected as garbage, it would leave the mode.
_INSERTION_ORDER = optree.dict_insertion_ordered(True, namespace=NAMESPACE)
_INSERTION_ORDER.__enter__()


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a call's arguments or result: of lists and tuples, nested as they may be, in order."""
    if isinstance(value, (tuple, list)):
        return [x for item in value for x in tensors_in(item)]
    return [value] if isinstance(value, Tensor) else []


class LeafType(NamedTuple):
    """What a leaf looks like (kept instead of the leaf, which may be a wrapper that dies with its transform)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, leaf: Tensor) -> LeafType:
        """What this leaf looks like."""
        return cls(tuple(leaf.shape), leaf.dtype, leaf.device)


def flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """The leaves of ``tree`` and its structure; dataclasses and what torch has registered are opened, too."""
    while True:
        leaves, spec = optree.tree_flatten(tree, namespace=NAMESPACE)
        closed = {type(leaf) for leaf in leaves if not isinstance(leaf, Tensor)}
        if not any([_register(kind) for kind in closed]):
            return leaves, spec


def unflatten(spec: optree.PyTreeSpec, leaves: Sequence[Any]) -> Any:
    """The tree of structure ``spec`` with these leaves."""
    return optree.tree_unflatten(spec, leaves)


def leaf_names(spec: optree.PyTreeSpec) -> list[str]:
    """A readable name for every leaf, such as ``['0.weight']``; empty for a tree that is one leaf."""
    return [accessor.codify("") for accessor in spec.accessors()]


def dotted_names(spec: optree.PyTreeSpec) -> list[str]:
    """The same as in a ``state_dict``, such as ``['0.weight']``; as :func:`leaf_names` where that is ambiguous."""
    names = [".".join(map(str, path)) for path in spec.paths()]
    return names if len(set(names)) == len(names) else leaf_names(spec)


def flatten_like(spec: optree.PyTreeSpec, tree: Any, what: str) -> list[Any]:
    """The leaves of ``tree``, which must have structure ``spec``; ``what`` names it in the error."""
    flatten(tree)  # registers dataclasses on the way
    try:
        return list(spec.flatten_up_to(tree))
    except (ValueError, TypeError) as error:
        raise JacfnValueError(
            f"{what} must have the structure {spec}, got {optree.tree_structure(tree, namespace=NAMESPACE)}"
        ) from error


def broadcast_prefix(prefix: Any, tree: Any, what: str) -> list[Any]:
    """``prefix`` repeated to one entry a leaf of ``tree``; ``None`` is an entry, not a missing subtree."""
    try:
        repeated = optree.tree_broadcast_prefix(prefix, tree, none_is_leaf=True, namespace=NAMESPACE)
        leaves, spec = optree.tree_flatten(tree, none_is_leaf=True, namespace=NAMESPACE)
        entries = spec.flatten_up_to(repeated)  # by key: dictionaries may have another order than the prefix
    except ValueError as error:
        raise JacfnValueError(
            f"{what} must be a prefix of the structure of the arguments, got {prefix!r}: {error}"
        ) from error
    return [entry for entry, leaf in zip(entries, leaves, strict=True) if leaf is not None]


def _register(kind: type) -> bool:
    """Register ``kind`` with optree if torch knows it as a pytree or it is a dataclass."""
    known = torch_registration(kind)
    if known is not None:
        flatten_fn, unflatten_fn = known
        optree.register_pytree_node(
            kind,
            lambda node: flatten_fn(node)[:2],
            lambda context, children: unflatten_fn(list(children), context),
            namespace=NAMESPACE,
        )
        return True
    if dataclasses.is_dataclass(kind):
        _register_dataclass(kind)
        return True
    return False


def _register_dataclass(kind: type) -> None:
    names = tuple(field.name for field in dataclasses.fields(kind))

    def flatten_fn(node: Any) -> tuple[list[Any], None, tuple[str, ...]]:
        return [getattr(node, name) for name in names], None, names

    def unflatten_fn(_: Any, children: Any) -> Any:
        # Not through __init__: a check in there was written for values, and Jacobians stand in their place.
        node: Any = object.__new__(kind)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    optree.register_pytree_node(
        kind,
        flatten_fn,
        unflatten_fn,
        path_entry_type=optree.DataclassEntry,
        namespace=NAMESPACE,
    )
