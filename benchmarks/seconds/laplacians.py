"""Laplacians of a batch: by jacfn, by PyTorch alone, by another package."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import jacfn

from .. import timing
from ..floors import gemm_rate
from ..methods import Method, Run
from ..operators.compare import Compared, Part, at_least, over
from ..peers.jet_for_pytorch import JET
from . import by_hand, ways
from .works import Field

#: Budget of the second row of jacfn.
BUDGET = "8MiB"

OURS = "jacfn.laplacian"
BUDGETED = f"{OURS}, memory='{BUDGET}'"
HESSIAN = "vmap(trace of hessian)"
LOOP = "double backward, loop"

# --- the ways -------------------------------------------------------------------------------------


def ours(**options: object) -> Callable[[Field], Run]:
    """Without gradients of its own; an operation without a rule is an error."""

    def make(work: Field) -> Run:
        laplacian = jacfn.laplacian(work.of_sample, in_dims=0, strict=True, **options)
        return lambda: {"laplacian": laplacian(work.x)}

    return make


def summed(way: Callable[..., Tensor], *, samples: bool = False) -> Callable[[Field], Run]:
    """The sum of the second derivatives ``(B, D)`` that a way gives, of the batch or of single samples."""

    def make(work: Field) -> Run:
        fn = work.of_sample if samples else work.of_batch
        return lambda: {"laplacian": way(fn, work.x).sum(1)}

    return make


#: Those of PyTorch, exact for what they accept; each is a peer of the targets.
PYTORCH = (
    Method(HESSIAN, summed(ways.by_hessian, samples=True)),
    Method("vmap(trace of jacrev of grad)", summed(ways.by_reverse_over_reverse, samples=True)),
    Method(LOOP, summed(ways.double_backward)),
    Method("double backward, vmapped", summed(ways.double_backward_mapped)),
    Method("jvp of grad, vmap outside", summed(ways.forward_over_reverse)),
    Method("jvp of grad, vmap inside", summed(ways.forward_over_reverse_inside, samples=True)),
    Method("jvp of grad, loop", summed(ways.forward_over_reverse_loop)),
)
METHODS = (Method(OURS, ours(), ours=True), Method(BUDGETED, ours(memory=BUDGET), ours=True), *PYTORCH, JET)


# --- floors ---------------------------------------------------------------------------------------


def products(work: Field, seconds: float) -> dict[str, float]:
    """The products of a forward Laplacian of an MLP, as they are.

    ``K + 2`` rows for each sample at the hidden layers; at the first layer the derivatives are the weights themselves,
    and at the last one those of first order are not needed.
    """
    first, *hidden, last = (weight for weight in work.params.values() if weight.ndim == 2)
    rows = [(1, first), *((work.columns + 2, weight) for weight in hidden), (2, last)]
    factors = [(torch.randn(count * len(work.x), weight.shape[1]), weight.T) for count, weight in rows]
    outs = [a @ b for a, b in factors]

    def run() -> None:
        for (a, b), out in zip(factors, outs, strict=True):
            torch.mm(a, b, out=out)

    return {"K + 2 products": min(timing.median(run, seconds) for _ in range(2))}


def passes(work: Field, seconds: float) -> dict[str, float]:
    """``K + 2`` times the forward pass of the batch: its FLOPs at the rate of a large product, and its time."""

    def run() -> Tensor:
        with torch.no_grad():
            return work.of_batch(work.x)

    with FlopCounterMode(display=False) as counter:
        run()
    count = work.columns + 2
    return {
        "K + 2 passes, FLOPs": count * counter.get_total_flops() / gemm_rate(seconds),
        "K + 2 passes, time": count * min(timing.median(run, seconds) for _ in range(2)),
    }


# --- the parts ------------------------------------------------------------------------------------

HOW = f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower. J, rows x columns: samples x
coordinates of a sample, K of which are the directions. In one process, without gradients with respect to the weights;
jacfn with strict=True, so that no operation goes without a rule. memory=: samples and directions in chunks that keep
to the budget. double backward: one graph of the gradient of all samples, and a backward pass through it for each
coordinate, in a loop or vmapped. jvp of grad: directions vmapped around the batch (outside), samples vmapped around
the directions (inside), or a loop. jet-for-pytorch takes the batch, traced beforehand."""

#: Work to the least ratios of the times of two ways to ours.
LEAST = {"mlp30": {HESSIAN: 2.4, LOOP: 1.9}, "mlp90": {HESSIAN: 2.8, LOOP: 2.1}}
#: Least ratio of the best exact peer's time to ours, where the network is not an MLP.
LEAST_BEST = 1.5


def _mlp_targets(m: Compared) -> Iterator[list[str]]:
    for way, least in LEAST.get(m.work.name, {}).items():
        yield at_least(f"{m.work.name}: time of {way} / {OURS}", least, over(m, way, OURS))


def _best_targets(m: Compared) -> Iterator[list[str]]:
    best = min((method.name for method in METHODS if not method.ours and method.name in m.seconds), key=m.best)
    yield at_least(f"{m.work.name}: time of {best} (the best) / {OURS}", LEAST_BEST, over(m, best, OURS))


def _part(name: str, title: str, works: tuple[str, ...]) -> Part:
    return Part(name, title, HOW, works, METHODS, LOOP, OURS, _best_targets, passes)


MLP = Part(
    name="mlp",
    title="Laplacian of a tanh MLP",
    how=f"""{HOW} by hand: the same computation written out for this network, 64 samples at a time. K + 2 products: the
products of matrices that a forward Laplacian of this network consists of, in the sizes in which it has them.""",
    works=("mlp30", "mlp90"),
    methods=(*METHODS, Method("by hand", by_hand.laplacian)),
    baseline=HESSIAN,
    unit=OURS,
    targets=_mlp_targets,
    floors=products,
)
TRANSFORMER = _part("transformer", "Laplacian of a transformer", ("transformer",))
WAVEFUNCTION = _part("wavefunction", "Laplacian of a determinant wave function", ("wave64", "wave256"))
