"""The Jacobian of one leaf in factors (L2): a sum of terms, and what can be asked of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from jacfn._torch import inside_transform
from jacfn.quasilinear.factors import norms
from jacfn.quasilinear.factors.cuts import cuts
from jacfn.quasilinear.factors.dense import Dense
from jacfn.quasilinear.factors.matmul import Matmul
from jacfn.quasilinear.factors.pointwise import Scale, Shift
from jacfn.quasilinear.factors.terms import Term, joined, only_product

_ROOM = 32 << 20  # bytes for temporaries where nobody says how many: larger ones are mapped anew each time
_COPIES = 3  # of dense rows: a product, its other order or another term, the sum or a square


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Rows of the Jacobian with respect to one leaf: the sum of its terms.

    ``in_place`` is False where they carry derivatives: they are then made by operations that record them.
    """

    terms: tuple[Term, ...]
    shape: tuple[int, ...]  # (N, R, *leaf)
    dtype: torch.dtype
    device: torch.device
    in_place: bool

    @property
    def samples(self) -> int:
        """How many there are, N."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """Of one row: the elements of the leaf."""
        return math.prod(self.shape[2:])

    # --- dense ---

    def write(self, out: Tensor, room: int = _ROOM) -> None:
        """Into ``out``, ``(N, R, *leaf)`` with contiguous leaves: straight, or by pieces made in ``room`` bytes."""
        if self._writes_straight():
            self._write(out)
            return
        for samples, pieces in self.parts(room):
            for rows in pieces:
                self.part(samples, rows)._write(out[samples, rows])

    def _writes_straight(self) -> bool:
        """Whether no rows are made elsewhere first."""
        if len(self.terms) != 1:
            return not self.terms
        form, delta, _ = self.terms[0]
        return isinstance(form, Dense) or (isinstance(form, Matmul) and form.writes_straight(delta))

    def _write(self, out: Tensor) -> None:
        """The first term is written, the others are added."""
        for number, term in enumerate(self.terms):
            if number == 0:
                term.form.write(term.delta, term.x, out)
            else:
                out += term.rows().reshape(out.shape)
        if not self.terms:
            out.zero_()

    def dense(self) -> Tensor:
        """``(N, R, *leaf)``: new memory, but for a single dense term, which is given as it is."""
        if self.in_place and only_product(self.terms) is not None and _in_place(self.terms):
            out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            self.write(out)
            return out
        terms = [term.rows().reshape(self.shape) for term in self.terms]
        if not terms:
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return sum(terms[1:], terms[0])

    def magnitude(self) -> float:
        """How large the terms are that the elements sum up: rounding errors are relative to it."""

        def size(x: Any) -> Any:
            return x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x

        terms = [form.rows(delta.abs(), size(x)) for form, delta, x in self.terms]
        return max((term.nan_to_num(0, 0, 0).max().item() for term in terms if term.numel()), default=0.0)

    def parts(self, room: int) -> Iterator[tuple[slice, list[slice]]]:
        """Samples, and rows of them, whose dense elements with what it takes to make them have ``room`` bytes."""
        row = self.dtype.itemsize * (_COPIES * self.size + sum(_cotangents(term) for term in self.terms))
        n, r = self.shape[:2]
        rows = cuts(r, room // max(row, 1))
        for samples in cuts(n, room // max(row * r, 1)):
            yield samples, rows

    # --- products ---

    def mv(self, v: Tensor, room: int = _ROOM) -> Tensor:
        """``(N, R, S)``, the products with vectors ``(S, *leaf)``."""
        n, r = self.shape[:2]
        if not self.terms:
            return v.new_zeros(n, r, len(v))
        at_once, samples = self._at_once(len(v), room)
        if at_once < len(v):
            return torch.cat([self.mv(piece, room) for piece in torch.split(v, at_once)], 2)
        if samples < n:
            return torch.cat([self.part(piece).mv(v, room) for piece in cuts(n, samples)])
        return _sum((form.mv(delta, x, v) for form, delta, x in self.terms), self.in_place)

    def rmv(self, u: Tensor, room: int = _ROOM) -> Tensor:
        """``(S, *leaf)``, the sums of the rows with coefficients ``(N, R, S)``."""
        n, _, s = u.shape
        if not self.terms:
            return u.new_zeros(s, *self.shape[2:])
        at_once, samples = self._at_once(s, room)
        if at_once < s:
            return torch.cat([self.rmv(piece, room) for piece in torch.split(u, at_once, 2)])
        if samples < n:
            return _sum((self.part(piece).rmv(u[piece], room) for piece in cuts(n, samples)), self.in_place)
        return _sum((form.rmv(delta, x, u).reshape(s, *self.shape[2:]) for form, delta, x in self.terms), self.in_place)

    def _at_once(self, vectors: int, room: int) -> tuple[int, int]:
        """How many vectors a product may take at once, and with how many samples: what it makes is like cotangents."""
        sizes = [_cotangents(term) for term in self.terms if not isinstance(term.form, Dense | Scale | Shift)]
        each = max(2 * self.dtype.itemsize * sum(sizes), 1)
        at_once = min(max(room // each, 1), vectors)
        return at_once, max(room // (each * max(at_once, 1)), 1)

    # --- norms ---

    def row_squares(self, room: int = _ROOM) -> Tensor:
        """``(N, R)``, the squared norms of the rows."""
        product = only_product(self.terms)
        if product is not None:
            if product.positions == 1:
                return norms.row_squares(product.delta, product.x, self.in_place)
            if norms.pairs_are_cheaper(product.delta, product.x, room):
                return norms.row_squares_by_pairs(product.delta, product.x, room)

        def of(samples: slice, rows: slice) -> Tensor:
            piece = self.part(samples, rows)
            return norms.squares(piece.dense().reshape(*piece.shape[:2], self.size), self.in_place)

        return torch.cat([torch.cat([of(samples, one) for one in rows], 1) for samples, rows in self.parts(room)])

    def column_products(self, other: Leaf, room: int = _ROOM) -> Tensor:
        """``(*leaf)``, the sums over the rows of the elements times those of ``other``, a leaf of the same shape."""
        mine, its = only_product(self.terms), only_product(other.terms)
        if mine and its and mine.matches(its) and mine.positions == its.positions == 1:
            products = norms.column_products((mine.delta, its.delta), (mine.x, its.x), room)
            return mine.form.in_order(products, 0).reshape(self.shape[2:])

        def of(samples: slice, rows: slice) -> Tensor:
            mine = self.part(samples, rows).dense()
            its = mine if other is self else other.part(samples, rows).dense()
            return (mine * its).sum((0, 1))

        return _sum((of(samples, one) for samples, rows in self.parts(room) for one in rows), self.in_place)

    # --- other Jacobians in the same factors: they are linear in delta ---

    def scaled(self, c: float | Tensor) -> Leaf:
        """``c`` times this."""
        return self._with_deltas(lambda delta: delta * c)

    def weighted(self, w: Tensor) -> Leaf:
        """Every row times its weight ``(N, R)``."""
        return self._with_deltas(lambda delta: delta * w.T.reshape(*w.T.shape, *(1,) * (delta.ndim - 2)))

    def mixed(self, w: Tensor) -> Leaf:
        """Rows combined within their samples: row r of the result is the sum of ``w[n, r, s]`` times row s."""

        def mix(delta: Tensor) -> Tensor:
            r, n = delta.shape[:2]
            rows = delta.transpose(0, 1).reshape(n, r, delta.shape[2:].numel())
            return (w @ rows).view(n, w.shape[1], *delta.shape[2:]).transpose(0, 1)

        return dataclasses.replace(self._with_deltas(mix), shape=(self.samples, w.shape[1], *self.shape[2:]))

    def pick(self, samples: Tensor, rows: Tensor) -> Leaf:
        """Single rows, by the sample and the row in it: as many samples with one row each."""
        terms = (Term(form, delta[rows, samples].unsqueeze(0), _at(x, samples)) for form, delta, x in self.terms)
        return dataclasses.replace(self, terms=tuple(terms), shape=(len(samples), 1, *self.shape[2:]))

    def part(self, samples: slice, rows: slice = slice(None)) -> Leaf:
        """The rows of a range of samples, as views."""
        terms = (Term(form, delta[rows, samples], _at(x, samples)) for form, delta, x in self.terms)
        counts = (len(range(size)[which]) for size, which in zip(self.shape, (samples, rows), strict=False))
        return dataclasses.replace(self, terms=tuple(terms), shape=(*counts, *self.shape[2:]))

    def only(self, term: Term) -> Leaf:
        """One term of it."""
        return dataclasses.replace(self, terms=(term,))

    def plus(self, other: Leaf) -> Leaf:
        """The sum with a leaf of the same shape."""
        terms = joined((*self.terms, *other.terms))
        return dataclasses.replace(self, terms=terms, in_place=self.in_place and other.in_place)

    # --- what is held ---

    def tensors(self) -> Iterator[Tensor]:
        """All that the terms hold."""
        for _, delta, x in self.terms:
            yield delta
            if x is not None:
                yield x

    def map(self, f: Callable[[Tensor], Tensor]) -> Leaf:
        """``f`` of every floating tensor; the others go where these go."""
        like = f(torch.empty(0, dtype=self.dtype, device=self.device))

        def mapped(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return f(x) if x.is_floating_point() else x.to(like.device)

        terms = tuple(Term(form, f(delta), mapped(x)) for form, delta, x in self.terms)
        return dataclasses.replace(self, terms=terms, dtype=like.dtype, device=like.device, in_place=_in_place(terms))

    def compressed(self) -> Leaf:
        """The same, with terms dense that are no larger so, and these in one."""
        size = math.prod(self.shape)
        kept, dense = [], []
        for term in self.terms:
            held = sum(x.numel() for x in term[1:] if x is not None)
            if size > held:
                kept.append(term)
            else:
                dense.append(term)
        if dense:
            rows = dataclasses.replace(self, terms=tuple(dense)).dense()
            if self.in_place and not (len(dense) == 1 and self._is_cotangent(dense[0])):
                rows = rows.contiguous()
            kept.append(Term(Dense(), rows.transpose(0, 1), None))
        return dataclasses.replace(self, terms=tuple(kept))

    def _is_cotangent(self, term: Term) -> bool:
        """Whether the rows are the cotangents themselves, as of a bias: then they are shared with its weight."""
        return isinstance(term.form, Shift) and _cotangents(term) == self.size

    def _with_deltas(self, f: Callable[[Tensor], Tensor]) -> Leaf:
        terms = tuple(Term(form, f(delta), x) for form, delta, x in self.terms)
        return dataclasses.replace(self, terms=terms, in_place=_in_place(terms))


def _in_place(terms: Iterable[Term]) -> bool:
    """Whether nothing in them carries derivatives, or may be batched."""
    held = (x for term in terms for x in term[1:] if x is not None)
    return not inside_transform() and not any(x.requires_grad for x in held)


def _cotangents(term: Term) -> int:
    """How many a row of a sample has."""
    return math.prod(term.delta.shape[2:])


def _sum(parts: Iterable[Tensor], in_place: bool) -> Tensor:
    """Of at least one, which are nobody else's."""
    parts = iter(parts)
    total = next(parts)
    for part in parts:
        total = total.add_(part) if in_place else total + part
    return total


def _at(x: Tensor | None, samples: slice | Tensor) -> Tensor | None:
    return None if x is None else x[samples]
