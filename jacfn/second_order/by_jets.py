"""Derivatives along directions in one pass forward (L3): jets travel through ``fn``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._errors import JacfnError
from jacfn._evaluate import Tracking
from jacfn._random import Draw
from jacfn._selection import Side
from jacfn._torch import transform_depth
from jacfn.second_order.engine import Engine, value_of
from jacfn.second_order.jet import Jet, LateError, Sum, UnseenError
from jacfn.second_order.passes import Pass, Stacks, alone, mapped, stacks_of


@dataclasses.dataclass(frozen=True)
class ByJets:
    """Of a block along directions; ``first`` says whether anybody wants the first derivatives.

    ``engines`` collects what ran, where it is given.
    """

    sum: Sum
    randomness: str
    first: bool = False
    engines: list[Engine] | None = None

    def __call__(self, block: Bound, stacks: Stacks, dim: int | None, low: int, high: int, tracking: Tracking) -> Pass:
        """Along the directions from ``low`` to ``high``."""
        sum = self.sum.restricted(low, high)
        try:
            return self._along(block, stacks, dim, sum, high - low, tracking, late=True)
        except LateError:
            return self._along(block, stacks, dim, sum, high - low, tracking, late=False)
        except (JacfnError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:  # TorchScript and the like hand on what was raised inside in their own words
            raise UnseenError(f"{type(error).__name__}: {error}") from error

    def _along(
        self, block: Bound, stacks: Stacks, dim: int | None, sum: Sum, count: int, tracking: Tracking, late: bool
    ) -> Pass:
        recording = tracking != "off" and torch.is_grad_enabled()

        def one(leaves: Sequence[Tensor], data: Sequence[Tensor], stacks: Stacks) -> Pass:
            engine = Engine(recording, transform_depth(), late)
            if self.engines is not None:
                self.engines.append(engine)
            inputs = [
                leaf if stack is None else engine.carry(Jet(leaf, stack, None, sum))
                for leaf, stack in zip(leaves, stacks, strict=True)
            ]
            with torch.enable_grad():  # so that a no_grad of fn's own shows
                outputs, aux = block.call(inputs, data)
            engine.finish()
            jets = [_jet(output, engine, sum, count) for output in outputs]
            with torch.set_grad_enabled(recording):
                first = [jet.first for jet in jets] if self.first else []
                second = [jet.filled() for jet in jets]
            return Pass([jet.value for jet in jets], first, second, [value_of(engine.jet(x)) for x in aux])

        if block.samples is None:
            return alone(lambda: mapped(one, block, stacks, dim, self.randomness), block.leaves[0])
        return mapped(one, block, stacks, dim, self.randomness)

    def look(self, bound: Bound, side: Side) -> tuple[int, int]:
        """Bytes of the largest value of one sample, and how many calls there are."""
        engines, draw, one = list[Engine](), Draw(bound.tensors), bound.detach().block(0, 1)
        by_jets = dataclasses.replace(self, engines=engines)
        by_jets(one, *stacks_of(side, one)(0, 1), 0, 1, "off")
        draw.rewind()
        return engines[-1].widest, engines[-1].calls


def _jet(output: Tensor, engine: Engine, sum: Sum, count: int) -> Jet:
    """What does not depend on the jets has no derivatives."""
    jet = engine.jet(output)
    return jet if isinstance(jet, Jet) else Jet(output, lambda: output.new_zeros((count, *output.shape)), None, sum)
