"""Rules for what takes elements from places and puts them into places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import by_jets, check
from torch.nn import functional as F

from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

TWO = torch.tensor([0, 2])
TWICE = torch.tensor([2, 2, 0])
TABLE = torch.tensor([[0, 2, 1], [2, 1, 1]])
MASK = torch.tensor([True, False, True])
GRID = torch.tensor([[True, False, True], [False, False, True]])


def assigned(place):
    def function(x, v):
        y = x.sin()
        y[place] = v.cos()
        return y

    return function


def added(place):
    def function(x, v):
        y = x.sin()
        y[place] += v.cos()
        return y

    return function


CASES = {
    "index": (lambda x: x.sin()[TWO], (3, 2)),
    "index behind": (lambda x: x[:, TWO], (2, 3)),
    "index a table": (lambda x: x[..., TABLE], (2, 3)),
    "index two axes": (lambda x: x[TWO, TWO], (3, 3, 2)),
    "index broadcast": (lambda x: x[:, TWO, TABLE[:, :1]], (2, 3, 3)),
    "index apart": (lambda x: x[TWO, :, TWO], (3, 2, 3)),
    "index apart behind": (lambda x: x[:, TWO, :, TABLE[:, :1]], (2, 3, 2, 3)),
    "index by a number apart": (lambda x: x[0, :, TWO], (2, 2, 3)),
    "mask": (lambda x: x.sin()[MASK], (3, 2)),
    "mask behind": (lambda x: x.sin()[..., MASK], (2, 3)),
    "mask of two axes": (lambda x: x[GRID].sin(), (2, 3, 2)),
    "mask and index apart": (lambda x: x[MASK, :, TWO], (3, 2, 3)),
    "mask by a comparison": (lambda x: x[torch.arange(3.0) > 0.5].sin(), (3,)),
    "masked_select": (lambda x: x.masked_select(MASK).sin(), (2, 3)),
    "take": (lambda x: torch.take(x, torch.tensor([0, 3])), (2, 3)),
    "take_along_dim": (lambda x: torch.take_along_dim(x, TABLE, -1), (2, 3)),
    "gather": (lambda x: x.gather(-1, TABLE[:, :2]), (2, 3)),
    "gather less": (lambda x: x.gather(0, TABLE[:1, :2]), (3, 3)),
    "index_select": (lambda x: x.index_select(-1, TWO), (2, 3)),
    "combinations": (lambda x: torch.combinations(x.sin()), (4,)),
    "repeat_interleave each": (lambda x: x.repeat_interleave(torch.tensor([1, 2, 0]), -1), (2, 3)),
    "repeat_interleave flat": (lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 0, 3])), (2, 2)),
    "index_put": (lambda x, v: x.index_put((TWO,), v.sin()), (3, 2), (2, 2)),
    "index_put broadcast": (lambda x, v: x.index_put((TWO,), v), (3, 2), (1, 2)),
    "index_put a scalar": (lambda x, v: x.index_put((TWO, TWO), v), (3, 3), ()),
    "index_put accumulating": (lambda x, v: x.sin().index_put((TWICE,), v, accumulate=True), (3,), (3,)),
    "index_put into a constant": (lambda v: torch.ones(3, 2).double().index_put((TWO,), v), (2, 2)),
    "index_put of a constant": (lambda x: x.sin().index_put((TWO,), torch.ones(2).double()), (3,)),
    "index_put by a mask": (lambda x: x.sin().index_put((MASK,), torch.tensor(2.0).double()), (3,)),
    "assigned": (assigned(0), (3,), ()),
    "assigned to a slice": (assigned((slice(None), slice(0, 2))), (2, 3), (2, 2)),
    "assigned to rows": (assigned(TWO), (3, 2), (2, 2)),
    "assigned apart": (assigned((TWO, slice(None), TWO)), (3, 2, 3), (2, 2)),
    "assigned to a mask": (assigned(MASK), (3,), ()),
    "assigned to the elements of a mask": (assigned(MASK), (3,), (2,)),
    "added to rows": (added(TWO), (3,), (2,)),
    "scatter": (lambda x, v: x.scatter(0, TWO, v.sin()), (3,), (2,)),
    "scatter behind": (lambda x, v: x.sin().scatter(-1, TABLE[:, :2], v), (2, 3), (2, 3)),
    "scatter a number": (lambda x: x.sin().scatter(0, TWO, 2.0), (3,)),
    "scatter_add": (lambda x, v: x.scatter_add(1, TABLE, v.sin()), (2, 3), (2, 3)),
    "index_add": (lambda x, v: x.index_add(0, TWICE, v.sin(), alpha=2), (3, 2), (3, 2)),
    "index_copy": (lambda x, v: x.index_copy(-1, TWO, v.sin()), (2, 3), (2, 2)),
    "index_fill": (lambda x: x.sin().index_fill(0, TWO, 2.0), (3, 2)),
    "index_fill with a jet": (lambda x, v: x.index_fill(-1, TWO, v.sin()), (2, 3), ()),
    "put": (lambda x, v: x.put(TWO, v.sin()), (2, 3), (2,)),
    "put accumulating": (lambda x, v: x.put(TWICE, v.sin(), accumulate=True), (2, 3), (3,)),
    "masked_scatter": (lambda x, v: x.masked_scatter(MASK, v.sin()), (2, 3), (5,)),
    "masked_scatter of a constant": (lambda x: x.sin().masked_scatter(MASK, torch.ones(2).double()), (3,)),
    "masked_scatter into a constant": (lambda v: torch.ones(3).double().masked_scatter(MASK, v.sin()), (2,)),
    "slice_scatter": (lambda x, v: torch.slice_scatter(x, v.sin(), 1, 0, 3, 2), (2, 3), (2, 2)),
    "slice_scatter of a constant": (lambda x: torch.slice_scatter(x.sin(), torch.ones(1, 3).double(), -2, 1), (2, 3)),
    "select_scatter": (lambda x, v: torch.select_scatter(x, v.sin(), -1, -2), (2, 3), (2,)),
    "diagonal_scatter": (lambda x, v: torch.diagonal_scatter(x, v.sin(), 1), (3, 3), (2,)),
    "scatter_reduce sum": (lambda x, v: x.scatter_reduce(0, TWICE, v.sin(), "sum"), (3,), (3,)),
    "scatter_reduce sum without itself": (
        lambda x, v: x.scatter_reduce(0, TWICE, v.sin(), "sum", include_self=False),
        (3,),
        (3,),
    ),
    "scatter_reduce mean": (lambda x, v: x.sin().scatter_reduce(1, TABLE, v.sin(), "mean"), (2, 3), (2, 4)),
    "scatter_reduce mean without itself": (
        lambda x, v: x.scatter_reduce(1, TABLE, v.sin(), "mean", include_self=False),
        (2, 3),
        (3, 3),
    ),
    "scatter_reduce amax": (lambda x, v: x.sin().scatter_reduce(-1, TABLE, v.sin(), "amax"), (2, 3), (2, 3)),
    "scatter_reduce amax of nothing": (
        lambda v: torch.full((4,), -torch.inf).double().scatter_reduce(0, TWICE, v.sin(), "amax")[TWO],
        (3,),
    ),
    "scatter_reduce amin without itself": (
        lambda x, v: x.sin().scatter_reduce(-1, TABLE, v.sin(), "amin", include_self=False),
        (2, 3),
        (2, 3),
    ),
    "index_reduce amax": (lambda x, v: x.sin().index_reduce(0, TWICE, v.sin(), "amax"), (3, 2), (3, 2)),
    "index_reduce mean": (lambda x, v: x.sin().index_reduce(-1, TWICE, v.sin(), "mean"), (2, 3), (2, 3)),
    "embedding": (lambda w: F.embedding(TABLE, w.sin()), (4, 2)),
    "embedding of one": (lambda w: F.embedding(torch.tensor(2), w.sin()), (4, 2)),
    "bucketize": (lambda x: torch.bucketize(x, torch.tensor([-3.0, 3.0]).double()) * x.sin(), (3,)),
    "by what is sorted": (lambda x: x.sin().gather(-1, torch.argsort(torch.arange(3.0), descending=True)), (3,)),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("case", CASES)
def test_indexing(case):
    function, *shapes = CASES[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


def test_rows_of_the_padding_have_no_derivatives():
    table, along = torch.randn(4, 2, dtype=torch.float64), torch.ones(3, 4, 2, dtype=torch.float64)
    engine = Engine(recording=False, depth=0)
    rows = torch.tensor([1, 3])
    value, first, second = by_jets(
        lambda w: F.embedding(rows, w, padding_idx=3).exp(), (table,), (along,), Sum(), engine
    )
    expected = table[rows].exp() * torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(value, table[rows].exp())
    torch.testing.assert_close(first[0], expected)
    torch.testing.assert_close(second, 3 * expected)


def test_the_largest_share_alike():
    x, along = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    into = torch.zeros(2, dtype=torch.float64)
    engine = Engine(recording=False, depth=0)
    _, first, _ = by_jets(
        lambda x: into.scatter_reduce(0, torch.tensor([0, 0, 1]), x, "amax"), (x,), (along,), Sum(), engine
    )
    torch.testing.assert_close(first.mT, torch.tensor([[1 / 3, 1 / 3, 0], [0, 0, 1 / 2]], dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_places_of_any_shape(data):
    rank = data.draw(st.integers(2, 4))
    used = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank).filter(any))
    shapes = st.sampled_from([(2,), (3, 1), (1, 2), (1,)])
    index = tuple(torch.randint(3, data.draw(shapes)) if use else slice(None) for use in used)
    x = torch.randn((3,) * rank, dtype=torch.float64)
    check(lambda x: x[index].sin(), x)
    check(added(index), x, torch.randn((), dtype=torch.float64))
