"""Many products J v and Jᵀ u of one Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, linearize, vjp

from ..methods import Method, Run
from ..peers._rows import missing
from ..peers.curvlinops import operators
from ..works import Params, Work
from .compare import Compared, Part, at_least, over
from .flat import operator

#: Products of each kind.
COUNT = 100

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Vectors:
    """The vectors, as rows: ``v`` (COUNT, P) and ``u`` (COUNT, M); and the work's shapes."""

    work: Work
    v: Tensor
    u: Tensor

    @classmethod
    def of(cls, work: Work) -> Vectors:
        """Random ones, the same at each call."""
        random = torch.Generator().manual_seed(1)
        return cls(work, *(torch.randn(COUNT, size, generator=random) for size in (work.columns, work.rows)))

    def tree(self, v: Tensor) -> Params:
        """A flat vector in the structure of the weights; views."""
        weights = self.work.params
        parts = v.split([weight.numel() for weight in weights.values()])
        return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}

    def each(self, push: Product, pull: Product) -> dict[str, Tensor]:
        """All products, one by one; the first and the last of each kind are kept, the others are dropped."""
        result = {}
        for name, product, vectors in (("J v", push, self.v), ("Jᵀu", pull, self.u)):
            result[f"first {name}"] = product(vectors[0])
            for vector in vectors[1:-1]:
                product(vector)
            result[f"last {name}"] = product(vectors[-1])
        return result


def _joined(tree: Params) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


# --- the ways -------------------------------------------------------------------------------------


def _ours(**options: object) -> Callable[[Work], Run]:
    def make(work: Work) -> Run:
        vectors = Vectors.of(work)

        def run() -> dict[str, Tensor]:
            jacobian = operator(work, **options)
            transposed = jacobian.T
            return vectors.each(lambda v: jacobian @ v, lambda u: transposed @ u)

        return run

    return make


def _at_once(work: Work) -> Run:
    vectors = Vectors.of(work)

    def run() -> dict[str, Tensor]:
        jacobian = operator(work)
        pushed, pulled = jacobian @ vectors.v.T, jacobian.T @ vectors.u.T
        ends = (pushed[:, 0], pushed[:, -1], pulled[:, 0], pulled[:, -1])
        return dict(zip(("first J v", "last J v", "first Jᵀu", "last Jᵀu"), ends, strict=True))

    return run


def _one_by_one(work: Work) -> Run:
    vectors = Vectors.of(work)

    def outputs(params: Params) -> Tensor:
        return work.batch_fn(params, work.x)

    def push(v: Tensor) -> Tensor:
        return jvp(outputs, (work.params,), (vectors.tree(v),))[1].reshape(-1)

    def pull(u: Tensor) -> Tensor:
        value, back = vjp(outputs, work.params)
        return _joined(back(u.view_as(value))[0])

    return lambda: vectors.each(push, pull)


def _linearized(work: Work) -> Run:
    vectors = Vectors.of(work)

    def outputs(params: Params) -> Tensor:
        return work.batch_fn(params, work.x)

    def run() -> dict[str, Tensor]:
        _, push = linearize(outputs, work.params)
        value, back = vjp(outputs, work.params)
        return vectors.each(lambda v: push(vectors.tree(v)).reshape(-1), lambda u: _joined(back(u.view_as(value))[0]))

    return run


def _curvlinops(work: Work) -> Run:
    vectors = Vectors.of(work)
    return lambda: vectors.each(*operators(work))


# --- the part -------------------------------------------------------------------------------------

OURS = "jacfn J @ v, J.T @ u"
TORCH = "torch.func.jvp, vjp, one by one"


def _targets(m: Compared) -> Iterator[list[str]]:
    yield at_least(f"{m.work.name}: time of {TORCH} / {OURS}", 3.0, over(m, TORCH, OURS))


PRODUCTS = Part(
    name="products",
    title=f"Products: {COUNT} J v and {COUNT} Jᵀu from one operator",
    how=f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower. Milliseconds of all
{2 * COUNT} products, the making of the operator included; flat vectors. at once: the vectors as the columns of two
matrices. linearize and vjp once: the network is run once for each kind, and the functions that torch.func then gives
are called.""",
    works=("mlp",),
    methods=(
        Method(OURS, _ours(), ours=True),
        Method("jacfn J @ V, J.T @ U at once", _at_once, ours=True),
        Method('jacfn, method="products"', _ours(method="products"), ours=True),
        Method(TORCH, _one_by_one),
        Method("torch.func.linearize and vjp once", _linearized),
        Method("curvlinops", _curvlinops, skip=missing("curvlinops")),
    ),
    baseline=TORCH,
    unit=OURS,
    targets=_targets,
)
