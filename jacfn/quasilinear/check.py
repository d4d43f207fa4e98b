"""The self-check of a structure that was just learnt (L2)."""

from __future__ import annotations

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._errors import JacfnError
from jacfn._evaluate import Options
from jacfn.quasilinear.linearise import Factors
from jacfn.quasilinear.structure import Structure


def self_check(bound: Bound, structure: Structure, options: Options) -> None:
    """Compare one random ``uᵀ J`` from the factors with a plain vjp, on one sample; a difference is a wrong rule."""
    one = bound if bound.samples is None else bound.block(0, min(1, bound.samples))
    if structure.random or one.samples == 0:
        return
    one = one.clone()
    factors = Factors(one, structure, options.randomness, options.inner_randomness, "off")
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in factors.value
    ]
    lead = factors.samples is not None
    got = factors.rows([u if lead else u.unsqueeze(0) for u in cotangents], keep=False)

    def plain(*leaves: Tensor) -> list[Tensor]:
        dims = [[0] * len(leaves), [0] * len(one.data)]
        values: list[Tensor] = one.vmapped(one.call, options.randomness, *dims)(list(leaves), one.data)[0]
        return values

    _, vjp = torch.func.vjp(plain, *one.expanded(one.leaves))  # type: ignore[misc]
    with torch.no_grad():
        wanted = vjp(cotangents)
        for name, rows, grad in zip(one.names, got, wanted, strict=True):
            _compare(name, rows.dense()[:, 0].reshape(grad.shape), grad, rows.magnitude())  # one sample, one row


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def _compare(name: str, mine: Tensor, plain: Tensor, magnitude: float) -> None:
    tolerance = _TOLERANCE.get(plain.dtype, 1e-1)
    scale = plain.nan_to_num(0, 0, 0).abs().max().item() if plain.numel() else 0.0
    rounding = 1e3 * torch.finfo(plain.dtype).eps * magnitude  # of terms that may cancel
    if not torch.allclose(mine, plain, rtol=tolerance, atol=tolerance * scale + rounding, equal_nan=True):
        raise JacfnError(
            f"{name}: the closed form differs from a plain vjp by {(mine - plain).abs().max().item():.3g} (scale "
            f"{scale:.3g}). This is a wrong rule in jacfn, or fn is not a pure function. Use jac_rev, and please "
            "report it"
        )
