"""The canonical forms and the leaves made of them, against dense rows that an einsum makes of the same factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from leaf_cases import KINDS, Case, D, cases, dense, gather, matmul, rooms, shapes
from torch import Tensor
from torch.nn import functional as F

from jacfn import jac_quasilinear
from jacfn.quasilinear.factors import Dense, Gather, Leaf, Matmul, Shift, Term, joined
from jacfn.quasilinear.factors.cuts import cuts
from jacfn.quasilinear.factors.matmul import AsIs

stacks = st.integers(0, 3)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


# --- dense rows -----------------------------------------------------------------------------------


@given(cases())
def test_dense(case: Case) -> None:
    assert case.leaf.samples == case.dense.shape[0]
    assert case.leaf.size == case.dense.shape[2:].numel()
    close(case.leaf.dense(), case.dense)


@given(cases())
def test_write(case: Case) -> None:
    wide = torch.full((*case.leaf.shape[:2], case.leaf.size + 3), 7.0, dtype=D)
    out = wide[..., 1 : 1 + case.leaf.size]
    case.leaf.write(out.view(case.leaf.shape))  # leaves are contiguous, rows lie apart
    close(out.reshape(case.leaf.shape), case.dense)
    assert (wide[..., 0] == 7).all()
    assert (wide[..., -2:] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_form(kind: Any, data: st.DataObject) -> None:
    case = data.draw(cases(most=1, kinds=[kind]))
    form, delta, x = case.leaf.terms[0]
    n, r, *leaf = case.leaf.shape
    s = data.draw(stacks)
    v, u = torch.randn(s, *leaf, dtype=D), torch.randn(n, r, s, dtype=D)
    close(form.rows(delta, x).reshape(case.leaf.shape), case.dense)
    close(form.mv(delta, x, v), torch.einsum("nrgab,sgab->nrs", case.dense, v))
    close(form.rmv(delta, x, u).reshape(s, *leaf), torch.einsum("nrgab,nrs->sgab", case.dense, u))


def test_large_matmul_is_written_in_every_way() -> None:
    for n, r, t, o, i in [(3, 2, 40, 30, 500), (2, 600, 2, 30, 30), (2, 3, 2, 1100, 1000), (1, 2, 2, 4, 5)]:
        delta, x = torch.randn(r, n, 1, t, o, dtype=D), torch.randn(n, 1, t, i, dtype=D)
        out = torch.empty(n, r, o, i, dtype=D)
        Matmul(AsIs()).write(delta, x, out)
        close(out, torch.einsum("rnto,nti->nroi", delta[:, :, 0], x[:, 0]))


@given(cases())
def test_magnitude_bounds_the_terms(case: Case) -> None:
    magnitude = case.leaf.magnitude()
    for rows, term in zip(case.rows, case.leaf.terms, strict=True):
        elements = rows(term.delta, term.x).abs()
        assert not elements.numel() or elements.max() <= magnitude * (1 + 1e-12)


# --- products -------------------------------------------------------------------------------------


@given(cases(), stacks, rooms)
def test_mv(case: Case, s: int, room: int) -> None:
    v = torch.randn(s, *case.leaf.shape[2:], dtype=D)
    close(case.leaf.mv(v, room), torch.einsum("nrgab,sgab->nrs", case.dense, v))


@given(cases(), stacks, rooms)
def test_rmv(case: Case, s: int, room: int) -> None:
    u = torch.randn(*case.leaf.shape[:2], s, dtype=D)
    close(case.leaf.rmv(u, room), torch.einsum("nrgab,nrs->sgab", case.dense, u))


# --- norms ----------------------------------------------------------------------------------------


@given(cases(), rooms)
def test_row_squares(case: Case, room: int) -> None:
    close(case.leaf.row_squares(room), case.dense.square().sum((2, 3, 4)))


@given(st.data(), rooms)
def test_column_products(data: st.DataObject, room: int) -> None:
    case = data.draw(cases())
    n, r, *shape = case.leaf.shape
    other = data.draw(cases(n=n, r=r, shape=tuple(shape)))
    w = torch.randn(n, r, dtype=D)
    close(case.leaf.column_products(case.leaf, room), case.dense.square().sum((0, 1)))
    close(case.leaf.column_products(other.leaf, room), (case.dense * other.dense).sum((0, 1)))
    close(
        case.leaf.column_products(case.leaf.weighted(w), room),
        torch.einsum("nrgab,nr->gab", case.dense.square(), w),
    )


@pytest.mark.parametrize("room", [1 << 12, 1 << 24])
@pytest.mark.parametrize(("t", "o", "i"), [(1, 5, 7), (3, 40, 50), (30, 3, 4)])
def test_norms_in_every_way(t: int, o: int, i: int, room: int) -> None:
    delta, x = torch.randn(6, 5, 2, t, o, dtype=D), torch.randn(5, 2, t, i, dtype=D)
    leaf = of_terms((5, 6, 2, o, i), Term(Matmul(AsIs()), delta, x))
    rows = torch.einsum("rngto,ngti->nrgoi", delta, x)
    close(leaf.row_squares(room), rows.square().sum((2, 3, 4)))
    close(leaf.column_products(leaf, room), rows.square().sum((0, 1)))


# --- other leaves ---------------------------------------------------------------------------------


@given(st.data())
def test_linear_changes(data: st.DataObject) -> None:
    case = data.draw(cases())
    n, r = case.leaf.shape[:2]
    w, mix = torch.randn(n, r, dtype=D), torch.randn(n, data.draw(st.integers(0, 3)), r, dtype=D)
    close(case.leaf.scaled(-2.0).dense(), -2 * case.dense)
    close(case.leaf.scaled(torch.tensor(0.5, dtype=D)).dense(), case.dense / 2)
    close(case.leaf.weighted(w).dense(), case.dense * w[:, :, None, None, None])
    mixed = case.leaf.mixed(mix)
    assert mixed.shape == (n, mix.shape[1], *case.leaf.shape[2:])
    close(mixed.dense(), torch.einsum("nrs,nsgab->nrgab", mix, case.dense))
    close(mixed.row_squares(), mixed.dense().square().sum((2, 3, 4)))


@given(st.data())
def test_choice_of_rows(data: st.DataObject) -> None:
    case = data.draw(cases())
    n, r = case.leaf.shape[:2]
    length = data.draw(st.integers(0, 5)) if n and r else 0
    samples, rows = torch.randint(max(n, 1), (length,)), torch.randint(max(r, 1), (length,))
    picked = case.leaf.pick(samples, rows)
    assert picked.shape == (length, 1, *case.leaf.shape[2:])
    close(picked.dense(), case.dense[samples, rows].unsqueeze(1))
    low, high = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    block = case.leaf.part(slice(low, high))
    assert block.shape == (high - low, *case.leaf.shape[1:])
    close(block.dense(), case.dense[low:high])
    first, last = sorted((data.draw(st.integers(0, r)), data.draw(st.integers(0, r))))
    part = case.leaf.part(slice(low, high), slice(first, last))
    assert part.shape[:2] == (high - low, last - first)
    close(part.dense(), case.dense[low:high, first:last])
    held = {x.untyped_storage().data_ptr() for x in case.leaf.tensors()}
    assert {x.untyped_storage().data_ptr() for x in [*block.tensors(), *part.tensors()]} <= held


@given(st.data())
def test_sum(data: st.DataObject) -> None:
    case = data.draw(cases())
    n, r, *shape = case.leaf.shape
    other = data.draw(cases(n=n, r=r, shape=tuple(shape)))
    both = case.leaf.plus(other.leaf)
    close(both.dense(), case.dense + other.dense)
    assert both.in_place
    assert not case.leaf.plus(other.tracked().leaf).in_place


@given(cases())
def test_compressed(case: Case) -> None:
    small = case.leaf.compressed()
    close(small.dense(), case.dense)
    assert sum(isinstance(term.form, Dense) for term in small.terms) <= 1
    assert sum(x.numel() for x in small.tensors()) <= sum(x.numel() for x in case.leaf.tensors())
    for term in small.terms:
        if isinstance(term.form, Dense):
            assert term.rows().is_contiguous()


def test_what_is_smaller_in_factors_stays_so() -> None:
    factors = Term(Matmul(AsIs()), torch.randn(2, 3, 1, 1, 8), torch.randn(3, 1, 1, 9))
    many = Term(Matmul(AsIs()), torch.randn(2, 3, 1, 50, 8), torch.randn(3, 1, 50, 9))
    small = of_terms((3, 2, 8, 9), factors, many, Term(Shift((8, 9)), torch.randn(2, 3, 8, 9), None)).compressed()
    assert [type(term.form) for term in small.terms] == [Matmul, Dense]


@given(cases())
def test_map(case: Case) -> None:
    single = case.leaf.map(lambda x: x.float())
    assert single.dtype == torch.float32
    assert {x.dtype for x in single.tensors() if x.is_floating_point()} <= {torch.float32}
    torch.testing.assert_close(single.dense(), case.dense.float(), rtol=1e-4, atol=1e-4)
    assert case.leaf.map(lambda x: x.to("meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_indices_go_where_the_numbers_go() -> None:
    leaf = of_terms((2, 3, 5, 4), Term(Gather(5), torch.randn(3, 2, 6, 4), torch.randint(5, (2, 6))))
    there = leaf.map(lambda x: x.cuda())
    assert {x.device.type for x in there.tensors()} == {"cuda"}
    torch.testing.assert_close(there.dense().cpu(), leaf.dense())


def test_products_of_one_weight_are_joined() -> None:
    def term(t: int, swapped: bool = False) -> Term:
        return Term(Matmul(AsIs(), swapped), torch.randn(2, 3, 1, t, 4, dtype=D), torch.randn(3, 1, t, 4, dtype=D))

    uses = [term(1), Term(Shift((4, 4)), torch.randn(2, 3, 4, 4, dtype=D), None), term(2), term(2, swapped=True)]
    terms = joined(uses)
    assert [type(one.form) for one in terms] == [Matmul, Matmul, Shift]
    assert [one.delta.shape[3] for one in terms[:2]] == [3, 2]
    close(of_terms((3, 2, 4, 4), *terms).dense(), of_terms((3, 2, 4, 4), *uses).dense())


def test_table_of_which_nothing_is_taken() -> None:
    empty = Term(Gather(5), torch.zeros(2, 3, 0, 4), torch.zeros(3, 0, dtype=torch.long))
    assert joined([empty]) == ()

    def fn(table: Tensor, index: Tensor) -> Tensor:
        return F.embedding(index, table).sum(0)

    table, index = torch.randn(5, 4), torch.zeros(3, 0, dtype=torch.long)
    got = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(table, index)
    assert torch.equal(got, torch.zeros(3, 4, 5, 4))


def of_terms(shape: Sequence[int], *terms: Term) -> Leaf:
    return Leaf(terms, tuple(shape), terms[0].delta.dtype, torch.device("cpu"), in_place=True)


# --- derivatives ----------------------------------------------------------------------------------


def grads(result: Tensor, case: Case) -> list[Tensor]:
    """Of a sum of squares, with respect to the factors; of the second order on the way."""
    loss = (result**2).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in case.factors]
    return list(torch.autograd.grad(loss, case.factors, allow_unused=True, materialize_grads=True))


METHODS: dict[str, tuple[Callable[[Leaf, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "dense": (lambda leaf, v, u: leaf.dense(), lambda rows, v, u: rows),
    "mv": (lambda leaf, v, u: leaf.mv(v, 100), lambda rows, v, u: torch.einsum("nrgab,sgab->nrs", rows, v)),
    "rmv": (lambda leaf, v, u: leaf.rmv(u, 100), lambda rows, v, u: torch.einsum("nrgab,nrs->sgab", rows, u)),
    "row_squares": (lambda leaf, v, u: leaf.row_squares(100), lambda rows, v, u: rows.square().sum((2, 3, 4))),
    "column_products": (
        lambda leaf, v, u: leaf.column_products(leaf.weighted(u[..., 0]), 100),
        lambda rows, v, u: torch.einsum("nrgab,nr->gab", rows.square(), u[..., 0]),
    ),
    "compressed": (lambda leaf, v, u: leaf.compressed().dense(), lambda rows, v, u: rows),
}


@pytest.mark.parametrize("method", METHODS)
@given(data=st.data())
def test_derivatives(method: str, data: st.DataObject) -> None:
    case = data.draw(cases(shape=data.draw(shapes), kinds=[matmul, *KINDS])).tracked()
    v = torch.randn(2, *case.leaf.shape[2:], dtype=D)
    u = torch.randn(*case.leaf.shape[:2], 2, dtype=D)
    mine, dense_form = METHODS[method]
    for got, wanted in zip(grads(mine(case.leaf, v, u), case), grads(dense_form(case.dense, v, u), case), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("kind", [matmul, gather, dense])
@given(data=st.data())
def test_derivatives_by_the_vectors(kind: Any, data: st.DataObject) -> None:
    case = data.draw(cases(most=1, kinds=[kind]))
    v = torch.randn(2, *case.leaf.shape[2:], dtype=D, requires_grad=True)
    u = torch.randn(*case.leaf.shape[:2], 2, dtype=D, requires_grad=True)
    form, delta, x = case.leaf.terms[0]
    (got,) = torch.autograd.grad(form.mv(delta, x, v).square().sum(), v)
    (wanted,) = torch.autograd.grad(torch.einsum("nrgab,sgab->nrs", case.dense, v).square().sum(), v)
    close(got, wanted)
    (got,) = torch.autograd.grad(form.rmv(delta, x, u).square().sum(), u)
    (wanted,) = torch.autograd.grad(torch.einsum("nrgab,nrs->sgab", case.dense, u).square().sum(), u)
    close(got, wanted)


# --- cuts -----------------------------------------------------------------------------------------


@given(st.integers(0, 20), st.integers(-1, 25))
def test_cuts_fill_the_range(total: int, step: int) -> None:
    pieces = cuts(total, step)
    assert [place for piece in pieces for place in range(total)[piece]] == list(range(total))
    assert all(piece.stop - piece.start <= max(step, 1) for piece in pieces)
    assert len(pieces) >= 1
