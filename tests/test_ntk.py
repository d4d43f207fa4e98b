"""The neural tangent kernel against products of dense Jacobians: outputs, second sets, budgets, progress."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES, METHODS, PAIRS, Case, close, dense, ravel, smallest_budget, some
from torch import Tensor, nn

from jacfn import JacfnTypeError, JacfnValueError, make_functional, ntk

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)


def kernels(case: Case, other: Case | None = None) -> dict[str, Tensor]:
    """All three from dense matrices."""
    a = dense(case)
    b = a if other is None else dense(other)
    n, m = len(case.x), len((other or case).x)
    full = (a @ b.T).reshape(n, len(a) // max(n, 1), m, len(b) // max(m, 1)).transpose(1, 2)
    diagonal = full.diagonal(dim1=2, dim2=3)
    return {"full": full, "trace": diagonal.sum(-1), "diagonal": diagonal}


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_kernels(name: str, method: str) -> None:
    case = CASES[name](4)
    other = case._replace(x=case.x[1:3])
    for outputs, wanted in kernels(case).items():
        kernel = ntk(case.fn, case.params, case.x, outputs=outputs, method=method)
        close(kernel, wanted, f"{name} {outputs}", scale=10)
    for outputs, wanted in kernels(case, other).items():
        kernel = ntk(case.fn, case.params, case.x, other.x, outputs=outputs, method=method)
        close(kernel, wanted, f"{name} {outputs} of two", scale=10)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    name=st.sampled_from(["mlp", "cnn", "positions", "embedding", "tied", "without closed form", "several outputs"]),
    method=st.sampled_from(METHODS),
    n=st.integers(1, 4),
    m=st.none() | st.integers(1, 3),
    factor=st.sampled_from([1.0, 1.5, 4.0]),
    outputs=st.sampled_from(["full", "trace", "diagonal"]),
)
def test_budgets(name: str, method: str, n: int, m: int | None, factor: float, outputs: str) -> None:
    """Also where only some rows of a sample fit at once."""
    case = CASES[name](n)
    other = None if m is None else CASES[name](m)

    def kernel(budget: int) -> Tensor:
        x2 = None if other is None else other.x
        return ntk(case.fn, case.params, case.x, x2, outputs=outputs, method=method, memory=budget)

    budget = int(factor * smallest_budget(kernel))
    close(kernel(budget), kernels(case, other)[outputs], f"{name} {method} {factor} {outputs}", scale=10)


@pytest.mark.parametrize(
    "method", [*METHODS[:1], *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS[1:])]
)
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_smallest_budget(method: str, outputs: str) -> None:
    case = CASES["mlp"](5)
    for x2 in (None, case.x[:3]):
        other = None if x2 is None else case._replace(x=x2)

        def kernel(budget: int, x2: Any = x2) -> Tensor:
            return ntk(case.fn, case.params, case.x, x2, outputs=outputs, method=method, memory=budget)

        close(kernel(smallest_budget(kernel)), kernels(case, other)[outputs], f"{method} {outputs}")


@methods
def test_symmetric_and_semidefinite(method: str) -> None:
    case = CASES["cnn"](3)
    K = ntk(case.fn, case.params, case.x, method=method)
    assert torch.equal(K, K.permute(1, 0, 3, 2))
    matrix = K.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-10 * matrix.trace()
    T = ntk(case.fn, case.params, case.x, method=method, outputs="trace")
    assert torch.equal(T, T.T)


@methods
@pytest.mark.parametrize("memory", [None, "32KiB"])
@pytest.mark.parametrize("n", [None, 3])
def test_progress(method: str, memory: str | None, n: int | None) -> None:
    case = CASES["mlp"](5)
    seen: list[tuple[int, int]] = []
    x2 = None if n is None else case.x[:n]
    ntk(case.fn, case.params, case.x, x2, method=method, memory=memory, progress=lambda *a: seen.append(a))
    total = 10 * 11 // 2 if n is None else 60
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert {t for _, t in seen} == {total}


@methods
def test_several_inputs(method: str) -> None:
    w, x, y = some(2, 3), some(4, 3), some(4, 2, seed=9)
    K = ntk(lambda w, x, y: torch.tanh(w @ x) * y, w, (x, y), (x[:2], y[:2]), method=method)
    joined = Case(lambda w, z: torch.tanh(w @ z[:3]) * z[3:], w, torch.cat([x, y], 1))
    close(K, kernels(joined, joined._replace(x=joined.x[:2]))["full"])


@methods
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_nothing(method: str, outputs: str) -> None:
    """No samples, no outputs: shapes stay."""
    k = {"full": (2, 2), "trace": (), "diagonal": (2,)}[outputs]
    case = CASES["mlp"](3)
    none = case.x[:0]
    assert ntk(case.fn, case.params, none, outputs=outputs, method=method).shape == (0, 0, *k)
    assert ntk(case.fn, case.params, case.x, none, outputs=outputs, method=method).shape == (3, 0, *k)
    assert ntk(case.fn, case.params, none, case.x, outputs=outputs, method=method).shape == (0, 3, *k)
    empty = ntk(lambda w, x: w[:0] * x[:0], some(3), case.x, outputs=outputs, method=method)
    assert empty.shape == (3, 3, *(0 for _ in k))


@methods
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_derivatives(method: str, outputs: str) -> None:
    case = CASES["mlp"](3)
    mix = some(*kernels(case)[outputs].shape)

    def loss(params: Any, x: Tensor) -> Tensor:
        return (ntk(case.fn, params, x, case.x, outputs=outputs, method=method) * mix).sum()

    def reference(params: Any, x: Tensor) -> Tensor:
        def rows(x: Tensor) -> Tensor:
            jac = torch.func.vmap(torch.func.jacrev(case.fn), (None, 0))(params, x)
            return torch.cat([leaf.flatten(2) for leaf in jac.values()], 2)

        full = torch.einsum("nkp,mlp->nmkl", rows(x), rows(case.x))
        diagonal = full.diagonal(dim1=2, dim2=3)
        return ({"full": full, "trace": diagonal.sum(-1), "diagonal": diagonal}[outputs] * mix).sum()

    mine, its = (torch.func.grad(f, (0, 1))(case.params, case.x) for f in (loss, reference))
    close(ravel(mine[0]), ravel(its[0]))
    close(mine[1], its[1])
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in case.params.items()}
    budget = smallest_budget(lambda b: ntk(case.fn, case.params, case.x, outputs=outputs, method=method, memory=b))
    for memory in (None, budget * 2):
        kernel = ntk(case.fn, tracked, case.x, outputs=outputs, method=method, memory=memory)
        close(kernel.detach(), kernels(case)[outputs])
        found = torch.autograd.grad((kernel * mix).sum(), list(tracked.values()), allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for g, p in zip(found, tracked.values(), strict=True)]
        close(ravel(found), ravel(its[0]), f"memory={memory}")
    assert not ntk(case.fn, tracked, case.x, outputs=outputs, method=method, differentiable=False).requires_grad


def test_large_enough_for_panels() -> None:
    """Products in several panels, by pairs and by slices, mirrored."""
    for net, shape in ((nn.Linear(3, 2), (3,)), (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 4, 4))):
        fn, params = make_functional(net.to(D))
        case = Case(fn, params, some(90, *shape))
        for outputs, wanted in kernels(case).items():
            close(ntk(fn, params, case.x, outputs=outputs, method="quasilinear"), wanted, outputs)


def test_errors() -> None:
    case = CASES["mlp"](2)
    with pytest.raises(JacfnValueError, match="outputs must be 'full', 'trace' or 'diagonal', got 'all'"):
        ntk(case.fn, case.params, case.x, outputs="all")
    for wrong in ([1.0], torch.tensor(1.0), ()):
        with pytest.raises(JacfnTypeError, match="x1 must be a tensor whose axis 0 counts samples, or a tuple"):
            ntk(case.fn, case.params, wrong)
    with pytest.raises(JacfnTypeError, match="x2 must be a tensor"):
        ntk(case.fn, case.params, case.x, "x")
    with pytest.raises(JacfnValueError, match=r"x2 must give outputs with 3 element.* got 2"):
        ntk(lambda w, x: w.sum() * x, some(2), some(4, 3), some(4, 2))
    with pytest.raises(JacfnValueError, match="too small"):
        ntk(case.fn, case.params, case.x, memory=10)
