"""Diagonals of Hessians: of a network with respect to each sample, of a loss with respect to all weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

import jacfn

from ..methods import Method, Run
from ..operators.compare import Compared, Part, at_least, over
from . import ways
from .works import Field, Loss, flat, unflat

#: Budget of the second row of jacfn.
BUDGET = "64MiB"
#: Directions that PyTorch's ways take at once where they cannot take all.
AT_ONCE = 64

OURS = "jacfn.hessian_diag"
BUDGETED = f"{OURS}, memory='{BUDGET}'"

# --- the ways -------------------------------------------------------------------------------------


def _ours(**options: object) -> Callable[[Field | Loss], Run]:
    def make(work: Field | Loss) -> Run:
        if isinstance(work, Loss):
            of_weights = jacfn.hessian_diag(work.loss, strict=True, **options)
            return lambda: {"diagonal": flat(of_weights(work.params))}
        of_samples = jacfn.hessian_diag(work.of_sample, in_dims=0, strict=True, **options)
        return lambda: {"diagonal": of_samples(work.x).flatten(1)}

    return make


def _way(way: Callable[..., Tensor], **options: int) -> Callable[[Field | Loss], Run]:
    """One of PyTorch, on the batch or on the weights."""

    def make(work: Field | Loss) -> Run:
        fn, x = (unflat(work), flat(work.params)) if isinstance(work, Loss) else (work.of_batch, work.x)
        return lambda: {"diagonal": way(fn, x, **options)}

    return make


def _large(work: Field | Loss) -> str:
    return "all directions at once do not fit" if isinstance(work, Loss) else ""


# --- the part -------------------------------------------------------------------------------------

LOOP = "double backward, loop"
MAPPED = "jvp of grad, vmap"
CHUNKED = f"jvp of grad, {AT_ONCE} at once"
PEERS = (LOOP, MAPPED, CHUNKED, "jvp of grad, loop")


def _targets(m: Compared) -> Iterator[list[str]]:
    peers = [name for name in PEERS if name in m.seconds]
    best = min(peers, key=m.best)
    for way in (OURS, BUDGETED):
        yield at_least(f"{m.work.name}: time of {best} (the best) / {way}", 1.0, over(m, best, way))


DIAGONAL = Part(
    name="diagonal",
    title="Diagonals of Hessians",
    how=f"""\
ratio: time of the method / time of {BUDGETED}, above 1 means that the method is slower. Of the MLP's output with
respect to the coordinates of each sample, and of a loss with respect to all of its weights, nearly 8,000 directions.
The Hessian is made by no way. memory=: directions and samples in chunks that keep to the budget.""",
    works=("mlp30", "weights"),
    methods=(
        Method(OURS, _ours(), ours=True),
        Method(BUDGETED, _ours(memory=BUDGET), ours=True),
        Method(LOOP, _way(ways.double_backward)),
        Method(MAPPED, _way(ways.forward_over_reverse), skip=_large),
        Method(CHUNKED, _way(ways.forward_over_reverse, at_once=AT_ONCE)),
        Method("jvp of grad, loop", _way(ways.forward_over_reverse_loop)),
    ),
    baseline=CHUNKED,
    unit=BUDGETED,
    targets=_targets,
)
