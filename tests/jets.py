"""How the rules for jets are tested: against differences of high order, which share nothing with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn._torch import transform_depth
from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Jet, Sum

STEP = 0.01
# Central differences of order 8 (Fornberg, Generation of finite difference formulas on arbitrarily spaced grids, 1988).
SLOPE = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
CURVATURE = (8 / 5, -1 / 5, 8 / 315, -1 / 560)


def differences(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Any:
    """The first and the second derivative of a function along a direction."""

    def at(t: float) -> Tensor:
        return function(*(x + t * v for x, v in zip(inputs, along, strict=True)))

    first, second = 0.0, -205 / 72 * at(0.0)
    for i, (slope, curvature) in enumerate(zip(SLOPE, CURVATURE, strict=True), 1):
        ahead, behind = at(i * STEP), at(-i * STEP)
        first = first + slope * (ahead - behind)
        second = second + curvature * (ahead + behind)
    return first / STEP, second / STEP**2


def by_jets(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], stacks: tuple[Tensor, ...], sum: Sum, engine: Engine
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivatives by the engine, which runs where a transform is active, as it always does."""

    def run(_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        engine.depth = transform_depth()
        with torch.enable_grad():
            carriers = [engine.carry(Jet(x, v, None, sum)) for x, v in zip(inputs, stacks, strict=True)]
            jet = function(*carriers).jet
        second = torch.zeros_like(jet.first if sum.apart else jet.value) if jet.second is None else jet.second
        return jet.value, jet.first, second

    return tuple(x[0] for x in torch.func.vmap(run, randomness="same")(torch.zeros(1)))  # type: ignore[return-value]


def check(function: Callable[..., Tensor], *inputs: Tensor, count: int = 3, tolerance: float = 1e-7) -> None:
    """The engine on ``function(*inputs)``, along random directions of all inputs, against differences.

    Every operation must have a rule. Float64, one tensor out. Also: summed with weights, under vmap over samples, and
    where the jets enter with second derivatives of their own.
    """
    torch.manual_seed(0)
    stacks = tuple(torch.randn(count, *x.shape, dtype=x.dtype) for x in inputs)
    wanted = [differences(function, inputs, tuple(v[k] for v in stacks)) for k in range(count)]
    first, second = (torch.stack(parts) for parts in zip(*wanted, strict=True))
    weights = torch.rand(count, dtype=first.dtype) - 0.3

    def close(got: Tensor, expected: Tensor, what: str) -> None:
        scale = 1 + expected.abs().amax() if expected.numel() else 1.0
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}")

    engine = Engine(recording=False, depth=0)
    value, got, apart = by_jets(function, inputs, stacks, Sum(apart=True), engine)
    close(value, function(*inputs), "value")
    close(got, first, "first derivatives")
    close(apart, second, "second derivatives")
    _, _, summed = by_jets(function, inputs, stacks, Sum(weights=weights), engine)
    close(summed, torch.tensordot(weights, second, 1), "weighted sum of second derivatives")
    mapped = torch.func.vmap(lambda *x: by_jets(function, x, stacks, Sum(), engine), randomness="same")
    value, got, summed = mapped(*(torch.stack([x, x]) for x in inputs))
    close(value[1], function(*inputs), "value under vmap")
    close(got[1], first, "first derivatives under vmap")
    close(summed[1], second.sum(0), "sum of second derivatives under vmap")
    _check_bent(function, inputs, stacks, engine, close)


def _check_bent(function: Any, inputs: Any, stacks: Any, engine: Engine, close: Any) -> None:
    """With inputs whose own second derivatives are not zero."""
    bends = tuple(torch.randn_like(x) for x in inputs)

    def bent(function: Any) -> Any:
        return lambda t: function(*(x + v * t + b * t * t for x, v, b in zip(inputs, along, bends, strict=True)))

    zero, one = inputs[0].new_zeros(()), inputs[0].new_ones(())
    expected = 0.0
    for k in range(len(stacks[0])):
        along = tuple(v[k] for v in stacks)
        expected = expected + differences(bent(function), (zero,), (one,))[1]

    def run(_: Tensor) -> Tensor:
        engine.depth = transform_depth()
        with torch.enable_grad():
            count = len(stacks[0])
            jets = [Jet(x, v, 2 * count * b, Sum()) for x, v, b in zip(inputs, stacks, bends, strict=True)]
            jet = function(*map(engine.carry, jets)).jet
        return torch.zeros_like(jet.value) if jet.second is None else jet.second

    close(torch.func.vmap(run, randomness="same")(torch.zeros(1))[0], expected, "with second derivatives of the inputs")
