"""The norms of the Jacobian's rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import timing
from ..methods import Method, Run
from ..peers.norms import BACKPACK_NORMS, OPACUS_GHOST, OPACUS_NORMS
from ..works import Work
from .compare import Compared, Part, at_most
from .flat import dense, operator

OURS = "jacfn J.row_norms()"
MATRIX = "vmap(jacrev)+cat, norm"
PASSES = "forward, K backward passes"


def _ours(work: Work) -> Run:
    return lambda: {"norms": operator(work).row_norms()}


def _matrix(work: Work) -> Run:
    return lambda: {"norms": dense(work).norm(dim=1)}


def passes(work: Work) -> Run:
    """One forward pass of the batch and a backward pass for each output summed over the samples, gradients and all."""
    weights = [weight.detach().requires_grad_() for weight in work.params.values()]
    params = dict(zip(work.params, weights, strict=True))

    def run() -> list[tuple[Tensor, ...]]:
        outputs = work.batch_fn(params, work.x).reshape(len(work.x), -1)
        return [torch.autograd.grad(outputs[:, k].sum(), weights, retain_graph=True) for k in range(work.outputs)]

    return run


def _floor(work: Work, seconds: float) -> dict[str, float]:
    run = passes(work)
    run()
    return {PASSES: min(timing.median(run, seconds) for _ in range(2))}


def _targets(m: Compared) -> Iterator[list[str]]:
    ratio = m.best(OURS) / m.floors[PASSES] if OURS in m.seconds else float("nan")
    yield at_most(f"{m.work.name}: time of {OURS} / {PASSES}", 1.5, ratio)


NORMS = Part(
    name="norms",
    title="Row norms: (M,)",
    how=f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower; the making of the
operator included. {PASSES}: what plain autograd takes to pass the batch forward once and each output,
summed over the samples, backward; that gives no norms. BackPACK takes a forward pass and a backward pass for each
output, Opacus both for each output.""",
    works=("mlp", "cnn", "transformer", "lm"),
    methods=(
        Method(OURS, _ours, ours=True),
        Method(MATRIX, _matrix),
        BACKPACK_NORMS,
        OPACUS_NORMS,
        OPACUS_GHOST,
    ),
    baseline=MATRIX,
    unit=OURS,
    targets=_targets,
    floors=_floor,
)
