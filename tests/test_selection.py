"""rows and columns: the right places, in the asked order, and nothing else computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    assert_same,
    chosen_jacobian,
    chunk_sizes,
    leaves_of,
    mlp,
    places_of,
    ravel,
    rebuild,
    selectors,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jacfn import jac_fwd, jac_rev, make_functional

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


# --- the right places -----------------------------------------------------------------------------


def _cut(matrix: Tensor, tree: Any, axis: int) -> list[Tensor]:
    """The blocks of a matrix that belong to the leaves of ``tree``, along one axis."""
    return list(matrix.split([leaf.numel() for leaf in leaves_of(tree)], dim=axis))


@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes(), data=st.data())
def test_rows(inputs: Any, outputs: Any, chunk_size: int | None, data: st.DataObject) -> None:
    fn, matrix, _ = chosen_jacobian(inputs, outputs)
    total = ravel(outputs).numel()
    rows = data.draw(selectors(total).filter(lambda rows: rows is not None))
    chosen = matrix(inputs)[places_of(rows, total)]
    actual, value = jac_rev(fn, rows=rows, chunk_size=chunk_size, return_value=True)(inputs)
    assert_same(actual, _rows_as_tree(chosen, inputs), **CLOSE)
    assert_same(value, fn(inputs), **CLOSE)


def _rows_as_tree(rows: Tensor, inputs: Any) -> Any:
    """Rows ``(R, inputs)`` as a tree of leaves ``(R, *in)``."""
    parts = zip(_cut(rows, inputs, 1), leaves_of(inputs), strict=True)
    return rebuild(inputs, [part.reshape(len(rows), *leaf.shape) for part, leaf in parts])


@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes(), data=st.data())
def test_columns(inputs: Any, outputs: Any, chunk_size: int | None, data: st.DataObject) -> None:
    fn, matrix, _ = chosen_jacobian(inputs, outputs)
    total = ravel(inputs).numel()
    columns = data.draw(selectors(total).filter(lambda columns: columns is not None))
    chosen = matrix(inputs)[:, places_of(columns, total)]
    blocks = _cut(chosen, outputs, 0)
    expected = [
        block.reshape(*leaf.shape, chosen.shape[1]) for block, leaf in zip(blocks, leaves_of(outputs), strict=True)
    ]
    actual, value = jac_fwd(fn, columns=columns, chunk_size=chunk_size, return_value=True)(inputs)
    assert_same(actual, rebuild(outputs, expected), **CLOSE)
    assert_same(value, fn(inputs), **CLOSE)


@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes(), data=st.data())
def test_rows_of_each_leaf(inputs: Any, outputs: Any, chunk_size: int | None, data: st.DataObject) -> None:
    fn, matrix, _ = chosen_jacobian(inputs, outputs)
    rows = _draw_each(outputs, data)
    places = [places_of(part, leaf.numel()) for part, leaf in zip(rows, leaves_of(outputs), strict=True)]
    blocks = zip(_cut(matrix(inputs), outputs, 0), places, strict=True)
    expected = [_rows_as_tree(block[where], inputs) for block, where in blocks]
    actual = jac_rev(fn, rows=rebuild(outputs, rows), chunk_size=chunk_size)(inputs)
    assert_same(actual, rebuild(outputs, expected), **CLOSE)


@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes(), data=st.data())
def test_columns_of_each_leaf(inputs: Any, outputs: Any, chunk_size: int | None, data: st.DataObject) -> None:
    fn, matrix, _ = chosen_jacobian(inputs, outputs)
    columns = _draw_each(inputs, data)
    places = [places_of(part, leaf.numel()) for part, leaf in zip(columns, leaves_of(inputs), strict=True)]

    def of_output(block: Tensor, out: Tensor) -> Any:
        parts = zip(_cut(block, inputs, 1), places, strict=True)
        return rebuild(inputs, [part[:, where].reshape(*out.shape, len(where)) for part, where in parts])

    blocks = zip(_cut(matrix(inputs), outputs, 0), leaves_of(outputs), strict=True)
    expected = [of_output(block, out) for block, out in blocks]
    actual = jac_fwd(fn, columns=rebuild(inputs, columns), chunk_size=chunk_size)(inputs)
    assert_same(actual, rebuild(outputs, expected), **CLOSE)


def _draw_each(tree: Any, data: st.DataObject) -> list[Any]:
    wanted = [selectors(leaf.numel()).filter(lambda part: part is not None) for leaf in leaves_of(tree)]
    return [data.draw(part) for part in wanted]


FUNCTION, PARAMS = make_functional(mlp(3, 5, 4))
PARAMS = {name: value.double() for name, value in PARAMS.items()}  # 44 weights
SELECTORS: list[Any] = [2, -1, slice(1, 3), slice(None, None, -1), torch.tensor([3, 0, 3]), np.array([1]), range(2)]
NAMES = ["int", "negative", "slice", "reversed", "repeated", "numpy", "range"]


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("rows", SELECTORS, ids=NAMES)
def test_rows_of_samples(rows: Any, chunk_size: int | None) -> None:
    x = torch.randn(6, 3)
    whole = torch.func.vmap(torch.func.jacrev(FUNCTION), (None, 0))(PARAMS, x)  # (6, 4, *in)
    expected = {name: leaf[:, places_of(rows, 4)] for name, leaf in whole.items()}
    assert_same(jac_rev(FUNCTION, in_dims=(None, 0), rows=rows, chunk_size=chunk_size)(PARAMS, x), expected, **CLOSE)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("columns", SELECTORS, ids=NAMES)
def test_columns_of_samples(columns: Any, chunk_size: int | None) -> None:
    x = torch.randn(6, 3)
    whole = torch.func.vmap(torch.func.jacrev(FUNCTION), (None, 0))(PARAMS, x)
    flat = torch.cat([leaf.reshape(6, 4, -1) for leaf in whole.values()], dim=2)
    jac = jac_fwd(FUNCTION, in_dims=(None, 0), columns=columns, chunk_size=chunk_size)(PARAMS, x)
    assert_same(jac, flat[:, :, places_of(columns, flat.shape[2])], **CLOSE)


def test_columns_of_several_arguments() -> None:
    """argnums=(0, 1): one axis over both arguments, or a tuple with a selection for each leaf of each."""

    def fn(a: dict[str, Tensor], b: Tensor) -> Tensor:
        return a["u"] * b + a["v"] ** 2

    a, b = {"v": torch.randn(2), "u": torch.randn(2)}, torch.randn(2)
    whole = torch.func.jacrev(fn, (0, 1))(a, b)
    flat = torch.cat([whole[0]["v"], whole[0]["u"], whole[1]], dim=1)
    assert_same(jac_fwd(fn, (0, 1), columns=slice(1, 5))(a, b), flat[:, 1:5])
    wanted = ({"v": 1, "u": slice(0, 0)}, torch.tensor([1, 0]))
    expected = ({"v": whole[0]["v"][:, 1:], "u": torch.zeros(2, 0)}, whole[1][:, [1, 0]])
    assert_same(jac_fwd(fn, (0, 1), columns=wanted)(a, b), expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
def test_index_dtypes(kind: torch.dtype) -> None:
    x = torch.randn(4)
    chosen = torch.tensor([3, 1], dtype=kind)
    assert_same(jac_rev(torch.sin, rows=chosen)(x), torch.diag(x.cos())[[3, 1]])


def test_devices(device: str) -> None:
    """Places may stand on the CPU or beside the data."""
    x = torch.randn(5, 4, device=device)
    expected = torch.diag_embed(x.cos())
    for places in (torch.tensor([3, 0]), torch.tensor([3, 0], device=device)):
        assert_same(jac_rev(torch.sin, in_dims=0, rows=places)(x), expected[:, [3, 0]])
        assert_same(jac_fwd(torch.sin, in_dims=0, columns=places, chunk_size=1)(x), expected[:, :, [3, 0]])


def test_selection_of_nothing_still_gives_value_and_aux() -> None:
    def fn(x: Tensor) -> tuple[Tensor, str]:
        return x**2, "aux"

    nothing = slice(0, 0)
    x = torch.randn(3)
    for jac, (value, aux) in (
        jac_rev(fn, rows=nothing, has_aux=True, return_value=True)(x),
        jac_fwd(fn, columns=nothing, has_aux=True, return_value=True)(x),
    ):
        assert jac.numel() == 0
        assert 0 in jac.shape
        torch.testing.assert_close(value, x**2)
        assert aux == "aux"


# --- nothing else computed ------------------------------------------------------------------------


def _flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _wide() -> tuple[Callable[..., Any], dict[str, Tensor], Tensor]:
    fn, params = make_functional(mlp(8, 16, 100))
    return fn, params, torch.randn(8)


@pytest.mark.parametrize("rows", [slice(3, 5), torch.tensor([70, 2]), slice(None, None, 50)])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_rows_cost_their_backward_passes(rows: Any, chunk_size: int | None) -> None:
    """Two rows of a hundred: one forward and two backward passes."""
    fn, params, x = _wide()
    value, pull = torch.func.vjp(fn, params, x)
    forward = _flops(lambda: fn(params, x))
    backward = _flops(lambda: pull(torch.ones_like(value)))
    work = _flops(lambda: jac_rev(fn, (0, 1), rows=rows, chunk_size=chunk_size)(params, x))
    assert work <= 1.03 * (forward + 2 * backward)


@pytest.mark.parametrize("rows", [2, torch.tensor([70, 2, 2])])
def test_rows_of_samples_cost_their_backward_passes(rows: Any) -> None:
    fn, params, _ = _wide()
    x = torch.randn(5, 8)
    whole = _flops(lambda: jac_rev(fn, in_dims=(None, 0))(params, x))
    some = _flops(lambda: jac_rev(fn, in_dims=(None, 0), rows=rows)(params, x))
    assert some < 0.05 * whole


@pytest.mark.parametrize("columns", [slice(5, 7), torch.tensor([200, 3]), slice(0, 2000, 1000)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_columns_cost_their_forward_passes(columns: Any, chunk_size: int | None) -> None:
    """Two columns of 1844: the value, and two tangents that cost as much again (twice through a product)."""
    fn, params, x = _wide()
    forward = _flops(lambda: fn(params, x))
    work = _flops(lambda: jac_fwd(fn, columns=columns, chunk_size=chunk_size)(params, x))
    assert work <= 1.03 * (forward + 2 * 2 * forward)


def test_leaves_without_a_column_get_no_tangent() -> None:
    """A column of the last layer: no tangent goes through the first."""
    fn, params = make_functional(mlp(40, 60, 1))
    x = torch.randn(40)
    forward = _flops(lambda: fn(params, x))
    columns = {name: slice(0, 0) for name in params} | {"2.bias": 0, "2.weight": slice(0, 1)}
    for wanted in (columns, -2):
        work = _flops(lambda wanted=wanted: jac_fwd(fn, columns=wanted)(params, x))
        assert work < 1.1 * forward


def test_other_leaves_do_not_even_meet_the_selected() -> None:
    """fn is called with plain tensors, not with duals of zero, in the places of the other leaves."""
    seen = []

    def fn(tree: dict[str, Tensor]) -> Tensor:
        seen.append({key: torch.func.debug_unwrap(leaf) is leaf for key, leaf in tree.items()})
        return tree["a"] * tree["b"]

    jac_fwd(fn, columns={"a": 0, "b": slice(0, 0)})({"a": torch.randn(2), "b": torch.randn(2)})
    assert seen == [{"a": False, "b": True}]


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_function_is_called_once_for_all_rows(chunk_size: int | None) -> None:
    calls = []

    def fn(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin()

    jac_rev(fn, chunk_size=chunk_size, return_value=True)(torch.randn(6))
    assert len(calls) == 1


@pytest.mark.parametrize(("chunk_size", "expected"), [(None, 1), (4, 2), (1, 6)])
def test_function_is_called_once_for_each_chunk_of_columns(chunk_size: int | None, expected: int) -> None:
    calls = []

    def fn(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin()

    jac_fwd(fn, chunk_size=chunk_size, return_value=True)(torch.randn(6))
    assert len(calls) == expected
