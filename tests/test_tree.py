"""Prefixes of trees: an entry for each leaf, found by key."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch

from jacfn import _tree, jac_fwd, jac_rev, jacobian, jacobian_operator

Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("prefix", "tree", "wanted"),
    [
        (7, {"b": 0, "a": [0, 0]}, [7, 7, 7]),
        (None, {"b": 0, "a": [0, 0]}, [None, None, None]),
        ({"a": 1, "b": 2}, {"b": 0, "a": 0}, [2, 1]),
        ({"a": 1, "b": 2}, OrderedDict(b=0, a=0), [2, 1]),
        ({"a": None, "b": 2}, {"b": 0, "a": [0, 0]}, [2, None, None]),
        ({"a": {"y": 1, "x": None}, "b": 2}, {"b": 0, "a": {"x": [0, 0], "y": 0}}, [2, None, None, 1]),
        (({"a": 1, "b": None}, 0), ({"b": 0, "a": (0, {"z": 0})}, [0, 0]), [None, 1, 1, 0, 0]),
        (Point({"a": 1, "b": 2}, 3), Point({"b": 0, "a": 0}, [0]), [2, 1, 3]),
        ({"a": 1, "b": 2}, {"b": None, "a": 0}, [1]),
        ({"a": 1, "b": 2}, {"b": [None, 0], "a": {"x": None, "y": 0}}, [2, 1]),
    ],
)
def test_a_prefix_is_matched_by_key(prefix: Any, tree: Any, wanted: list[Any]) -> None:
    """A None of the prefix is an entry; one of the tree is no leaf."""
    assert _tree.broadcast_prefix(prefix, tree, "it") == wanted


def product(p: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of one sample: ``left`` has three numbers, ``right`` two."""
    return p["left"].sum() * p["right"].square()


@pytest.mark.parametrize("transform", [jac_rev, jac_fwd, jacobian])
@pytest.mark.parametrize(("left", "right"), [(0, 1), (None, 0), (1, None)])
def test_in_dims_are_matched_by_key(transform: Any, left: int | None, right: int | None) -> None:
    shapes = {name: (count,) for name, count in (("left", 3), ("right", 2))}
    dims = {"left": left, "right": right}
    whole = {
        name: torch.rand(*shape if dims[name] is None else (4, *shape) if dims[name] == 0 else (*shape, 4))
        for name, shape in shapes.items()
    }
    given, swapped = (transform(product, in_dims=(chosen,))(whole) for chosen in (dims, {"right": right, "left": left}))
    theirs = torch.func.vmap(torch.func.jacrev(product), in_dims=(dims,))(whole)
    for name in shapes:
        torch.testing.assert_close(given[name], theirs[name])
        torch.testing.assert_close(swapped[name], theirs[name])


def test_in_dims_of_an_operator_are_matched_by_key() -> None:
    data = {"t": torch.rand(4, 3), "x": torch.rand(3, 4)}
    weights = torch.rand(3)

    def fn(w: torch.Tensor, data: dict[str, torch.Tensor]) -> torch.Tensor:
        return (w * data["t"]).sum() * data["x"]

    wanted, swapped = (
        jacobian_operator(fn, weights, data, in_dims=(None, dims)).materialize()
        for dims in ({"t": 0, "x": 1}, {"x": 1, "t": 0})
    )
    torch.testing.assert_close(swapped, wanted)
