"""How well the data determine the parameters (L4): linear theory at the solution.

With ``s² = ‖r‖² / (M - P)`` the covariance of the estimate is ``s² (JᵀJ)⁻¹`` (Bates and Watts, "Nonlinear regression
analysis", 1988, section 2.3; the same as ``curve_fit`` of SciPy).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._memory import mebibytes
from jacfn.least_squares.model import Model
from jacfn.least_squares.solvers.linear import System
from jacfn.least_squares.solvers.qr import QR

_ROOM = 2 << 30  # bytes for a matrix where no budget is given


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """``J D⁻¹ = U S Vᵀ`` with unit columns: ``D (..., P)``, ``S (..., k)``, ``Vᵀ (..., k, P)``, in float64.

    ``k`` is the lesser of ``M`` and ``P``.
    """

    scale: Tensor
    values: Tensor
    vectors: Tensor
    tolerance: float

    @property
    def kept(self) -> Tensor:
        """Which directions the data determine."""
        return self.values > self.tolerance * self.values.amax(-1, keepdim=True)

    @property
    def rank(self) -> Tensor:
        """How many there are."""
        return self.kept.sum(-1)

    @property
    def open(self) -> Tensor:
        """How much of each parameter lies in the other directions, from 0 to 1."""
        return 1 - (self.vectors.square() * self.kept.unsqueeze(-1)).sum(-2)


def spectrum(model: Model) -> Spectrum:
    """By the triangle of an orthogonal factorisation: ``JᵀJ`` is never formed."""
    m, p = model.rows.shape
    if not model.cost.ndim and not bool(model.finite):
        raise JacfnError(
            "covariance and rank: the residuals or the Jacobian where the fit ended are not finite: mend fn, leave out "
            "the data for which it has no value or derivative, or start elsewhere"
        )
    _check_room(model, min(m, p), "rank")
    scale = torch.where(model.norms > 0, model.norms, 1.0)
    corner = QR(System(model.rows, model.residual, scale)).corner if m >= p else _whole(model, scale)
    _, values, vectors = torch.linalg.svd(corner[..., :p].double(), full_matrices=False)
    return Spectrum(scale.double(), values, vectors, max(m, p) * torch.finfo(model.norms.dtype).eps)


def covariance(model: Model, names: list[str], variance: float | Tensor | None, pseudo: bool) -> Tensor:
    """``variance (JᵀJ)⁻¹``, ``(..., P, P)``; ``names`` are those of the columns."""
    m, p = model.rows.shape
    if variance is None and m <= p:
        raise JacfnError(
            f"covariance: {m} residual(s) leave no degrees of freedom for {p} parameter(s), so the variance cannot be "
            "estimated: give variance=, or fit fewer parameters (frozen=)"
        )
    _check_room(model, p, "covariance")
    s = 2 * model.cost / (m - p) if variance is None else _variance(variance, model.cost)
    factors = spectrum(model)
    unknown = ~model.finite | ((factors.rank < p) & (not pseudo))
    if not model.cost.ndim and bool(unknown):
        raise JacfnError(_undetermined(factors, names))
    inverse = torch.where(factors.kept, 1 / factors.values, 0.0)
    half = factors.vectors.mT * inverse.unsqueeze(-2) / factors.scale.unsqueeze(-1)  # D⁻¹ V S⁻¹
    result = half @ half.mT * s[..., None, None]
    return torch.where(unknown[..., None, None], torch.nan, result)


def _variance(given: float | Tensor, cost: Tensor) -> Tensor:
    """A number, or one for each problem."""
    try:
        variance = torch.as_tensor(given, dtype=cost.dtype, device=cost.device)
    except (TypeError, ValueError) as error:
        raise JacfnTypeError(f"variance must be a number, or a tensor for many problems, got {given!r}") from error
    if variance.ndim and variance.shape != cost.shape:
        raise JacfnValueError(f"variance must have the shape {tuple(cost.shape)}, got {tuple(variance.shape)}")
    if not bool((variance >= 0).all()):
        raise JacfnValueError(f"variance must be at least 0, got {given!r}")
    return variance


def _check_room(model: Model, rows: int, what: str) -> None:
    """Whether there is room for ``(rows, P)`` in float64, for each problem."""
    p = model.rows.shape[1]
    size = 8 * rows * p * model.cost.numel()
    room = _ROOM if model.options.budget is None else model.options.budget
    if size > room:
        raise JacfnError(
            f"{what}: a matrix of {rows} x {p} numbers for each fit takes {mebibytes(size)}, and there is room for "
            f"{mebibytes(room)}: give the fit more (memory=), or fit fewer parameters (frozen=)"
        )


def _whole(model: Model, scale: Tensor) -> Tensor:
    """The scaled rows, dense."""
    return torch.cat([block for _, block in model.rows.blocks()], -2) / scale.unsqueeze(-2)


def _undetermined(factors: Spectrum, names: list[str]) -> str:
    """What the data leave open, in words."""
    weights = factors.open
    part = [
        names[i] or "params" for i in weights.argsort(descending=True)[:3].tolist() if weights[i] > 0.1 * weights.max()
    ]
    return (
        f"covariance: the Jacobian has rank {int(factors.rank)} of {len(names)}: the data do not determine all "
        f"parameters (what they leave open is mostly {', '.join(part)}). Freeze some (frozen=), add "
        "data, or pass pseudo=True for the covariance within the directions that are determined"
    )
