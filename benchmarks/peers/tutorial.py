"""The two algorithms of PyTorch's tutorial on neural tangent kernels, after Novak et al. 2022."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

from ..methods import LARGEST_TENSOR, Method, Run
from ..works import Params, Work


def contraction(work: Work, x1: Tensor, x2: Tensor) -> Tensor:
    """The Jacobians at both data sets, then the product of each leaf's, ``(N1, N2, K, K)``, and their sum."""

    def rows(x: Tensor) -> list[Tensor]:
        jac = vmap(jacrev(work.fn), work.in_dims)(work.params, x)
        return [leaf.reshape(len(x), work.outputs, -1) for leaf in jac.values()]

    leaves = zip(rows(x1), rows(x2), strict=True)
    return torch.stack([torch.einsum("akp,blp->abkl", a, b) for a, b in leaves]).sum(0)


def products(work: Work, x1: Tensor, x2: Tensor) -> Tensor:
    """For each pair of samples J₁ᵀ of each output, then J₂ of that: what the kernel does to a one-hot vector.

    vmap gives every pair of samples a copy of the tangents, so the samples of ``x1`` are taken a few at a time.
    """

    def pair(one: Tensor, other: Tensor) -> Tensor:
        out, pull = vjp(lambda params: work.fn(params, one), work.params)

        def column(cotangent: Tensor) -> Tensor:
            def at_other(params: Params) -> Tensor:
                return work.fn(params, other)

            return jvp(at_other, (work.params,), pull(cotangent))[1].reshape(-1)

        return vmap(column)(torch.eye(out.numel()).reshape(-1, *out.shape))

    stack = 4 * len(x2) * work.outputs * work.columns  # bytes of the tangents of all pairs of one sample of x1
    return vmap(vmap(pair, (None, 0)), (0, None), chunk_size=max(1, LARGEST_TENSOR // stack))(x1, x2)


def _contraction(work: Work) -> Run:
    return lambda: {"NTK": contraction(work, work.x, work.x)}


def _products(work: Work) -> Run:
    return lambda: {"NTK": products(work, work.x, work.x)}


CONTRACTION = Method("tutorial, Jacobian contraction", _contraction)
PRODUCTS = Method("tutorial, NTK-vector products", _products)
