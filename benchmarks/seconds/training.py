"""A training step: the mean squared Laplacian and its gradients with respect to all weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import jacfn

from ..methods import Method, Run
from ..operators.compare import Compared, Part, at_least, over
from ..works import Params
from . import ways
from .laplacians import products
from .works import Field

#: From a work and weights to a call that gives the Laplacian ``(B,)``, as a function of the weights closed over.
Laplacian = Callable[[Field, Params], Callable[[], Tensor]]

# --- Laplacians -----------------------------------------------------------------------------------


def _ours(work: Field, params: Params) -> Callable[[], Tensor]:
    laplacian = jacfn.laplacian(lambda sample: work.fn(params, sample), in_dims=0, strict=True)
    return lambda: laplacian(work.x)


def _of_samples(way: Callable[..., Tensor]) -> Laplacian:
    return lambda work, params: lambda: way(lambda sample: work.fn(params, sample), work.x).sum(1)


def _of_batch(way: Callable[..., Tensor], **options: bool) -> Laplacian:
    return lambda work, params: lambda: way(lambda x: work.batch_fn(params, x), work.x, **options).sum(1)


# --- gradients ------------------------------------------------------------------------------------


def backward(make: Laplacian) -> Callable[[Field], Run]:
    """Gradients of leaves that require them, by ``.backward()``."""

    def of(work: Field) -> Run:
        params = {name: weight.detach().requires_grad_() for name, weight in work.params.items()}
        laplacian = make(work, params)

        def run() -> dict[str, Tensor]:
            for weight in params.values():
                weight.grad = None
            loss = laplacian().square().mean()
            loss.backward()
            return _result(loss.detach(), [weight.grad for weight in params.values()], work)

        return run

    return of


def functional(make: Laplacian) -> Callable[[Field], Run]:
    """The same by ``torch.func.grad_and_value``."""

    def of(work: Field) -> Run:
        step = torch.func.grad_and_value(lambda params: make(work, params)().square().mean())

        def run() -> dict[str, Tensor]:
            gradients, loss = step(work.params)
            return _result(loss, list(gradients.values()), work)

        return run

    return of


def _result(loss: Tensor, gradients: list[Tensor | None], work: Field) -> dict[str, Tensor]:
    """The last bias has no part in a Laplacian: its gradient is zero, or None."""
    pairs = zip(gradients, work.params.values(), strict=True)
    flat = [(torch.zeros_like(weight) if gradient is None else gradient).reshape(-1) for gradient, weight in pairs]
    return {"loss": loss, "gradients": torch.cat(flat)}


# --- the part -------------------------------------------------------------------------------------

OURS = "jacfn.laplacian, backward()"
OURS_GRAD = "jacfn.laplacian, func.grad"
HESSIAN = "vmap(trace of hessian), backward()"
LOOP = "double backward loop, backward()"
#: Least ratio of the time of LOOP to ours.
LEAST = 1.6


def _targets(m: Compared) -> Iterator[list[str]]:
    for way in (OURS, OURS_GRAD):
        yield at_least(f"{m.work.name}: time of {LOOP} / {way}", LEAST, over(m, LOOP, way))


def _floor(work: Field, seconds: float) -> dict[str, float]:
    """Backward, each product of the forward pass takes two."""
    return {f"3 times {name}": 3 * floor for name, floor in products(work, seconds).items()}


TRAINING = Part(
    name="training",
    title="A training step: gradients of the mean squared Laplacian",
    how=f"""\
ratio: time of the method / time of {OURS}, above 1 means that the method is slower. The loss and its gradients with
respect to all weights, by .backward() or by torch.func.grad_and_value around the Laplacian; for .backward() the double
backward loop keeps the graph of all its passes. K + 2 products as above; backward, each takes two.""",
    works=("mlp30",),
    methods=(
        Method(OURS, backward(_ours), ours=True),
        Method(OURS_GRAD, functional(_ours), ours=True),
        Method(HESSIAN, backward(_of_samples(ways.by_hessian))),
        Method("vmap(trace of hessian), func.grad", functional(_of_samples(ways.by_hessian))),
        Method(LOOP, backward(_of_batch(ways.double_backward, record=True))),
        Method("jvp of grad, vmap outside, backward()", backward(_of_batch(ways.forward_over_reverse))),
        Method("jvp of grad, vmap outside, func.grad", functional(_of_batch(ways.forward_over_reverse))),
    ),
    baseline=HESSIAN,
    unit=OURS,
    targets=_targets,
    floors=_floor,
)
