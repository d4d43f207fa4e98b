"""The Jacobian as one matrix ``(M, P)``: made anew each time, in new memory or in a given buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import jacfn

from .. import timing
from ..methods import BASELINE as TREE
from ..methods import Method, Run, named
from ..peers import BACKPACK, OPACUS
from ..works import Work, flat
from .compare import Compared, Part, at_least, at_most, over

FRESH = "jacfn materialize()"
GIVEN = "jacfn materialize(out=)"
TORCH = f"{TREE}+cat"


def operator(work: Work, **options: object) -> jacfn.JacobianOperator:
    """The work's Jacobian as an operator."""
    return jacfn.jacobian_operator(work.fn, work.params, work.x, in_dims=work.in_dims, **options)


def _fresh(work: Work) -> Run:
    return lambda: {"J": operator(work).materialize()}


def _given(work: Work) -> Run:
    buffer = torch.zeros(work.rows, work.columns)  # written once, so that it is in memory
    return lambda: {"J": operator(work).materialize(out=buffer)}


def joined(method: Method) -> Callable[[Work], Run]:
    """A way to the pytree, and then its leaves side by side in a matrix."""

    def make(work: Work) -> Run:
        tree = method.make(work)
        return lambda: {"J": flat(tree(), work.rows)}

    return make


def dense(work: Work) -> Tensor:
    """The Jacobian by torch.func."""
    return joined(*named(TREE))(work)()["J"]


def _fills(work: Work, seconds: float) -> dict[str, float]:
    return dict(zip(("warm fill", "cold fill"), timing.fill(work.floor_bytes, seconds), strict=True))


def _targets(m: Compared) -> Iterator[list[str]]:
    name = m.work.name
    given, fresh = f"{name}: time of {TORCH} / {GIVEN}", f"{name}: time of {TORCH} / {FRESH}"
    if name == "mlp":
        warm = m.best(GIVEN) / m.floors["warm fill"] if GIVEN in m.seconds else float("nan")
        yield at_most(f"{name}: time of {GIVEN} / warm fill", 1.5, warm)
        yield at_least(given, 12.0, over(m, TORCH, GIVEN))
        yield at_least(fresh, 6.0, over(m, TORCH, FRESH))
    if name in ("cnn", "transformer"):
        yield at_least(fresh, 1.8, over(m, TORCH, FRESH))
        yield at_least(given, 1.8, over(m, TORCH, GIVEN))
    if name == "lm":
        yield at_least(given, 2.0, over(m, TORCH, GIVEN))


FLAT = Part(
    name="flat",
    title="Flat J: (M, P), the operator made anew each time",
    how=f"""\
ratio: time of the method / time of {FRESH}, above 1 means that the method is slower. {GIVEN} writes into
a buffer that is in memory already; all others allocate their result. fill: time to fill a buffer of the result's
size, in memory already (warm) or new (cold). BackPACK and Opacus run as in benchmarks.quasilinear.""",
    works=("mlp", "cnn", "transformer", "lm"),
    methods=(
        Method(FRESH, _fresh, ours=True),
        Method(GIVEN, _given, ours=True),
        Method(TORCH, joined(*named(TREE))),
        Method(f"{BACKPACK.name}+cat", joined(BACKPACK), skip=BACKPACK.skip),
        Method(f"{OPACUS.name}+cat", joined(OPACUS), skip=OPACUS.skip),
    ),
    baseline=TORCH,
    unit=FRESH,
    targets=_targets,
    floors=_fills,
)
