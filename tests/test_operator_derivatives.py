"""Derivatives of what operators give: of the point, of weights and of vectors; and none where none are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import CASES, METHODS, QUESTIONS, close, dense, operator, ravel, smallest_budget, some
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from jacfn import JacfnError, jacobian_operator

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)
CASE = CASES["mlp"](3)
fn, P0, X = CASE.fn, CASE.params, CASE.x
A0 = dense(CASE)
W = some(3, 2, 2)
CHOSEN = torch.tensor([5, 0, 2, 2])
DERIVED: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "": (lambda J: J, lambda A: A),
    "rows": (lambda J: J.restrict(rows=CHOSEN), lambda A: A[CHOSEN]),
    "mixed": (lambda J: J.weighted(W), lambda A: torch.block_diag(*W) @ A),
    "sum": (lambda J: J + 2 * J, lambda A: 3 * A),
    "leaves": (lambda J: J.restrict(leaves=["2.weight", "0.bias"]), lambda A: torch.cat([A[:, 16:24], A[:, 12:16]], 1)),
}


def matrix(p: dict[str, Tensor], x: Tensor) -> Tensor:
    jac = vmap(jacrev(fn), (None, 0))(p, x)
    return torch.cat([leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in jac.values()], 1)


def gradients(value: Tensor, of: list[Tensor]) -> Tensor:
    """Zeros where there is no dependence."""
    found = torch.autograd.grad(value, of, allow_unused=True)
    return ravel([torch.zeros_like(x) if g is None else g for g, x in zip(found, of, strict=True)])


@methods
@pytest.mark.parametrize("question", QUESTIONS)
def test_of_the_point(question: str, method: str) -> None:
    """grad, jvp, vmap and backward, of parameters and samples."""
    ask, answer = QUESTIONS[question]

    def mine(p: Any, x: Tensor) -> Tensor:
        return ask(jacobian_operator(fn, p, x, in_dims=(None, 0), method=method)).sin().sum()

    def its(p: Any, x: Tensor) -> Tensor:
        return answer(matrix(p, x)).sin().sum()

    for argument in (0, 1):
        got, wanted = grad(mine, argument)(P0, X), grad(its, argument)(P0, X)
        close(ravel(got), ravel(wanted), "grad")
    close(jvp(lambda x: mine(P0, x), (X,), (X,))[1], jvp(lambda x: its(P0, x), (X,), (X,))[1], "jvp")
    stack = torch.stack([X, X.cos()])
    close(vmap(mine, (None, 0))(P0, stack), vmap(its, (None, 0))(P0, stack), "vmap")
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in P0.items()}
    leaves = list(tracked.values())
    close(gradients(mine(tracked, X), leaves), gradients(its(tracked, X), leaves), "backward")


@methods
@pytest.mark.parametrize("change", DERIVED)
@pytest.mark.parametrize("question", ["gram", "J.T @ U", "row_norms"])
def test_of_the_point_through_changes(question: str, change: str, method: str) -> None:
    """Also where blocks are made again for each use."""
    ask, answer = QUESTIONS[question]
    make, same = DERIVED[change]
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in P0.items()}
    leaves = list(tracked.values())
    wanted = answer(same(matrix(tracked, X)))
    mix = some(*wanted.shape)
    smallest = smallest_budget(lambda budget: operator(CASE, method, memory=budget))
    for memory in (None, int(1.5 * smallest)):
        got = ask(make(jacobian_operator(fn, tracked, X, in_dims=(None, 0), method=method, memory=memory)))
        close(got, wanted, f"value, memory={memory}")
        close(gradients((got * mix).sum(), leaves), gradients((wanted * mix).sum(), leaves), f"memory={memory}")
        wanted = answer(same(matrix(tracked, X)))


@methods
@pytest.mark.parametrize("question", ["materialize", "gram", "normal", "row_norms", "column_norms", "J @ V"])
@pytest.mark.parametrize("blocks", [False, True])
def test_of_weights(question: str, blocks: bool, method: str) -> None:
    """The operator is made outside of the transform."""
    ask, answer = QUESTIONS[question]
    w = W if blocks else some(6)

    def mine(w: Tensor) -> Tensor:
        return ask(J.weighted(w)).sin().sum()

    def its(w: Tensor) -> Tensor:
        return answer((torch.block_diag(*w) if blocks else torch.diag(w)) @ A0).sin().sum()

    J = operator(CASE, method)
    close(grad(mine)(w), grad(its)(w), "grad")
    close(jvp(mine, (w,), (w,))[1], jvp(its, (w,), (w,))[1], "jvp")
    close(vmap(mine)(torch.stack([w, w.cos()])), torch.stack([its(w), its(w.cos())]), "vmap")
    tracked = w.clone().requires_grad_()
    close(gradients(mine(tracked), [tracked]), grad(its)(w).reshape(-1), "backward")


@methods
def test_of_scales_and_vectors(method: str) -> None:
    J = operator(CASE, method)
    c, d, v, u = torch.tensor(3.0, dtype=D), some(26), some(26), some(6)
    pairs: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = {
        "scale": (lambda c: (J * c).materialize(), lambda c: A0 * c, c),
        "scale gram": (lambda c: (J / c).gram(), lambda c: A0 @ A0.T / c**2, c),
        "columns": (lambda d: J.column_weighted(d).gram(), lambda d: A0 * d @ (A0 * d).T, d),
        "normal": (lambda w: J.normal(w), lambda w: A0.T * w @ A0, u),
        "ggn_diagonal": (lambda w: J.ggn_diagonal(w), lambda w: (A0.T * w @ A0).diagonal(), u),
        "ggn_mv": (lambda w: J.ggn_mv(v, w), lambda w: A0.T @ (w * (A0 @ v)), u),
        "mv": (lambda v: J.mv(v), lambda v: A0 @ v, v),
        "@": (lambda v: J @ v, lambda v: A0 @ v, v),
        "T @": (lambda u: J.T @ u, lambda u: A0.T @ u, u),
    }
    for name, (mine, its, at) in pairs.items():
        close(grad(lambda t, f=mine: f(t).sin().sum())(at), grad(lambda t, f=its: f(t).sin().sum())(at), name)
        close(vmap(mine)(torch.stack([at, at.cos()])), torch.stack([its(at), its(at.cos())]), name)
        tracked = at.clone().requires_grad_()
        wanted = grad(lambda t, f=its: f(t).sin().sum())(at)
        close(gradients(mine(tracked).sin().sum(), [tracked]), wanted.reshape(-1), name)


@methods
def test_none_where_none_are_wanted(method: str) -> None:
    """differentiable=False and detach() leave no graph, of parameters or of tensors closed over."""
    c = some(3).requires_grad_()
    w = some(3).requires_grad_()
    for point in (w, w.detach()):
        free = jacobian_operator(lambda w: w.pow(2) * c, point, method=method, differentiable=False)
        tracked = jacobian_operator(lambda w: w.pow(2) * c, point, method=method)
        for J in (free, tracked.detach()):
            assert not J.value.requires_grad
            for name, (ask, _) in QUESTIONS.items():
                assert not ask(J).requires_grad, name
            out = torch.empty(3, 3, dtype=D)
            assert not J.materialize(out=out).requires_grad
            close(out, torch.diag(2 * point * c).detach())
        assert tracked.value.requires_grad
        for name, (ask, _) in QUESTIONS.items():
            assert ask(tracked).requires_grad, name
        with pytest.raises(JacfnError, match=r"out: this Jacobian carries derivatives.*detach\(\)"):
            tracked.materialize(out=out)


@methods
def test_zero_rows_and_columns_have_zero_derivatives(method: str) -> None:
    """As norms have them: not nan."""

    def outputs(w: Tensor, x: Tensor) -> Tensor:
        return torch.stack([(w[:2].pow(2) * x[:2]).sum(), (0 * w * x).sum()])

    for ask in (lambda J: J.row_norms(), lambda J: J.column_norms()):
        got = grad(lambda w, ask=ask: ask(jacobian_operator(outputs, w, X, in_dims=(None, 0), method=method)).sum())(
            some(3)
        )
        assert torch.isfinite(got).all()
        assert got[:2].abs().min() > 0


@methods
def test_rows_and_columns_of_which_only_some_carry_derivatives(method: str) -> None:
    """One output is linear in the parameters: its row is constant."""

    def outputs(w: Tensor, x: Tensor) -> Tensor:
        return torch.stack([(w * x).sum(), (w.pow(3) * x).sum()])

    w, x = some(3), some(2, 3)
    tracked = w.clone().requires_grad_()
    A = torch.stack([row for s in x for row in (s, 3 * w**2 * s)])
    smallest = smallest_budget(lambda b: jacobian_operator(outputs, w, x, in_dims=(None, 0), method=method, memory=b))
    for options in ({}, {"chunk_size": 1}, {"memory": smallest}):
        J = jacobian_operator(outputs, tracked, x, in_dims=(None, 0), method=method, **options)
        for name, (ask, answer) in QUESTIONS.items():
            close(ask(J).detach(), answer(A), f"{name} {options}")
        wanted = grad(lambda w: (3 * w**2 * x).square().sum())(w)
        close(gradients(J.materialize().square().sum(), [tracked]), wanted, str(options))


@methods
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_with_derivatives(method: str, chunk_size: int) -> None:
    """The columns of the last bias are constant."""
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in P0.items()}
    J = jacobian_operator(fn, tracked, X, in_dims=(None, 0), method=method, chunk_size=chunk_size)
    for name, (ask, answer) in QUESTIONS.items():
        close(ask(J).detach(), answer(A0), name)


@pytest.mark.parametrize("method", METHODS)
def test_of_vectors_where_the_point_carries_none(method: str) -> None:
    """Also of a detached operator: it has no derivatives itself, its products have those of the vectors."""
    p, x = {"w": torch.randn(4, 3, dtype=D)}, torch.randn(5, 3, dtype=D)
    J = jacobian_operator(lambda p, x: torch.tanh(p["w"] @ x), p, x, in_dims=(None, 0), method=method)
    v, ones = torch.randn(12, dtype=D), torch.ones(20, dtype=D)
    wanted = 2 * J.ggn_mv(v, ones)
    torch.testing.assert_close(torch.func.grad(lambda v: v @ J.ggn_mv(v, ones))(v), wanted)
    torch.testing.assert_close(torch.func.grad(lambda v: J.detach().mv(v).square().sum())(v), wanted)
    assert J.rmv(torch.ones(20, dtype=D, requires_grad=True)).requires_grad


ROOMS = {"dense": 1 << 20, "inner products": 900, "Lanczos": 8}  # bytes that lead to each way


@methods
@pytest.mark.parametrize("way", ROOMS)
def test_of_singular_values(way: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in P0.items()}
    leaves = list(tracked.values())

    def values(p: Any) -> Tensor:
        J = jacobian_operator(fn, p, X, in_dims=(None, 0), method=method)
        monkeypatch.setattr(J.source, "room", ROOMS[way])
        return J.singular_values(2).sin().sum()

    wanted = gradients(torch.linalg.svdvals(matrix(tracked, X))[:2].sin().sum(), leaves)
    torch.testing.assert_close(gradients(values(tracked), leaves), wanted, rtol=1e-6, atol=1e-6)
    if way == "Lanczos":
        with pytest.raises(JacfnError, match="SciPy, which cannot be transformed"):
            grad(values)(P0)
    else:
        torch.testing.assert_close(ravel(grad(values)(P0)), wanted, rtol=1e-6, atol=1e-6)


def test_of_singular_values_that_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are samples: an output that is zero has zero rows."""

    def outputs(w: Tensor, x: Tensor) -> Tensor:
        return torch.stack([(w.pow(2) * x).sum(), (0 * w * x).sum()])

    tracked = some(20).requires_grad_()
    J = jacobian_operator(outputs, tracked, some(2, 20), in_dims=(None, 0))
    monkeypatch.setattr(J.source, "room", 3 * 4**2 * 8)
    (got,) = torch.autograd.grad(J.singular_values(4).sum(), tracked)
    assert torch.isfinite(got).all()
    assert got.abs().min() > 0


def test_row_norms_of_rows_that_cancel() -> None:
    """Not nan, though sums of squares may come out below zero."""
    tokens = torch.randn(3, 1, 64, dtype=D).expand(3, 6, 64).contiguous()

    def fn(p: dict[str, Tensor], x: Tensor) -> Tensor:
        weights = torch.arange(48.0, dtype=D).view(6, 8)
        return (torch.nn.functional.linear(x, p["w"]).softmax(0) * weights).sum(0)

    norms = [
        jacobian_operator(fn, {"w": torch.randn(8, 64, dtype=D)}, tokens, in_dims=(None, 0)).row_norms()
        for _ in range(10)
    ]
    torch.testing.assert_close(torch.cat(norms), torch.zeros(240, dtype=D), atol=1e-5, rtol=0)
