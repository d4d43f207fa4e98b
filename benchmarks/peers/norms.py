"""Norms of per-sample gradients without or with these gradients, by packages made for it: one output at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..methods import Method, Run
from ..works import Work
from ._rows import missing
from .opacus import _with_open_attention as with_open_attention


def _rows(work: Work, norms: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """All norms, samples outermost, from ``norms(k)``: those ``(N,)`` of the rows of output k."""
    return {"norms": torch.stack([norms(k) for k in range(work.outputs)], 1).reshape(-1)}


def _summed(net: Callable[[Tensor], Tensor], work: Work, k: int) -> Tensor:
    return net(work.x).reshape(len(work.x), -1)[:, k].sum()


def _backpack(work: Work) -> Run:
    """One forward pass, and a backward pass for each output."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    net = extend(copy.deepcopy(work.net))
    weights = list(net.parameters())

    def run() -> dict[str, Tensor]:
        outputs = net(work.x).reshape(len(work.x), -1)

        def norms(k: int) -> Tensor:
            net.zero_grad()
            outputs[:, k].sum().backward(retain_graph=True)
            if without := sum(not hasattr(weight, "batch_l2") for weight in weights):
                raise NotImplementedError(f"no rule for {without} of {len(weights)} weights")
            return torch.stack([weight.batch_l2 for weight in weights]).sum(0).sqrt()

        with backpack(BatchL2Grad(), retain_graph=True):
            result = _rows(work, norms)
        for weight in weights:
            del weight.batch_l2
        return result

    return run


def _opacus(work: Work) -> Run:
    """A forward and a backward pass for each output; the norms of the gradients that they leave."""
    from opacus import GradSampleModule

    net = GradSampleModule(with_open_attention(work.net), loss_reduction="sum")

    def norms(k: int) -> Tensor:
        net.zero_grad()
        _summed(net, work, k).backward()
        return torch.stack([weight.grad_sample.flatten(1).norm(dim=1) for weight in net.parameters()]).norm(dim=0)

    def run() -> dict[str, Tensor]:
        result = _rows(work, norms)
        net.zero_grad()
        return result

    return run


def _ghost(work: Work) -> Run:
    """The same without gradients where the package can: its ghost clipping."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    net: nn.Module = GradSampleModuleFastGradientClipping(with_open_attention(work.net), loss_reduction="sum")

    def norms(k: int) -> Tensor:
        net.zero_grad()
        _summed(net, work, k).backward()
        return net.get_norm_sample()

    return lambda: _rows(work, norms)


BACKPACK_NORMS = Method("BackPACK BatchL2Grad", _backpack, skip=missing("backpack"))
OPACUS_NORMS = Method("Opacus per-sample gradients", _opacus, skip=missing("opacus"))
OPACUS_GHOST = Method("Opacus ghost clipping", _ghost, skip=missing("opacus"))
