"""The self-check of a structure that was just learnt (L2)."""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._errors import JacfnError
from jacfn._evaluate import Options
from jacfn.quasilinear.autocast import autocast_to
from jacfn.quasilinear.linearise import Factors
from jacfn.quasilinear.structure import Structure


def self_check(bound: Bound, structure: Structure, options: Options) -> None:
    """Compare one random ``uᵀ J`` from the factors with a plain vjp, on two samples; a difference is a wrong rule."""
    if structure.random or bound.samples == 0:
        return
    ends = _first_and_last(bound).clone()
    with autocast_to(None, bound.leaves):
        factors = Factors(ends, structure, options.randomness, options.inner_randomness, "off")
        cotangents = _one_row(factors)
        got = factors.rows([u.unsqueeze(0) for u in cotangents], keep=False)
    for n in range(ends.samples or 1):
        wanted = _plain(ends.block(n, 1), cotangents, options.randomness)
        with torch.no_grad(), autocast_to(None, bound.leaves):
            for name, rows, grad in zip(bound.names, got, wanted, strict=True):
                one = rows.part(slice(n, n + 1))
                _compare(name, one.dense().reshape(grad.shape), grad, one.magnitude(), structure.rounded)


def _plain(one: Bound, cotangents: list[Tensor], randomness: str) -> list[Tensor]:
    """The vjp at one sample."""

    def call(*leaves: Tensor) -> list[Tensor]:
        dims = [[0] * len(leaves), [0] * len(one.data)]
        values: list[Tensor] = one.vmapped(one.call, randomness, *dims)(list(leaves), one.data)[0]
        return values

    _, vjp = torch.func.vjp(call, *one.expanded(one.leaves))  # type: ignore[misc]
    with torch.no_grad(), autocast_to(None, one.leaves):
        return list(vjp(cotangents if one.samples is None else [u.unsqueeze(0) for u in cotangents]))


def _first_and_last(bound: Bound) -> Bound:
    """The function at these samples alone: what is the same for all of them shows less."""
    if bound.samples is None or bound.samples < 3:
        return bound
    ends = slice(None, None, bound.samples - 1)
    leaves = [leaf[ends] if mapped else leaf for leaf, mapped in zip(bound.leaves, bound.leaves_mapped, strict=True)]
    return bound.replace(leaves, [x[ends] for x in bound.data], 2)


def _one_row(factors: Factors) -> list[Tensor]:
    """Random cotangents of one sample."""
    generator = torch.Generator().manual_seed(0)
    lead = factors.samples is not None
    of_one = [value[0] if lead else value for value in factors.value]
    return [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in of_one]


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def _compare(name: str, mine: Tensor, plain: Tensor, magnitude: float, rounded: frozenset[torch.dtype]) -> None:
    dtypes = {plain.dtype, *rounded}  # the least precise one tells how close both can be
    tolerance = max(_TOLERANCE.get(dtype, 1e-1) for dtype in dtypes)
    scale = plain.nan_to_num(0, 0, 0).abs().max().item() if plain.numel() else 0.0
    rounding = 1e3 * max(torch.finfo(dtype).eps for dtype in dtypes) * magnitude  # of terms that may cancel
    if not torch.allclose(mine, plain, rtol=tolerance, atol=tolerance * scale + rounding, equal_nan=True):
        raise JacfnError(
            f"{name}: the closed form differs from a plain vjp by {(mine - plain).abs().max().item():.3g} (scale "
            f"{scale:.3g}). This is a wrong rule in jacfn, or fn is not a pure function. Use jac_rev, and please "
            "report it"
        )
