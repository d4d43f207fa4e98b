"""Leaves in factors and the same rows from an einsum, drawn by hypothesis: what the closed forms are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from jacfn.quasilinear.factors import Arranged, Dense, Form, Gather, Leaf, Matmul, Scale, Shift, Term
from jacfn.quasilinear.factors.matmul import AsIs

D = torch.float64

Rows = Callable[[Tensor, Any], Tensor]  # (N, R, *leaf) from delta and x


class Use(NamedTuple):
    """A term, and its rows by an einsum of the same two tensors."""

    term: Term
    rows: Rows


class Case(NamedTuple):
    """A leaf, and the einsums of its terms."""

    leaf: Leaf
    rows: tuple[Rows, ...]

    @property
    def dense(self) -> Tensor:
        """``(N, R, *leaf)``."""
        total = torch.zeros(self.leaf.shape, dtype=D)
        for rows, term in zip(self.rows, self.leaf.terms, strict=True):
            total = total + rows(term.delta, term.x)
        return total

    @property
    def factors(self) -> list[Tensor]:
        """The floating tensors of the terms."""
        return [x for x in self.leaf.tensors() if x.is_floating_point()]

    def tracked(self) -> Case:
        """The same with factors that require grad."""

        def leaf_of_graph(x: Any) -> Any:
            is_float = isinstance(x, Tensor) and x.is_floating_point()
            return x.detach().clone().requires_grad_() if is_float else x

        terms = tuple(Term(term.form, leaf_of_graph(term.delta), leaf_of_graph(term.x)) for term in self.leaf.terms)
        leaf = Leaf(terms, self.leaf.shape, D, torch.device("cpu"), in_place=False)
        return Case(leaf, self.rows)


class Draw:
    """What a use is drawn from: ``leaf`` has the axes G, A, B of the parameter."""

    def __init__(self, draw: Callable[[Any], Any], n: int, r: int, leaf: tuple[int, int, int]) -> None:
        self.draw, self.n, self.r, self.leaf = draw, n, r, leaf
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))

    def size(self, low: int = 0, high: int = 3) -> int:
        return self.draw(st.integers(low, high))

    def rand(self, *shape: int) -> Tensor:
        """In any order of axes in memory."""
        order = self.draw(st.permutations(range(len(shape))))
        memory = torch.randn([shape[axis] for axis in order], generator=self.generator, dtype=D)
        return memory.permute(*(order.index(axis) for axis in range(len(shape)))) if shape else memory

    def below(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)


def matmul(of: Draw) -> Use:
    g, a, b = of.leaf
    t = of.draw(st.sampled_from([1, 1, 0, 2, 3]))
    swapped = of.draw(st.booleans())
    o, i = (b, a) if swapped else (a, b)
    equation = "rngto,ngti->nrgio" if swapped else "rngto,ngti->nrgoi"
    term = Term(Matmul(AsIs(), swapped), of.rand(of.r, of.n, g, t, o), of.rand(of.n, g, t, i))
    return Use(term, lambda delta, x: torch.einsum(equation, delta, x))


def arranged(of: Draw) -> Use:
    axes = tuple(of.draw(st.permutations(range(3))))
    g, o, i = sizes = tuple(of.leaf[axes.index(axis)] for axis in range(3))
    t = of.size(0, 2)
    equation = f"rngto,ngti->nr{''.join('goi'[axis] for axis in axes)}"
    term = Term(Arranged(Matmul(AsIs()), axes, sizes), of.rand(of.r, of.n, g, t, o), of.rand(of.n, g, t, i))
    return Use(term, lambda delta, x: torch.einsum(equation, delta, x))


def _broadcast(of: Draw) -> tuple[int, ...]:
    """The shape of an output to which a weight of the leaf's shape is broadcast."""
    return (of.size(0, 2), *(of.size(1, 3) if size == 1 else size for size in of.leaf))


def _summed(y: Tensor, leaf: tuple[int, ...]) -> Tensor:
    """``(N, R, *leaf)`` from ``(R, N, E, *y)``."""
    axes = [3 + k for k, size in enumerate(leaf) if size == 1]
    y = y.sum(2, keepdim=True)
    return (y.sum(axes, keepdim=True) if axes else y).squeeze(2).transpose(0, 1)


def scale(of: Draw) -> Use:
    y, leaf = _broadcast(of), of.leaf
    kind = of.draw(st.sampled_from(["whole", "number", "mask"]))
    x = of.rand(of.n) if kind == "number" else of.rand(of.n, *y)
    x = x > 0 if kind == "mask" else x

    def rows(delta: Tensor, x: Tensor) -> Tensor:
        equation = "rnegab,n->rnegab" if x.ndim == 1 else "rnegab,negab->rnegab"
        return _summed(torch.einsum(equation, delta, x.to(D)), leaf)

    return Use(Term(Scale(leaf), of.rand(of.r, of.n, *y), x), rows)


def shift(of: Draw) -> Use:
    leaf = of.leaf
    return Use(Term(Shift(leaf), of.rand(of.r, of.n, *_broadcast(of)), None), lambda delta, _: _summed(delta, leaf))


def gather(of: Draw) -> Use:
    v, *d = leaf = of.leaf
    index = (of.size(1, 3),) * of.size(0, 2) if v else (0,)
    skipped = of.draw(st.sampled_from([None, 0, v - 1, -1])) if v else None
    x = of.below(max(v, 1), of.n, math.prod(index))

    def rows(delta: Tensor, x: Tensor) -> Tensor:
        chosen = torch.nn.functional.one_hot(x, v).to(D) if v else torch.zeros(*x.shape, 0, dtype=D)
        if skipped is not None:
            chosen[..., skipped] = 0
        return torch.einsum(
            "rntd,ntv->nrvd", delta.reshape(*delta.shape[:2], x.shape[1], math.prod(d)), chosen
        ).reshape(*delta.shape[1::-1], *leaf)

    return Use(Term(Gather(v, skipped), of.rand(of.r, of.n, *index, *d), x), rows)


def dense(of: Draw) -> Use:
    return Use(Term(Dense(), of.rand(of.r, of.n, *of.leaf), None), lambda delta, _: delta.transpose(0, 1))


KINDS: list[Callable[[Draw], Use]] = [matmul, arranged, scale, shift, gather, dense]


@st.composite
def cases(
    draw: Callable[[Any], Any],
    n: int | None = None,
    r: int | None = None,
    shape: tuple[int, int, int] | None = None,
    most: int = 3,
    kinds: list[Callable[[Draw], Use]] = KINDS,
) -> Case:
    """Leaves of up to ``most`` terms; sizes that are given are not drawn."""
    n = draw(st.integers(0, 4)) if n is None else n
    r = draw(st.integers(0, 4)) if r is None else r
    shape = draw(shapes) if shape is None else shape
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1 if most == 1 else 0, max_size=most))
    uses = [kind(Draw(draw, n, r, shape)) for kind in chosen]
    leaf = Leaf(tuple(use.term for use in uses), (n, r, *shape), D, torch.device("cpu"), in_place=True)
    return Case(leaf, tuple(use.rows for use in uses))


shapes = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 4))
rooms = st.sampled_from([1, 100, 1000, 1 << 24])


def form_names(leaf: Leaf) -> list[str]:
    """For messages."""
    forms: list[Form] = [term.form for term in leaf.terms]
    return [type(form).__name__ for form in forms]
