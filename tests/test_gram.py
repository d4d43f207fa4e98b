"""Inner products of the rows of leaves in factors, against the same of dense rows that an einsum makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from leaf_cases import Case, D, cases, dense, gather, matmul, rooms, shapes
from torch import Tensor
from torch.nn.functional import linear

from jacfn import jacobian_operator, ntk
from jacfn.operator import gram, sums
from jacfn.operator.gram import Contraction, add_gram, gram_of, mirror
from jacfn.quasilinear.factors import Dense, Gather, Leaf, Matmul, Term
from jacfn.quasilinear.factors.matmul import AsIs
from jacfn.quasilinear.factors.slices import product_slices
from jacfn.quasilinear.factors.terms import only_product

EQUATIONS: dict[Contraction, str] = {
    "full": "nrgab,msgab->nrms",
    "trace": "nrgab,mrgab->nm",
    "diagonal": "nrgab,mrgab->nmr",
}
contractions = st.sampled_from(list(EQUATIONS))
every_way = pytest.mark.parametrize("way", ["fewest", "pairs", "slices"])
one_contraction = pytest.mark.parametrize("contraction", EQUATIONS)


def wanted(a: Tensor, b: Tensor, contraction: Contraction) -> Tensor:
    return torch.einsum(EQUATIONS[contraction], a, b)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class Ways:
    """Takes one way for everything, with panels of two rows."""

    def __init__(self, way: str) -> None:
        self._way = way

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(sums, "_PANEL", 2)
        if self._way != "fewest":
            self._patch.setattr(gram, "_CALLS", 1 << 60 if self._way == "slices" else -(1 << 60))

    def __exit__(self, *_: Any) -> None:
        self._patch.undo()


def pair_of_cases(data: st.DataObject, contraction: Contraction, **options: Any) -> tuple[Case, Case]:
    a = data.draw(cases(**options))
    _, r, *shape = a.leaf.shape
    rows = None if contraction == "full" else r
    return a, data.draw(cases(r=rows, **options | {"shape": tuple(shape)}))


@every_way
@one_contraction
@given(data=st.data(), room=rooms)
def test_of_two(way: str, contraction: Contraction, data: st.DataObject, room: int) -> None:
    a, b = pair_of_cases(data, contraction)
    expected = wanted(a.dense, b.dense, contraction)
    before = torch.randn(expected.shape, dtype=D)
    with Ways(way):
        out = before.clone()
        add_gram(out, a.leaf, b.leaf, contraction, room)
        close(out, before + expected)
        close(gram_of(a.leaf, b.leaf, contraction, room), expected)


@every_way
@one_contraction
@given(data=st.data(), room=rooms)
def test_of_one(way: str, contraction: Contraction, data: st.DataObject, room: int) -> None:
    case = data.draw(cases(most=2))
    expected = wanted(case.dense, case.dense, contraction)
    with Ways(way):
        out = torch.zeros_like(expected)
        add_gram(out, case.leaf, None, contraction, room)
        add_gram(out, case.leaf, None, contraction, room)
        mirror(out, contraction)
        close(out, 2 * expected)
        close(gram_of(case.leaf, None, contraction, room), expected)


@every_way
@one_contraction
@pytest.mark.parametrize("kind", [matmul, gather, dense])
@given(data=st.data(), room=rooms)
def test_of_one_kind(way: str, kind: Any, contraction: Contraction, data: st.DataObject, room: int) -> None:
    a, b = pair_of_cases(data, contraction, most=1, kinds=[kind])
    with Ways(way):
        for other, expected in ((b.leaf, wanted(a.dense, b.dense, contraction)), (None, None)):
            expected = wanted(a.dense, a.dense, contraction) if expected is None else expected
            out = torch.zeros_like(expected)
            add_gram(out, a.leaf, other, contraction, room)
            if other is None:
                mirror(out, contraction)
            close(out, expected)


@one_contraction
@given(data=st.data())
def test_into_a_part_of_a_matrix(contraction: Contraction, data: st.DataObject) -> None:
    case = data.draw(cases(most=2))
    expected = wanted(case.dense, case.dense, contraction)
    n, r = case.leaf.shape[:2]
    if contraction == "full":
        whole = torch.zeros(n * r + 3, n * r + 4, dtype=D)
        out = whole[1 : 1 + n * r, 2 : 2 + n * r].view(n, r, n, r)
    else:
        whole = torch.zeros(n + 3, *(size + 4 for size in expected.shape[1:]), dtype=D)
        out = whole[1 : 1 + n, 2 : 2 + n]
        out = out[..., :r] if contraction == "diagonal" else out
    add_gram(out, case.leaf, None, contraction, 1 << 20)
    mirror(out, contraction)
    close(out, expected)
    assert whole.count_nonzero() == out.count_nonzero()


def leaf(terms: list[Term], shape: tuple[int, ...]) -> Leaf:
    return Leaf(tuple(terms), shape, terms[0].delta.dtype, torch.device("cpu"), in_place=True)


def product_leaf(n: int, r: int, g: int, t: int, o: int, i: int) -> Leaf:
    term = Term(Matmul(AsIs()), torch.randn(r, n, g, t, o, dtype=D), torch.randn(n, g, t, i, dtype=D))
    return leaf([term], (n, r, g, o, i))


@one_contraction
@pytest.mark.parametrize("room", [1 << 17, 1 << 28])
@pytest.mark.parametrize(
    "sizes", [(60, 5, 1, 1, 40, 50), (1, 200, 1, 2, 30, 40), (30, 5, 3, 30, 4, 5), (200, 1, 1, 9, 8, 8)]
)
def test_of_many_rows(contraction: Contraction, sizes: tuple[int, ...], room: int) -> None:
    one = product_leaf(*sizes)
    rows = torch.einsum("rngto,ngti->nrgoi", one.terms[0].delta, one.terms[0].x)
    expected = wanted(rows, rows, contraction)
    out = torch.zeros_like(expected)
    add_gram(out, one, None, contraction, room)
    mirror(out, contraction)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    small = one.part(slice(0, max(one.samples // 3, 1)))
    expected = expected.narrow(2 if contraction == "full" else 1, 0, small.samples)
    out = torch.zeros_like(expected, memory_format=torch.contiguous_format)
    add_gram(out, one, small, contraction, room)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@one_contraction
def test_of_a_table_and_a_product(contraction: Contraction) -> None:
    """An embedding that is the weight of the last layer as well."""
    n, r, v, d, t = 4, 3, 40, 6, 5
    taken = Term(Gather(v, skipped=2), torch.randn(r, n, t, d, dtype=D), torch.randint(v, (n, t)))
    given = Term(Matmul(AsIs()), torch.randn(r, n, 1, t, v, dtype=D), torch.randn(n, 1, t, d, dtype=D))
    kept = Term(Dense(), torch.randn(r, n, v, d, dtype=D), None)
    for room in (1 << 10, 1 << 24):
        for terms in ([taken, given], [taken, given, kept]):
            both = leaf(terms, (n, r, v, d))
            rows = both.dense().unsqueeze(2)
            expected = wanted(rows, rows, contraction)
            out = torch.zeros_like(expected)
            add_gram(out, both, None, contraction, room)
            mirror(out, contraction)
            close(out, expected)


@every_way
@one_contraction
@given(data=st.data())
def test_derivatives(way: str, contraction: Contraction, data: st.DataObject) -> None:
    a, b = (case.tracked() for case in pair_of_cases(data, contraction, most=2))
    inputs = [*a.factors, *b.factors]
    with Ways(way):
        both = gram_of(a.leaf, b.leaf, contraction, 100), wanted(a.dense, b.dense, contraction)
        same_gradients(*both, inputs)
        both = gram_of(a.leaf, None, contraction, 100), wanted(a.dense, a.dense, contraction)
        same_gradients(*both, inputs)


def same_gradients(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    close(got, expected)
    if expected.requires_grad and inputs:
        weights = torch.randn(expected.shape, dtype=D)
        losses = [(x * weights).sum() for x in (got, expected)]
        for mine, its in zip(*(_grads(loss, inputs) for loss in losses), strict=True):
            close(mine, its)


def _grads(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@every_way
@one_contraction
def test_inside_transforms(way: str, contraction: Contraction) -> None:
    """Under vmap and jvp, where nothing may be written in place."""
    delta, x = torch.randn(4, 2, 3, 1, 5, 4, dtype=D), torch.randn(4, 3, 1, 5, 6, dtype=D)

    def mine(delta: Tensor, x: Tensor) -> Tensor:
        inside = Leaf((Term(Matmul(AsIs()), delta, x),), (3, 2, 1, 4, 6), D, delta.device, in_place=False)
        return gram_of(inside, None, contraction, 1 << 20)

    def plain(delta: Tensor, x: Tensor) -> Tensor:
        rows = torch.einsum("rngto,ngti->nrgoi", delta, x)
        return wanted(rows, rows, contraction)

    def along(f: Callable[..., Tensor]) -> Tensor:
        return torch.func.jvp(torch.func.vmap(f), (delta, x), (delta.cos(), x.sin()))[1]

    with Ways(way):
        close(along(mine), along(plain))


@given(shapes, st.integers(1, 4), st.integers(1, 3), rooms)
def test_slices_fill_the_rows_within_the_room(shape: tuple[int, int, int], n: int, t: int, room: int) -> None:
    g, o, i = shape
    one = product_leaf(n, 2, g, t, o, i)
    product = only_product(one.terms)
    assert product is not None
    for in_place in (True, False):
        slices = [left for left, right in product_slices(product, None, room, in_place) if left is right]
        close(torch.cat(slices, 2).sum(2), one.dense().sum((2, 3, 4)))
        assert all(x.shape[2] == 1 or 2 * x.numel() * x.element_size() <= room for x in slices)


@one_contraction
@pytest.mark.parametrize("size", [0, 1, 5, 128, 300])
def test_mirror(contraction: Contraction, size: int) -> None:
    shape = {"full": (size, 2, size, 2), "trace": (size, size), "diagonal": (size, size, 3)}[contraction]
    out = torch.randn(shape)
    matrix = sums.as_matrix(out, contraction)
    upper = matrix.triu()
    mirror(out, contraction)
    assert torch.equal(matrix.triu(), upper)
    assert torch.equal(matrix, matrix.mT)


def _sums_of_layers() -> dict[str, tuple[dict[str, tuple[int, ...]], Any]]:
    w, b = (4, 3), (4,)
    return {
        "two layers": (
            {"w": w, "b": b, "v": w, "c": b},
            lambda p, x: linear(x, p["w"], p["b"]) + linear(-x, p["v"], p["c"]),
        ),
        "one shift": ({"w": w, "v": w, "b": b}, lambda p, x: linear(x, p["w"], p["b"]) + linear(-x, p["v"])),
        "two shifts": ({"w": w, "b": b, "c": b}, lambda p, x: linear(x, p["w"], p["b"]) + p["c"]),
        "layer and shift of its own": ({"w": w, "b": b}, lambda p, x: linear(x, p["w"]) + p["b"]),
    }


@pytest.mark.parametrize("case", _sums_of_layers())
@pytest.mark.parametrize("last", ["tanh", "nothing"])
def test_layers_with_the_same_cotangents(case: str, last: str) -> None:
    """Each counts once, whether or not its cotangents are in memory of their own."""
    shapes, layers = _sums_of_layers()[case]
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    x = torch.randn(5, 3, dtype=torch.float64)

    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = layers(params, x)
        return out.tanh() if last == "tanh" else out

    jacobian = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(params, x)
    dense = torch.cat([leaf.reshape(20, -1) for leaf in jacobian.values()], 1)
    operator = jacobian_operator(fn, params, x, in_dims=(None, 0))
    torch.testing.assert_close(operator.gram(), dense @ dense.T)
    kernel = ntk(fn, params, x, outputs="trace")
    torch.testing.assert_close(kernel, torch.einsum("nkp,mkp->nm", *2 * [dense.view(5, 4, -1)]))


def test_of_two_operators_that_hold_the_weight_in_different_forms() -> None:
    p = {"w": torch.randn(4, 4, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    a = jacobian_operator(lambda p, x: linear(x, p["w"], p["b"]), p, x, in_dims=(None, 0))
    b = jacobian_operator(lambda p, x: x @ p["w"] + p["b"], p, y, in_dims=(None, 0))
    torch.testing.assert_close(a.gram(b), a.materialize() @ b.materialize().T)
