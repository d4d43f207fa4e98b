"""The neural tangent kernel: all inner products of the Jacobian's rows, ``(N, N, K, K)``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import jacfn

from .. import timing
from ..methods import Method, Run
from ..peers.torchjd import TORCHJD
from ..peers.tutorial import CONTRACTION, PRODUCTS
from ..works import Work
from .compare import Compared, Part, at_least, over
from .flat import dense, operator

OURS = "jacfn.ntk"
HELD = "jacfn J.gram(), J given"
MATRIX = "vmap(jacrev)+cat, J @ J.T"


def _pairs(gram: Tensor, work: Work) -> dict[str, Tensor]:
    """A Gram matrix with axes as the kernel has them; a view."""
    n, k = len(work.x), work.outputs
    return {"NTK": gram.reshape(n, k, n, k).transpose(1, 2)}


def _ours(work: Work) -> Run:
    return lambda: {"NTK": jacfn.ntk(work.fn, work.params, work.x)}


def _held(work: Work) -> Run:
    jacobian = operator(work)
    return lambda: _pairs(jacobian.gram(), work)


def _matrix(work: Work) -> Run:
    def run() -> dict[str, Tensor]:
        jac = dense(work)
        return _pairs(jac @ jac.T, work)

    return run


def _product(work: Work, seconds: float) -> dict[str, float]:
    """One product of the dense matrix with itself, both halves."""
    jac, out = dense(work), torch.empty(work.rows, work.rows)
    return {"J @ J.T, J given": timing.median(lambda: torch.mm(jac, jac.T, out=out), seconds)}


def _targets(m: Compared) -> Iterator[list[str]]:
    least = {"mlp": 150.0, "cnn": 1.7}.get(m.work.name)
    if least:
        for method in (CONTRACTION.name, TORCHJD.name):
            yield at_least(f"{m.work.name}: time of {method} / {OURS}", least, over(m, method, OURS))


NTK = Part(
    name="ntk",
    title="NTK: (N, N, K, K)",
    how=f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower. {OURS} runs from scratch,
passes included; J.gram() has an operator that was made before. The tutorial's functions take two data sets and are
given the same one twice, as it gives no other form; its products are taken a few samples at a time, since all pairs
at once do not fit into memory; {MATRIX} evaluates J once. TorchJD's engine is made
before. J @ J.T, J given: the product of the dense matrix alone, for comparison: no floor where there is structure.""",
    works=("mlp", "cnn"),
    methods=(
        Method(OURS, _ours, ours=True),
        Method(HELD, _held, ours=True),
        CONTRACTION,
        PRODUCTS,
        Method(MATRIX, _matrix),
        TORCHJD,
    ),
    baseline=CONTRACTION.name,
    unit=OURS,
    targets=_targets,
    floors=_product,
)
