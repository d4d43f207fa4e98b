"""Operators made from operators, and those from these: the same of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES, METHODS, check_all, close, dense, from_blocks, operator, ravel, smallest_budget, some
from torch import Tensor

from jacfn import JacobianOperator, jacobian_operator

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)
SOME = ("materialize", "gram", "normal", "row_norms", "column_norms", "J @ V", "J.T @ U", "ggn_diagonal")


class State(NamedTuple):
    """An operator, another one made in another way and changed alike, and what both are."""

    J: JacobianOperator
    twin: JacobianOperator
    A: Tensor
    whole: bool  # all rows of every sample


def _both(state: State, change: Callable[[JacobianOperator], JacobianOperator], A: Tensor) -> State:
    return state._replace(J=change(state.J), twin=change(state.twin), A=A)


def _scale(state: State) -> State:
    return _both(state, lambda J: -(2.5 * J / 2), -1.25 * state.A)


def _weight(state: State) -> State:
    w = some(len(state.A))
    return _both(state, lambda J: J.weighted(w), w[:, None] * state.A)


def _mix(state: State) -> State:
    if not state.whole:
        return state
    n, k = state.J.rows.samples or 1, state.J.rows.width
    W = some(n, k, k)
    return _both(state, lambda J: J.weighted(W), torch.block_diag(*W) @ state.A)


def _rows(chosen: Callable[[int], Any]) -> Callable[[State], State]:
    def step(state: State) -> State:
        wanted = chosen(len(state.A))
        if not len(state.A):
            return state
        places = torch.arange(len(state.A))[wanted].reshape(-1)
        return _both(state, lambda J: J.restrict(rows=wanted), state.A[places])._replace(whole=False)

    return step


def _leaves(state: State) -> State:
    sizes = [kind.size for kind in state.J.columns.kinds]
    kept = [i for i in range(len(sizes)) if i != 1] if len(sizes) > 1 else [0]
    names = [state.J.names[i] for i in kept]
    parts = torch.split(state.A, sizes, 1)
    return _both(state, lambda J: J.restrict(leaves=names), torch.cat([parts[i] for i in kept], 1))


def _mask(state: State) -> State:
    mask = some(state.A.shape[1]) > 0
    return _both(state, lambda J: J.restrict(mask=mask), state.A[:, mask])


def _columns(state: State) -> State:
    d = some(state.A.shape[1])
    return _both(state, lambda J: J.column_weighted(d), state.A * d)


def _add(state: State) -> State:
    return state._replace(J=state.J + 0.5 * state.twin, A=1.5 * state.A)


def _subtract(state: State) -> State:
    return state._replace(J=0.5 * state.twin - state.J, A=-0.5 * state.A)


STEPS: dict[str, Callable[[State], State]] = {
    "scale": _scale,
    "weight": _weight,
    "mix": _mix,
    "one row": _rows(lambda m: -1),
    "every other row": _rows(lambda m: slice(1, None, 2)),
    "rows in any order": _rows(lambda m: torch.tensor([m - 1, 0, 0, m // 2]) if m else slice(None)),
    "no rows": _rows(lambda m: slice(0, 0)),
    "leaves": _leaves,
    "mask": _mask,
    "columns": _columns,
    "add": _add,
    "subtract": _subtract,
    "detach": lambda state: _both(state, lambda J: J.detach().to("cpu"), state.A),
}


@settings(max_examples=12)
@given(
    name=st.sampled_from(["mlp", "embedding", "tied", "several outputs"]),
    methods=st.tuples(st.sampled_from(METHODS), st.sampled_from(METHODS)),
    budgets=st.tuples(st.sampled_from([None, "32KiB"]), st.sampled_from([None, "48KiB"])),
    n=st.integers(1, 4),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3),
)
def test_compositions(
    name: str, methods: tuple[str, str], budgets: tuple[str | None, str | None], n: int, steps: list[str]
) -> None:
    case = CASES[name](n)
    J, twin = (operator(case, method, memory=budget) for method, budget in zip(methods, budgets, strict=True))
    state = State(J, twin, dense(case), True)
    for step in steps:
        state = STEPS[step](state)
    what = f"{name} {methods} {budgets} {steps}"
    check_all(state.J, state.A, what, SOME)
    close(state.J.gram(state.twin), state.A @ _dense(state.twin).T, what)
    close(from_blocks(state.J, chunk_size=2), state.A, what)


def _dense(J: JacobianOperator) -> Tensor:
    return J.materialize()


@methods
@pytest.mark.parametrize("step", STEPS)
def test_each_change_alone(method: str, step: str) -> None:
    case = CASES["mlp"](3)
    J = operator(case, method)
    state = STEPS[step](State(J, operator(case, "rev"), dense(case), True))
    check_all(state.J, state.A, step)
    assert state.twin.method == "rev"


@pytest.mark.parametrize("method", ["quasilinear", "fwd"])
def test_sum_of_other_blocks_keeps_whole_samples(method: str) -> None:
    """Blocks (N, K, K) weight a sum whose addends come in different blocks."""
    case = CASES["mlp"](5)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    streamed, held = operator(case, method, memory=2 * smallest), operator(case, "rev")
    W, A = some(5, 2, 2), dense(case)
    B = torch.block_diag(*W)
    for J in (streamed + held, held + streamed):
        close(J.weighted(W).materialize(), 2 * B @ A)
        close(J.normal(W), 4 * A.T @ B @ A)
        close(J.ggn_diagonal(W), (4 * A.T @ B @ A).diagonal())


@methods
def test_blocks_as_weights(method: str) -> None:
    """The Gauss-Newton matrix of a softmax."""
    case = CASES["mlp"](4)
    J, A = operator(case, method), dense(case)
    p = J.value.softmax(-1)
    W = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    ggn = A.T @ torch.block_diag(*W) @ A
    close(J.normal(W), ggn)
    close(J.ggn_diagonal(W), ggn.diagonal())
    close(J.ggn_mv(some(A.shape[1]), W), ggn @ some(A.shape[1]))
    close(J.weighted(W).gram(J), torch.block_diag(*W) @ A @ A.T)
    close(J.weighted(p).materialize(), p.reshape(-1, 1) * A)


@methods
def test_dtypes(method: str) -> None:
    case = CASES["cnn"](2)
    J, A = operator(case, method), dense(case)
    single = J.astype(torch.float32)
    assert single.dtype == single.materialize().dtype == single.gram().dtype == single.value.dtype == torch.float32
    assert (single @ torch.ones(A.shape[1])).dtype == torch.float32
    assert (single.T @ torch.ones(len(A))).dtype == torch.float32
    torch.testing.assert_close(single.gram(), (A @ A.T).float(), rtol=1e-4, atol=1e-4)
    assert J.to("cpu").to(torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_in_half_precision(dtype: torch.dtype) -> None:
    """Squares beyond the largest number of the dtype."""
    x = 300 * torch.ones(4, 3, dtype=dtype)
    J = jacobian_operator(lambda w, x: w @ x, torch.ones(2, 3, dtype=dtype), x, in_dims=(None, 0))
    assert J.row_norms().dtype == J.column_norms().dtype == dtype
    torch.testing.assert_close(J.row_norms().float(), torch.full((8,), 300 * 3**0.5), rtol=0.01, atol=0)
    torch.testing.assert_close(J.column_norms().float(), torch.full((6,), 600.0), rtol=0.01, atol=0)


def test_blocks_are_made_again_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram matrix of changed rows takes no more passes than that of the rows, but for those cut in several pieces."""
    case = CASES["mlp"](24)
    A = dense(case)
    smallest = smallest_budget(lambda budget: operator(case, "quasilinear", memory=budget))
    J = operator(case, "quasilinear", memory=smallest)
    made, blocks = 0, J.source.blocks

    def counted(skip: int = 0) -> Iterator[Any]:
        nonlocal made
        for block in blocks(skip):
            made += 1
            yield block

    monkeypatch.setattr(J.source, "blocks", counted)

    def passes(changed: JacobianOperator, wanted: Tensor) -> int:
        nonlocal made
        made = 0
        close(changed.gram(), wanted @ wanted.T)
        return made

    plain = passes(J, A)
    w, d = some(48), some(26)
    assert plain > 6
    assert passes(J.column_weighted(d), A * d) <= plain + 1
    assert passes(J.restrict(mask=d > 0), A[:, d > 0]) <= plain + 1
    pieces = len(list(J.weighted(w).source.blocks())) / len(list(J.source.blocks()))
    assert passes(J.weighted(w), w[:, None] * A) <= (pieces + 1) * plain
    assert passes(J + J, 2 * A) <= 2 * (pieces + 1) * plain


