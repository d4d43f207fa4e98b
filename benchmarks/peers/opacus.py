"""Opacus (Yousefpour et al. 2021): per-sample gradients from hooks on modules, meant for private training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..methods import Jacobian, Method, Run
from ..works import Work
from ._rows import gather, missing


def _make(work: Work) -> Run:
    """A forward and a backward pass for each output: a backward pass uses up what the hooks kept of the forward."""
    from opacus import GradSampleModule

    net = GradSampleModule(_with_open_attention(work.net), loss_reduction="sum")
    weights = [_parts(net._module, name) for name in work.params]

    def run() -> Jacobian:
        def row(k: int) -> Sequence[Tensor]:
            net.zero_grad()  # of the per-sample gradients too
            net(work.x).reshape(len(work.x), -1)[:, k].sum().backward()
            gradients = [[part.grad_sample for part in parts] for parts in weights]
            return [parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in gradients]

        jac = gather(work, row)
        net.zero_grad()
        return jac

    return run


class _Attention(nn.Module):
    """Self-attention, batch first, from linear modules: what the hooks can see.

    Hooks cannot look into ``nn.MultiheadAttention``, and the package's own attention module computes another
    function than it with ``batch_first=True`` (version 1.6.0).
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first, self.heads = True, packed.num_heads
        self.q, self.k, self.v = (nn.Linear(packed.embed_dim, packed.embed_dim) for _ in range(3))
        self.out_proj = packed.out_proj
        weights, biases = packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3)
        for part, weight, bias in zip((self.q, self.k, self.v), weights, biases, strict=True):
            part.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """``(N, T, D)`` to the same; keys and values are the queries, and there is no mask."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


def _with_open_attention(net: nn.Module) -> nn.Module:
    """A copy in which attention consists of modules."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, _Attention(child))
    return net


def _parts(net: nn.Module, name: str) -> list[nn.Parameter]:
    """The weight of this name; attention has the packed ones in three parts."""
    prefix, packed, kind = name.partition("in_proj_")
    if not packed:
        return [net.get_parameter(name)]
    return [net.get_parameter(f"{prefix}{part}.{kind}") for part in "qkv"]


OPACUS = Method("Opacus GradSampleModule", _make, skip=missing("opacus"))
