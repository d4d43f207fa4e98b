"""JacobianOperator against dense Jacobians by torch alone: every network, method, budget and vector."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    CASES,
    HEAVY,
    METHODS,
    PAIRS,
    Case,
    check_all,
    close,
    dense,
    flat_leaves,
    from_blocks,
    operator,
    ravel,
    smallest_budget,
    some,
)
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import JacobianOperator, jacobian_operator, make_functional

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_question(name: str, method: str) -> None:
    case = CASES[name](3)
    A, J = dense(case), operator(case, method)
    check_all(J, A, f"{name} {method}")
    assert J.dtype == D
    assert J.device.type == "cpu"
    close(ravel(J.value, 3), torch.cat([ravel(case.fn(case.params, sample)) for sample in case.x]))


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "without closed form"])
def test_auto_and_repr(name: str) -> None:
    case = CASES[name](2)
    J = operator(case)
    check_all(J, dense(case), name, ("gram", "J @ v", "row_norms"))
    text = repr(J)
    assert f"{J.shape[0]} x {J.shape[1]}" in text
    assert J.method in text
    assert "float64" in text
    assert "MiB" in text


@settings(max_examples=10)
@given(
    name=st.sampled_from(sorted(set(CASES) - set(HEAVY))),
    method=st.sampled_from(METHODS),
    n=st.integers(1, 5),
    chunk_size=st.none() | st.integers(1, 5),
)
def test_samples_and_chunks(name: str, method: str, n: int, chunk_size: int | None) -> None:
    case = CASES[name](n)
    A = dense(case)
    J = operator(case, method, chunk_size=chunk_size)
    check_all(J, A, f"{name} {method} {n} {chunk_size}")


@methods
@pytest.mark.parametrize("name", ["mlp", "several outputs", "without closed form"])
def test_no_samples(name: str, method: str) -> None:
    """N = 0: shapes everywhere, and nothing in them."""
    case = CASES[name](0)
    J = operator(case, method)
    check_all(J, torch.zeros(0, ravel(case.params).numel(), dtype=D))
    assert from_blocks(J).shape == J.shape
    assert J.weighted(torch.zeros(0, J.rows.width, J.rows.width, dtype=D)).gram().shape == (0, 0)
    assert J.rmv(torch.zeros(2, 0, dtype=D)).shape == (2, J.shape[1])
    assert all(leaf.shape[0] == 0 for leaf in flat_leaves(J.tree()))


@methods
def test_no_sample_axis(method: str) -> None:
    """Without in_dims: a batch is one function."""
    case = CASES["mlp"](4)

    def batched(p: Any, x: Tensor) -> Tensor:
        return torch.func.vmap(case.fn, (None, 0))(p, x)

    J = jacobian_operator(batched, case.params, case.x, method=method)
    check_all(J, dense(case), method)
    K = J.shape[0]
    W = some(K, K)
    close(J.normal(W.unsqueeze(0)), dense(case).T @ W @ dense(case))
    close(J.weighted(W).materialize(), W @ dense(case))


@pytest.mark.slow
@settings(max_examples=6)
@given(
    name=st.sampled_from(["mlp", "embedding", "without closed form", "several outputs"]),
    method=st.sampled_from(METHODS),
    factor=st.sampled_from([1.0, 1.6, 3.0, 8.0]),
    n=st.integers(1, 4),
)
def test_budgets(name: str, method: str, factor: float, n: int) -> None:
    case = CASES[name](n)
    A = dense(case)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    J = operator(case, method, memory=int(factor * smallest))
    check_all(J, A, f"{name} {method} {factor}", ("materialize", "gram", "normal", "J @ V", "J.T @ U", "row_norms"))
    close(from_blocks(J, chunk_size=2), A)


@pytest.mark.parametrize("method", [*(m for m in METHODS if m != "fwd"), pytest.param("fwd", marks=pytest.mark.slow)])
def test_smallest_budget_streams(method: str) -> None:
    """Nothing is held, there are several blocks, and they come in order each time."""
    case = CASES["mlp"](40)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    J = operator(case, method, memory=smallest)
    blocks = list(J.source.blocks())
    assert len(blocks) > 1
    assert J.source.held == 0
    assert "holds 0 MiB" in repr(J)
    starts = [block.rows.start for block in blocks]
    assert starts == sorted(starts)
    assert [b.rows for b in J.source.blocks(2)] == [b.rows for b in blocks[2:]]
    check_all(J, dense(case), method)
    roomy = operator(case, method, memory="64MiB")
    assert (roomy.source.held > 0) == (method != "products")


@methods
def test_adjoint_and_gram(method: str) -> None:
    case = CASES["cnn"](3)
    J = operator(case, method)
    v, u = some(J.shape[1]), some(J.shape[0])
    close((J @ v) @ u, v @ (J.T @ u))
    G = J.gram()
    assert torch.equal(G, G.T)
    assert torch.linalg.eigvalsh(G)[0] > -1e-10 * G.trace()
    N = J.normal()
    close(N, N.T)
    assert J.T.shape == J.shape[::-1]
    assert J.T.T is J
    close(J.T.mv(u), J.T @ u)
    close(J.T.rmv(v), J @ v)


@settings(max_examples=20)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    kind=st.sampled_from(["linear", "convolution", "table"]),
    method=st.sampled_from(METHODS),
    n=st.integers(1, 4),
    chunk_size=st.none() | st.integers(1, 4),
)
def test_adjoint(widths: list[int], kind: str, method: str, n: int, chunk_size: int | None) -> None:
    """``<J v, u> = <v, Jᵀ u>`` of networks of any widths."""
    torch.manual_seed(sum(widths))
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Conv1d(i, o, 2, padding=1) if kind == "convolution" else nn.Linear(i, o), nn.Tanh()]
    x = torch.randn(n, widths[0], 3, dtype=D) if kind == "convolution" else torch.randn(n, widths[0], dtype=D)
    if kind == "table":
        layers, x = [nn.Embedding(5, widths[0]), *layers], torch.randint(5, (n, 2))
    case = Case(*make_functional(nn.Sequential(*layers).to(D)), x)
    J = operator(case, method, chunk_size=chunk_size)
    for v, u in ((some(J.shape[1]), some(J.shape[0])), (some(2, J.shape[1]), some(2, J.shape[0]))):
        close((J.mv(v) * u).sum(-1), (v * J.rmv(u)).sum(-1))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "products"])
def test_held_rows_need_no_other_pass(method: str) -> None:
    case, calls = CASES["mlp"](4), 0

    def fn(p: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return case.fn(p, x)

    J = jacobian_operator(fn, case.params, case.x, in_dims=(None, 0), method=method)
    calls = 0
    check_all(J, dense(case), method)
    J.mv(case.params)
    J.rmv(J.value)
    assert not calls


# --- vectors --------------------------------------------------------------------------------------


def _stack(tree: Any, length: int | None) -> Any:
    """Random vectors of the tree's structure."""
    if isinstance(tree, Tensor):
        return some(*(() if length is None else (length,)), *tree.shape)
    if isinstance(tree, dict):
        return {key: _stack(part, length) for key, part in tree.items()}
    return type(tree)(_stack(part, length) for part in tree)


