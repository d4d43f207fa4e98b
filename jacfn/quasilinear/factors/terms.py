"""Terms of the Jacobian of a leaf (L2): a form with its two tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jacfn.quasilinear.factors.arranged import Arranged
from jacfn.quasilinear.factors.dense import Dense
from jacfn.quasilinear.factors.gather import Gather
from jacfn.quasilinear.factors.matmul import Matmul
from jacfn.quasilinear.factors.pointwise import Scale, Shift

Form = Matmul | Arranged | Scale | Shift | Gather | Dense


class Term(NamedTuple):
    """One use of a leaf."""

    form: Form
    delta: Tensor  # laid: leads with R, N
    x: Any  # prepared: a tensor that leads with N, or None

    def rows(self) -> Tensor:
        """``(N, R, ...)``."""
        return self.form.rows(self.delta, self.x)


class Product(NamedTuple):
    """A matrix product that is all there is."""

    form: Matmul | Arranged
    delta: Tensor  # (R, N, G, T, O)
    x: Tensor  # (N, G, T, I)

    @property
    def positions(self) -> int:
        """How many share the weight, T."""
        return self.delta.shape[3]

    def matches(self, other: Product) -> bool:
        """Whether groups, outputs and inputs of both are the same axes of the weight."""
        return self._axes() == other._axes()

    def _axes(self) -> tuple[object, ...]:
        order = self.form.swapped if isinstance(self.form, Matmul) else (self.form.axes, self.form.sizes)
        return order, self.x.shape[1], self.delta.shape[4], self.x.shape[3]


def only_product(terms: Sequence[Term]) -> Product | None:
    """The matrix product that these terms are; None where they are something else."""
    if len(terms) != 1:
        return None
    form, delta, x = terms[0]
    return Product(form, delta, x) if isinstance(form, Matmul | Arranged) else None


def joined(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The same sum with fewer terms: matrix products of one weight are one product over the positions of all.

    What has no cotangents, such as an embedding of nothing, is left out.
    """
    first: dict[tuple[bool, int, int, int], list[Term]] = {}
    rest: list[Term] = []
    for term in terms:
        if 0 in term.delta.shape[2:]:
            continue
        if isinstance(term.form, Matmul):
            key = (term.form.swapped, term.x.shape[1], term.delta.shape[-1], term.x.shape[-1])
            first.setdefault(key, []).append(term)
        else:
            rest.append(term)
    return (*(_as_one(terms) for terms in first.values()), *rest)


def _as_one(terms: list[Term]) -> Term:
    if len(terms) == 1:
        return terms[0]
    return Term(terms[0].form, torch.cat([term.delta for term in terms], 3), torch.cat([term.x for term in terms], 2))
