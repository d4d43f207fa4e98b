"""BackPACK (Dangel, Kunstner & Hennig 2020): per-sample gradients from hooks on modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from ..methods import Jacobian, Method, Run
from ..works import Work
from ._rows import gather, missing


def _make(work: Work) -> Run:
    """One forward pass, then one backward pass for each output, of that output summed over the samples."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    net = extend(copy.deepcopy(work.net))
    weights = {name: net.get_parameter(name) for name in work.params}

    def run() -> Jacobian:
        outputs = net(work.x).reshape(len(work.x), -1)

        def row(k: int) -> Sequence[Tensor]:
            net.zero_grad()
            outputs[:, k].sum().backward(retain_graph=True)
            if without := [name for name, weight in weights.items() if not hasattr(weight, "grad_batch")]:
                raise NotImplementedError(f"no rule for {len(without)} of {len(weights)} weights, as {without[0]}")
            return [weight.grad_batch for weight in weights.values()]

        with backpack(BatchGrad(), retain_graph=True):
            jac = gather(work, row)
        for weight in weights.values():
            del weight.grad_batch
        return jac

    return run


BACKPACK = Method("BackPACK BatchGrad", _make, skip=missing("backpack"))