@pytest.mark.parametrize("name", ["mlp", "several outputs", "tied"])
@methods
def test_pytrees_and_stacks(name: str, method: str) -> None:
    """Flat gives flat, a pytree a pytree, a stack a stack."""
    case = CASES[name](3)
    A, J = dense(case), operator(case, method)
    value = torch.func.vmap(case.fn, (None, 0))(case.params, case.x)
    for length in (None, 1, 3):
        lead = () if length is None else (length,)
        v, u = _stack(case.params, length), _stack(value, length)
        flat_v = torch.cat([leaf.reshape(*lead, -1) for leaf in flat_leaves(v)], -1)
        flat_u = torch.cat([leaf.reshape(*lead, 3, -1) for leaf in flat_leaves(u)], -1).flatten(-2)
        product, back = J.mv(v), J.rmv(u)
        _same_structure(product, value, lead)
        _same_structure(back, case.params, lead)
        close(torch.cat([leaf.reshape(*lead, 3, -1) for leaf in flat_leaves(product)], -1).flatten(-2), flat_v @ A.T)
        close(torch.cat([leaf.reshape(*lead, -1) for leaf in flat_leaves(back)], -1), flat_u @ A)
        close(J.mv(flat_v), flat_v @ A.T)
        close(J.rmv(flat_u), flat_u @ A)
        W = some(3, A.shape[0] // 3, A.shape[0] // 3)
        wanted = flat_v @ A.T @ torch.block_diag(*W).T @ A
        ggn = J.ggn_mv(v, W)
        _same_structure(ggn, case.params, lead)
        close(torch.cat([leaf.reshape(*lead, -1) for leaf in flat_leaves(ggn)], -1), wanted)
    assert J.mv(torch.zeros(0, J.shape[1], dtype=D)).shape == (0, J.shape[0])


def _same_structure(actual: Any, like: Any, lead: tuple[int, ...]) -> None:
    assert isinstance(like, Tensor) or type(actual) is type(like)
    if isinstance(like, dict):
        assert list(actual) == list(like)
    assert [tuple(leaf.shape) for leaf in flat_leaves(actual)] == [(*lead, *leaf.shape) for leaf in flat_leaves(like)]


@pytest.mark.parametrize("positions", [1, 2])
def test_stacks_of_wide_layers(positions: int) -> None:
    """From 64 outputs on vectors are multiplied one by one where each is contiguous."""
    w, x = some(65, 3), some(4, positions, 3)
    J = jacobian_operator(lambda w, x: F.linear(x, w).tanh()[:, :2], w, x, in_dims=(None, 0), method="quasilinear")
    A = dense(Case(lambda w, x: F.linear(x, w).tanh()[:, :2], w, x))
    V = some(5, 3 * 65)
    close(J.mv(V), V @ A.T)
    close(J.mv(V.view(5, 65, 3)).reshape(5, -1), V @ A.T)
    close(J @ V.T.contiguous(), A @ V.T)
    close(torch.func.grad(lambda V: J.mv(V).square().sum())(V), 2 * V @ A.T @ A)
    close(torch.func.vmap(lambda c: J.mv(c * V))(some(2)), some(2)[:, None, None] * (V @ A.T))


@methods
def test_argnums(method: str) -> None:
    """Several arguments, in the order of argnums; another one carries the samples."""
    w, b, x = some(2, 3), {"b": some(2)}, some(4, 3)

    def fn(w: Tensor, x: Tensor, b: Any) -> Tensor:
        return F.linear(x, w, b["b"]).tanh()

    J = jacobian_operator(fn, w, x, b, argnums=(2, 0), in_dims=(None, 0, None), method=method)
    A = dense(Case(lambda p, x: fn(p[1], x, p[0]), (b, w), x))
    check_all(J, A, method)
    assert J.names == ("0.b", "1")
    back = J.rmv(torch.ones(4, 2, dtype=D))
    assert isinstance(back, tuple)
    close(back[1], (torch.ones(8, dtype=D) @ A)[2:].view(2, 3))
    one = jacobian_operator(fn, w, x, b, argnums=-3, in_dims=(None, 0, None), method=method)
    close(one.materialize(), A[:, 2:])


@methods
def test_tree(method: str) -> None:
    for name in ("several outputs", "mlp"):
        for n in (3, 1):
            case = CASES[name](n)
            J = operator(case, method)
            wanted = torch.func.vmap(torch.func.jacrev(case.fn), (None, 0))(case.params, case.x)
            tree = J.tree()
            for mine, its in zip(flat_leaves(tree), flat_leaves(wanted), strict=True):
                close(mine, its)
    single = jacobian_operator(case.fn, case.params, case.x[0], method=method)
    for mine, its in zip(flat_leaves(single.tree()), flat_leaves(wanted), strict=True):
        close(mine, its[0])


@methods
def test_empty_leaf_and_no_outputs(method: str) -> None:
    p = {"none": torch.zeros(0, 3, dtype=D), "w": some(3)}
    J = jacobian_operator(lambda p, x: p["w"] * x + p["none"].sum(), p, some(2, 3), in_dims=(None, 0), method=method)
    check_all(J, torch.cat([x.diag() for x in some(2, 3)]), method)
    J = jacobian_operator(lambda p, x: p[:0] * x[:0], some(3), some(2, 3), in_dims=(None, 0), method=method)
    check_all(J, torch.zeros(0, 3, dtype=D), method)


def test_is_one_object() -> None:
    J = operator(CASES["mlp"](2))
    assert isinstance(J, JacobianOperator)
    assert hash(J) != hash(operator(CASES["mlp"](2)))
    assert J.names == ("0.weight", "0.bias", "2.weight", "2.bias")
