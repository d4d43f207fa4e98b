"""Inner products of the rows of two Jacobians with respect to one leaf (L3), without the Jacobians.

Three contractions of ``J[n,r] · J'[n',r']``: ``full`` has all of them, ``(N, R, N', R')``; ``diagonal`` those of equal
rows, ``(N, N', R)``; ``trace`` their sum, ``(N, N')``. Each is a matrix product of the rows in some arrangement, and
there are two ways to add up what it sums over, for ``P = G·O·I`` columns and ``M = N·R`` rows:

* over *slices* of the columns, dense for all rows: ``2·M·M'·P`` operations for the products, and for the slices
  ``2·(M·T + M'·T')·P``;
* over *pairs* of positions, since ``J[n,r] = sum_t delta_t xᵗ_t``: ``(x_t · x_t')(delta_t · delta_t')``, which takes
  ``2·G·T·T'·(N·N'·I + M·M'·O)`` operations and ``G·T·T'`` passes over the result.

``trace`` and ``diagonal`` have ``N·N'·R`` in place of ``M·M'``. One position makes pairs I times cheaper; with many
positions slices are. Rows of a table go either way, with ``index = index'`` in the place of ``x · x'``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jacfn.operator.sums import Contraction, InPlace, Recorded, Sums, mirror
from jacfn.quasilinear.factors import Dense, Gather, Leaf, Scale, Shift, Term
from jacfn.quasilinear.factors.slices import dense_slices, gather_slices, product_slices
from jacfn.quasilinear.factors.terms import Product, only_product

__all__ = ["Contraction", "add_gram", "gram_of", "mirror", "shifts"]


def shifts(a: Sequence[Leaf], b: Sequence[Leaf]) -> dict[int, int]:
    """Leaves that add to one position alone what a weight multiplies there, by the weight's number.

    Weight and bias of a linear layer have the same cotangents, in the same memory: their inner products are
    ``(x·x' + 1)(delta·delta')``. Layers whose outputs are added have the same cotangents, too: each shift goes with one
    weight, and each weight with one shift.
    """
    found: dict[int, int] = {}
    for number in range(len(a)):
        for weight in range(len(a)):
            if weight not in found and _are_shifts(number, weight, a, b):
                found[weight] = number
                break
    return found


def _are_shifts(number: int, weight: int, a: Sequence[Leaf], b: Sequence[Leaf]) -> bool:
    if not all(_is_shift(leaves[number], leaves[weight]) for leaves in (a, b)):
        return False
    mine, its = only_product(a[weight].terms), only_product(b[weight].terms)
    return mine is not None and its is not None and mine.matches(its)


def _is_shift(leaf: Leaf, weight: Leaf) -> bool:
    product = only_product(weight.terms)
    if product is None or product.positions != 1 or product.delta.shape[2] != 1 or len(leaf.terms) != 1:
        return False
    mine, its = leaf.terms[0].delta, product.delta[:, :, 0, 0]
    same = mine.shape == its.shape and mine.stride() == its.stride() and mine.data_ptr() == its.data_ptr()
    return isinstance(leaf.terms[0].form, Dense) and same


def add_gram(
    out: Tensor, a: Leaf, b: Leaf | None, contraction: Contraction, room: int, *, shifted: bool = False
) -> None:
    """Add the inner products of the rows of ``a`` with those of ``b`` to ``out``, with temporaries of ``room`` bytes.

    With ``shifted``, for weights that :func:`shifts` names, those of the shift as well.

    With ``b`` None they are those of ``a`` among themselves, and right in the upper triangle alone: :func:`mirror`
    completes it when all leaves are there.
    """
    if not out.numel():
        return
    sums = InPlace(out, contraction, b is None, room)
    for p, q in _pairs_of_terms(a, b):
        if not _add_alike(sums, p, q, contraction, room, in_place=True, shifted=shifted):
            _add_crossed(out, a.only(p), (b or a).only(q or p), contraction, room)


def gram_of(a: Leaf, b: Leaf | None, contraction: Contraction, room: int) -> Tensor:
    """The same in new memory, both triangles, by operations that can be differentiated."""
    other = a if b is None else b
    (n, r), (m, s) = a.shape[:2], other.shape[:2]
    shape = {"full": (n, r, m, s), "trace": (n, m), "diagonal": (n, m, r)}[contraction]
    sums = Recorded(torch.zeros(shape, dtype=a.dtype, device=a.device), contraction)
    if sums.total.numel():
        for p, q in _pairs_of_terms(a, b):
            if not _add_alike(sums, p, q, contraction, room, in_place=False):
                for left, right in dense_slices(p.rows(), None if q is None else q.rows(), room):
                    sums.add_slices(left, right)
    return sums.total


def _pairs_of_terms(a: Leaf, b: Leaf | None) -> Iterator[tuple[Term, Term | None]]:
    """Every term of the one with every term of the other; None for the same."""
    mine = [_simplified(term) for term in a.terms]
    its = mine if b is None else [_simplified(term) for term in b.terms]
    for p in mine:
        for q in its:
            yield p, None if q is p else q


def _simplified(term: Term) -> Term:
    """Dense where that is smaller."""
    return Term(Dense(), term.rows().transpose(0, 1), None) if isinstance(term.form, Scale | Shift) else term


def _add_alike(
    sums: Sums, p: Term, q: Term | None, contraction: Contraction, room: int, in_place: bool, shifted: bool = False
) -> bool:
    """Add the inner products of terms of one kind; False where they are of two."""
    other = p if q is None else q
    a, b = only_product([p]), None if q is None else only_product([q])
    if a is not None and (q is None or (b is not None and a.matches(b))):
        _add_products(sums, a, b, contraction, room, in_place, shifted)
    elif isinstance(p.form, Dense) and isinstance(other.form, Dense):
        for left, right in dense_slices(p.rows(), None if q is None else q.rows(), room):
            sums.add_slices(left, right)
    elif isinstance(p.form, Gather) and isinstance(other.form, Gather) and in_place:
        _add_gathers(sums, p, q, contraction, room)
    else:
        return False
    return True


def _add_products(
    sums: Sums, a: Product, b: Product | None, contraction: Contraction, room: int, in_place: bool, shifted: bool
) -> None:
    """Of matrix products, by pairs or by slices, whichever takes fewer operations."""
    other = a if b is None else b
    (r, n, g, t, o), i = a.delta.shape, a.x.shape[3]
    s, m, _, u, _ = other.delta.shape
    each, entries = _sizes(n, r, m, s, contraction)
    by_pairs = g * t * u * (2 * n * m * i + 2 * each * o + _PASS * entries + _CALLS)
    by_slices = 2 * g * o * i * (each + n * r * t + m * s * u)
    if by_slices < by_pairs:
        for left, right in product_slices(a, b, room, in_place):
            sums.add_slices(left, right)
        if shifted:
            sums.add_slices(*(delta[:, :, 0, 0].transpose(0, 1) for delta in (a.delta, other.delta)))
        return
    for group in range(g):
        for position in range(t):
            x, delta = a.x[:, group, position], a.delta[:, :, group, position].transpose(0, 1)
            for another in range(u):
                weights = x @ other.x[:, group, another].T + int(shifted)
                sums.add_pair(weights, delta, other.delta[:, :, group, another].transpose(0, 1))


def _add_gathers(sums: Sums, p: Term, q: Term | None, contraction: Contraction, room: int) -> None:
    """Of rows of one table, by pairs or by slices."""
    terms = [p] if q is None else [p, q]
    sources = [term.form.source(term.delta, term.x) for term in terms]  # type: ignore[union-attr]
    indices = [term.x for term in terms]  # (N, T)
    (n, r, t, d), (m, s, u, _) = sources[0].shape, sources[-1].shape
    each, entries = _sizes(n, r, m, s, contraction)
    occurring = min(p.form.size, sum(index.numel() for index in indices))  # type: ignore[union-attr]
    if t * u * (2 * each * d + _PASS * entries + _CALLS) > 2 * each * d * occurring:
        for left, right in gather_slices(sources, indices, room):
            sums.add_slices(left, right)
        return
    for position in range(t):
        for another in range(u):
            weights = indices[0][:, position, None] == indices[-1][:, another]
            sums.add_pair(weights.to(sources[0]), sources[0][:, :, position], sources[-1][:, :, another])


def _sizes(n: int, r: int, m: int, s: int, contraction: Contraction) -> tuple[int, int]:
    """Of a contraction: the products for each column, and the entries of the result."""
    if contraction == "full":
        return n * r * m * s, n * r * m * s
    return n * m * r, n * m * (r if contraction == "diagonal" else 1)


def _add_crossed(out: Tensor, a: Leaf, b: Leaf, contraction: Contraction, room: int) -> None:
    """Of two terms of different kinds: products of the one with the rows of the other, made a few at a time."""
    if _work(b, a) < _work(a, b):
        a, b = b, a
        out = out.permute(2, 3, 0, 1) if contraction == "full" else out.transpose(0, 1)
    for samples, pieces in b.parts(room // 2):
        for rows in pieces:
            dense = b.part(samples, rows).dense()  # (n, r, *leaf)
            if contraction == "full":
                product = a.mv(dense.flatten(0, 1), room // 2)
                out[:, :, samples, rows] += product.view(*a.shape[:2], *dense.shape[:2])
                continue
            for place, row in enumerate(range(rows.start, rows.stop)):
                product = a.part(slice(None), slice(row, row + 1)).mv(dense[:, place], room // 2).squeeze(1)
                target = out[:, samples] if contraction == "trace" else out[:, samples, row]
                target += product


def _work(a: Leaf, b: Leaf) -> int:
    """Operations for the rows of ``b`` and for their products with ``a``, each with one term."""
    vectors, made = math.prod(b.shape[:2]), 0
    product = only_product(b.terms)
    if product is not None:
        made = product.positions * math.prod(b.shape)
    delta = a.terms[0].delta
    each = delta.numel()
    product = only_product(a.terms)
    if product is not None:
        each += delta.shape[1:].numel() * product.x.shape[-1]
    return made + vectors * each


# Measured on two cores, in operations of a matrix product:
_PASS = 64  # to add a number that was multiplied
_CALLS = 1 << 22  # what calls take by themselves
