"""pushforward and pullback: products with stacks of vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    Box,
    Pair,
    assert_same,
    chosen_jacobian,
    chunk_sizes,
    cnn,
    leaves_of,
    map_tree,
    ravel,
    rebuild,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from jacfn import make_functional, pullback, pushforward

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def _stack(tree: Any, size: int) -> Any:
    """A stack of random vectors like ``tree``: leaves ``(size, *leaf)``."""
    return map_tree(lambda leaf: torch.randn(size, *leaf.shape), tree)


def _as_matrix(stack: Any, size: int) -> Tensor:
    return torch.cat([leaf.reshape(size, leaf[:1].numel() if size else 0) for leaf in leaves_of(stack)], dim=1)


def _as_stack(matrix: Tensor, tree: Any) -> Any:
    leaves = leaves_of(tree)
    parts = matrix.split([leaf.numel() for leaf in leaves], dim=1)
    return rebuild(tree, [part.reshape(len(matrix), *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


@given(
    primals=st.lists(trees(), min_size=1, max_size=3).map(tuple),
    outputs=trees(),
    size=st.integers(1, 5),
    chunk_size=chunk_sizes(),
)
def test_products_with_the_chosen_jacobian(
    primals: tuple[Any, ...], outputs: Any, size: int, chunk_size: int | None
) -> None:
    chosen = chosen_jacobian(primals, outputs)
    J = chosen.matrix(primals)

    def fn(*args: Any) -> Any:
        return chosen.fn(args)

    V, U = _stack(primals, size), _stack(outputs, size)
    pushed = pushforward(fn, primals, V, chunk_size=chunk_size)
    pulled = pullback(fn, primals, U, chunk_size=chunk_size)
    assert_same(pushed, _as_stack(_as_matrix(V, size) @ J.T, outputs), **CLOSE)
    assert_same(pulled, _as_stack(_as_matrix(U, size) @ J, primals), **CLOSE)


def _case() -> tuple[Any, tuple[Any, ...]]:
    def fn(params: dict[str, Tensor], x: Tensor) -> Pair:
        hidden = torch.tanh(params["w"] @ x)
        return Pair(hidden, Box(hidden.sum() * params["b"], [x**2]))

    return fn, ({"w": torch.randn(4, 3), "b": torch.randn(2)}, torch.randn(3))


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 50])
def test_agrees_with_one_product_at_a_time(chunk_size: int | None) -> None:
    fn, primals = _case()
    value = fn(*primals)
    tangents, cotangents = _stack(primals, 5), _stack(value, 5)
    torch_fn = lambda *args: tuple(leaves_of(fn(*args)))  # noqa: E731  torch.func does not open dataclasses
    pushed = pushforward(fn, primals, tangents, chunk_size=chunk_size)
    pulled = pullback(fn, primals, cotangents, chunk_size=chunk_size)
    _, pull = torch.func.vjp(torch_fn, *primals)
    for i in range(5):
        tangent, cotangent = (map_tree(lambda leaf, i=i: leaf[i], tree) for tree in (tangents, cotangents))
        assert_same(map_tree(lambda leaf, i=i: leaf[i], pulled), pull(tuple(leaves_of(cotangent))), **CLOSE)
        out = torch.func.jvp(torch_fn, primals, tangent)[1]
        assert_same(map_tree(lambda leaf, i=i: leaf[i], pushed), rebuild(value, out), **CLOSE)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_value_and_aux(size: int, chunk_size: int | None) -> None:
    fn, primals = _case()

    def with_aux(*args: Any) -> Any:
        return fn(*args), {"n": 3, "x": args[1] + 1}

    value, aux = with_aux(*primals)
    for product, vectors, like in (
        (pushforward, _stack(primals, size), value),
        (pullback, _stack(value, size), primals),
    ):
        plain = product(fn, primals, vectors, chunk_size=chunk_size)
        assert_same(map_tree(lambda leaf: leaf[:0], plain), map_tree(lambda leaf: leaf.new_zeros(0, *leaf.shape), like))
        assert {len(leaf) for leaf in leaves_of(plain)} == {size}
        options = {"chunk_size": chunk_size, "return_value": True}
        assert_same(product(fn, primals, vectors, **options), (plain, value))
        assert_same(product(with_aux, primals, vectors, has_aux=True, chunk_size=chunk_size), (plain, aux))
        assert_same(product(with_aux, primals, vectors, has_aux=True, **options), (plain, (value, aux)))


def test_adjoint() -> None:
    """⟨U, J V⟩ = ⟨Uᵀ J, V⟩ on a network."""
    fn, params = make_functional(cnn().double(), batched=True)
    primals = (params, torch.randn(2, 1, 8, 8))
    V, U = _stack(primals, 3), torch.randn(3, 2, 4)
    pushed = pushforward(fn, primals, V)
    pulled = pullback(fn, primals, U)
    left = (pushed * U).sum((1, 2))
    right = sum((p * v).reshape(3, -1).sum(1) for p, v in zip(leaves_of(pulled), leaves_of(V), strict=True))
    torch.testing.assert_close(left, right)


def test_many_vectors_of_a_scalar_function() -> None:
    x = torch.randn(3)
    pushed = pushforward(lambda x: x.prod(), (x,), (torch.eye(3),))
    torch.testing.assert_close(pushed, torch.func.grad(lambda x: x.prod())(x))
    (pulled,) = pullback(lambda x: x.prod(), (x,), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(pulled, torch.outer(torch.tensor([1.0, 2.0]), pushed))


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_one_draw_for_the_whole_stack(chunk_size: int | None) -> None:
    def fn(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    x = torch.ones(30)
    options = {"chunk_size": chunk_size, "return_value": True}
    pushed, value = pushforward(fn, (x,), (torch.ones(3, 30),), randomness="same", **options)
    torch.testing.assert_close(pushed, value.expand(3, 30))
    (pulled,), value = pullback(fn, (x,), torch.ones(3, 30), **options)
    torch.testing.assert_close(pulled, value.expand(3, 30))


def test_devices(device: str) -> None:
    x, V = torch.randn(3, device=device), torch.randn(5, 3, device=device)
    assert_same(pushforward(torch.sin, (x,), (V,), chunk_size=2), V * x.cos())
    assert_same(pullback(torch.sin, (x,), V, chunk_size=2), (V * x.cos(),))


def test_second_derivatives() -> None:
    """The gradient of a product, by every route."""
    x, v = torch.randn(3), torch.randn(1, 3)

    def pushed(x: Tensor) -> Tensor:
        return pushforward(lambda x: x**3, (x,), (v,)).sum()

    def pulled(x: Tensor) -> Tensor:
        return pullback(lambda x: x**3, (x,), v)[0].sum()

    expected = 6 * x * v[0]
    for fn in (pushed, pulled):
        torch.testing.assert_close(torch.func.grad(fn)(x), expected)
        torch.testing.assert_close(torch.func.jacfwd(fn)(x), expected)
        y = x.clone().requires_grad_()
        fn(y).backward()
        torch.testing.assert_close(y.grad, expected)


def test_memory_budget() -> None:
    fn, params = make_functional(cnn().double(), batched=True)
    primals = (params, torch.randn(2, 1, 8, 8))
    V, U = _stack(primals, 30), torch.randn(30, 2, 4)
    assert_same(pushforward(fn, primals, V, memory="200KiB"), pushforward(fn, primals, V), **CLOSE)
    assert_same(pullback(fn, primals, U, memory="200KiB"), pullback(fn, primals, U), **CLOSE)


def test_ravel_order_is_that_of_the_leaves() -> None:
    """The stack axis leads; what is behind it stands as in the primal."""
    tree = {"b": torch.randn(2), "a": torch.randn(3)}
    pushed = pushforward(ravel, (tree,), (map_tree(lambda leaf: torch.diag(leaf)[:2], tree),))
    assert pushed.shape == (2, 5)
