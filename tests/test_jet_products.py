"""Rules for products of matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import check
from torch.nn import functional as F

ONES = torch.ones(2, 4, 3, dtype=torch.float64)

CASES = {
    "mm": (lambda a, b: a @ b, (3, 4), (4, 2)),
    "mm with a constant": (lambda a: a.sin() @ ONES[0], (3, 4)),
    "mm of a constant": (lambda b: ONES[0] @ b.sin(), (3, 2)),
    "bmm": (lambda a, b: torch.bmm(a, b), (2, 3, 4), (2, 4, 2)),
    "bmm with a constant": (lambda a: torch.bmm(a.sin(), ONES), (2, 3, 4)),
    "bmm of a constant": (lambda b: torch.bmm(ONES, b.sin()), (2, 3, 5)),
    "matmul": (lambda a, b: a @ b, (2, 1, 3, 4), (3, 4, 2)),
    "matmul with a constant": (lambda a: a.sin() @ ONES, (3, 1, 2, 4)),
    "matmul of a matrix": (lambda a: a.sin() @ ONES, (3, 4)),
    "matmul with a matrix": (lambda a: a.sin() @ ONES[0], (2, 3, 4)),
    "matmul of a constant": (lambda b: ONES @ b.sin(), (5, 1, 3, 2)),
    "matmul of a constant matrix": (lambda b: ONES[0] @ b.sin(), (5, 3, 2)),
    "matmul of a vector": (lambda a, b: a @ b, (4,), (2, 4, 3)),
    "matmul with a vector": (lambda a, b: a @ b, (2, 3, 4), (4,)),
    "mv": (lambda a, b: torch.mv(a, b), (3, 4), (4,)),
    "dot": (lambda a, b: torch.dot(a, b), (4,), (4,)),
    "inner": (lambda a, b: torch.inner(a, b), (2, 4), (3, 4)),
    "vecdot": (lambda a, b: torch.linalg.vecdot(a, b), (2, 4), (2, 4)),
    "outer": (lambda a, b: torch.outer(a, b), (3,), (4,)),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (2, 3, 4), (2, 5, 4)),
    "einsum of three": (lambda a, b, c: torch.einsum("ij,jk,ki->i", a, b, c), (2, 3), (3, 4), (4, 2)),
    "einsum of a diagonal": (lambda a: torch.einsum("...ii->...i", a.sin()), (2, 3, 3)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 2), (2, 3, 4), (3, 4, 2)),
    "multi_dot": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (3,), (3, 4), (4, 2)),
    "chain_matmul": (lambda a, b, c: torch.chain_matmul(a, b, c), (2, 3), (3, 4), (4, 2)),
    "linear": (lambda x, w, b: F.linear(x, w, b), (2, 4), (3, 4), (3,)),
    "linear of one": (lambda x, w, b: F.linear(x, w, b), (4,), (3, 4), (3,)),
    "linear with constants": (lambda x: F.linear(x.sin(), ONES[0], ONES[0, :, 0]), (2, 1, 3)),
    "linear with a bias": (lambda b: F.linear(ONES[0], ONES[1], b.sin()), (4,)),
    "addmm": (lambda x, a, b: torch.addmm(x, a, b, beta=0.5, alpha=2), (3, 2), (3, 4), (4, 2)),
    "baddbmm": (lambda x, a, b: torch.baddbmm(x, a, b, beta=0.5, alpha=2), (2, 3, 2), (2, 3, 4), (2, 4, 2)),
    "addmv": (lambda x, a, b: torch.addmv(x, a, b, beta=0.5, alpha=2), (3,), (3, 4), (4,)),
    "addbmm": (lambda x, a, b: torch.addbmm(x, a, b, beta=0.5, alpha=2), (3, 2), (2, 3, 4), (2, 4, 2)),
    "addr": (lambda x, a, b: torch.addr(x, a, b), (3, 2), (3,), (2,)),
    "bilinear": (lambda x, y, w, b: F.bilinear(x, y, w, b), (2, 3), (2, 4), (5, 3, 4), (5,)),
    "bilinear with a constant": (lambda x, y: F.bilinear(x, y, ONES), (2, 2, 4), (2, 2, 3)),
    "bilinear in its weight": (lambda w: F.bilinear(ONES[0], ONES[1], w.sin()), (2, 3, 3)),
    "cross": (lambda a, b: torch.linalg.cross(a, b), (2, 1, 3), (1, 4, 3)),
    "cross along an axis": (lambda a, b: torch.cross(a.sin(), b, dim=0), (3, 2), (3, 1)),
    "cross with a constant": (lambda a: torch.linalg.cross(a.sin(), ONES[0]), (4, 3)),
    "same": (lambda a: (a @ a.mT).tanh() @ a, (3, 4)),
}


@pytest.mark.filterwarnings("ignore:torch.chain_matmul")
@pytest.mark.parametrize("case", CASES)
def test_product(case):
    function, *shapes = CASES[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_stacks_of_any_shape(data):
    length = st.sampled_from([1, 2])
    a, b = (data.draw(st.lists(length, max_size=2)) for _ in range(2))
    x, y = torch.randn(*a, 3, 2, dtype=torch.float64), torch.randn(*b, 2, 4, dtype=torch.float64)
    check(lambda x, y: x @ y, x, y)
    check(lambda x: x.sin() @ y, x)
    check(lambda y: x @ y.sin(), y)