@methods
def test_structure_after_leaves(method: str) -> None:
    """Vectors are dictionaries by name then, and leaves come in the order that was asked for."""
    case = CASES["several outputs"](2)
    J = operator(case, method)
    assert J.names == ("b.0", "b.1", "a.0")
    kept = J.restrict(leaves=["a.0", "b.0"])
    assert kept.names == ("a.0", "b.0")
    A = dense(case)
    close(kept.materialize(), torch.cat([A[:, 8:], A[:, :6]], 1))
    back = kept.rmv(torch.func.vmap(case.fn, (None, 0))(case.params, case.x))
    assert {name: tuple(leaf.shape) for name, leaf in back.items()} == {"a.0": (), "b.0": (2, 3)}
    assert J.restrict(leaves=lambda name: name.startswith("b")).names == ("b.0", "b.1")


@methods
def test_mask_as_pytree(method: str) -> None:
    case = CASES["mlp"](2)
    J, A = operator(case, method), dense(case)
    mask = {name: some(*leaf.shape) > 0 for name, leaf in case.params.items()}
    flat = ravel(mask)
    check_all(J.restrict(mask=mask), A[:, flat], method)
    check_all(J.restrict(mask=mask, rows=torch.tensor([1])), A[1:2, flat], method)
    nothing = J.restrict(mask=torch.zeros_like(flat))
    check_all(nothing, A[:, :0], method)


@methods
def test_scalars(method: str) -> None:
    J, A = operator(CASES["mlp"](2), method), dense(CASES["mlp"](2))
    two = torch.tensor(2.0, dtype=D)
    for scaled in (J * 2, 2 * J, J * two, two * J, J / 0.5, J + J, 3 * J - J):
        close(scaled.materialize(), 2 * A)
    close((-J).materialize(), -A)
