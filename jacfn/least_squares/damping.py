"""How strongly a step is damped (L4).

A strategy finds ``λ`` and the step for a linearisation, and learns from the gain ratio: what the cost lost over what
the linear model promised.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from jacfn.least_squares.solvers import Damped, Solver

Name = Literal["nielsen", "marquardt", "trust-region"]
NAMES = get_args(Name)
_LEAST = torch.finfo(torch.float64).eps ** 2


@dataclasses.dataclass(frozen=True)
class Level:
    """What a strategy remembers, one number for each problem.

    Attributes:
        value: ``λ`` of the last step (of the next one, where the strategy does not search it).
        growth: the factor of the next increase.
        radius: the length ``‖D h‖`` that a step may have.
    """

    value: Tensor
    growth: Tensor
    radius: Tensor


@dataclasses.dataclass(frozen=True)
class Gain:
    """What came of a step, one number for each problem.

    Attributes:
        ratio: what the cost lost over what the model promised.
        promised: that.
        length: ``‖D h‖``.
        largest: the largest squared norm of a scaled column.
    """

    ratio: Tensor
    promised: Tensor
    length: Tensor
    largest: Tensor

    @property
    def fallback(self) -> Tensor:
        """The damping after a rejected step without any."""
        return 1e-3 * torch.where(self.largest > 0, self.largest, 1.0)

    def at_least(self, damping: Tensor) -> Tensor:
        """No less than rounding can see: a smaller ``λ`` changes no step, and takes long to grow. Zero stays."""
        return torch.where(damping > 0, torch.maximum(damping, _LEAST * self.largest), damping)


class Damping(abc.ABC):
    """A strategy."""

    def start(self, initial: float, largest: Tensor, length: Tensor) -> Level:
        """At the start: ``largest`` is the largest squared norm of a scaled column, ``length`` is ``‖D x‖``."""
        radius = torch.where(length > 0, 100 * length, 100.0)  # as in MINPACK
        return Level(initial * torch.where(largest > 0, largest, 1.0), torch.full_like(largest, 2.0), radius)

    def damp(self, level: Level, solver: Solver, gradient: Tensor) -> tuple[Level, Damped, Tensor]:
        """The damped system and its step ``z``; ``gradient`` is ``Ĵᵀ r``."""
        damped = solver.damp(level.value)
        z, singular = damped.step(), torch.as_tensor(damped.singular, device=level.value.device)
        return level, damped, torch.where(singular.unsqueeze(-1), torch.nan, z)

    @abc.abstractmethod
    def accepted(self, level: Level, gain: Gain) -> Level:
        """After a step that was taken."""

    @abc.abstractmethod
    def rejected(self, level: Level, gain: Gain) -> Level:
        """After one that was not."""


class Nielsen(Damping):
    """Smooth in the gain ratio, with increases that double.

    Nielsen, "Damping parameter in Marquardt's method" (1999, IMM-REP-1999-05).
    """

    def accepted(self, level: Level, gain: Gain) -> Level:
        """``λ max(1/3, 1 - (2ρ - 1)³)``."""
        factor = (1 - (2 * gain.ratio - 1) ** 3).clamp(min=1 / 3)
        return dataclasses.replace(
            level, value=gain.at_least(level.value * factor), growth=torch.full_like(level.growth, 2.0)
        )

    def rejected(self, level: Level, gain: Gain) -> Level:
        """``λ ν``, and ``ν`` doubles."""
        value = torch.where(level.value > 0, level.value * level.growth, gain.fallback)
        return dataclasses.replace(level, value=value, growth=2 * level.growth)


class Marquardt(Damping):
    """By factors of ten (Marquardt, 1963)."""

    def accepted(self, level: Level, gain: Gain) -> Level:
        """A tenth."""
        return dataclasses.replace(level, value=gain.at_least(level.value / 10))

    def rejected(self, level: Level, gain: Gain) -> Level:
        """Ten times."""
        return dataclasses.replace(level, value=torch.where(level.value > 0, 10 * level.value, gain.fallback))


class TrustRegion(Damping):
    """``λ`` such that the step has the length of a radius, or zero where the undamped step is shorter.

    The root of ``‖z(λ)‖ = Δ`` by Newton's method on ``1/Δ - 1/‖z(λ)‖``, to a tenth of ``Δ`` (Moré, 1978, section 5).
    """

    def damp(self, level: Level, solver: Solver, gradient: Tensor) -> tuple[Level, Damped, Tensor]:
        """A few factorisations of the reduced system."""
        damping = torch.zeros_like(level.value)
        damped, z, excess, slope = self._try(solver, damping, level.radius)
        fits, singular = excess <= 0.1 * level.radius, ~excess.isfinite()
        # Without damping ‖z(λ)‖ is convex and decreasing: Newton's step from zero is a lower bound of λ.
        lower = torch.where(slope.isfinite() & (slope > 0) & excess.isfinite(), excess / slope, 0.0).clamp(min=0)
        upper = torch.linalg.vector_norm(gradient, dim=-1).double() / level.radius
        damping = torch.where(fits, 0.0, _between(level.value, lower, upper))
        for _ in range(10):
            if bool(fits.all()):
                break
            damped, z, excess, slope = self._try(solver, damping, level.radius)
            fits = fits | ~excess.isfinite() | (excess.abs() <= 0.1 * level.radius)
            fits = fits | (singular & (excess <= 0))  # the shortest undamped step lies inside: there is no root
            lower, upper = torch.where(excess > 0, damping, lower), torch.where(excess < 0, damping, upper)
            better = damping + (excess + level.radius) / level.radius * excess / slope
            damping = torch.where(fits, damping, _between(better, lower, upper))
        else:
            damped = solver.damp(damping)
            z = damped.step()
        return dataclasses.replace(level, value=damping), damped, z

    def _try(self, solver: Solver, damping: Tensor, radius: Tensor) -> tuple[Damped, Tensor, Tensor, Tensor]:
        """The step, ``‖z‖ - Δ``, and ``-d‖z‖/dλ = zᵀ (ĴᵀĴ + λ)⁻¹ z / ‖z‖``."""
        damped = solver.damp(damping)
        z = damped.step()
        length = torch.linalg.vector_norm(z, dim=-1).double()
        slope = (z * damped.inverse(z)).sum(-1).double() / length
        return damped, z, length - radius, slope

    def accepted(self, level: Level, gain: Gain) -> Level:
        """Twice the step's length after a good step, or one that was not damped; smaller after a poor one."""
        good = (gain.ratio >= 0.75) | ((level.value == 0) & (gain.ratio > 0.25))
        same = dataclasses.replace(level, radius=torch.where(good, 2 * gain.length, level.radius))
        return dataclasses.replace(same, radius=torch.where(gain.ratio <= 0.25, self._less(level, gain), same.radius))

    def rejected(self, level: Level, gain: Gain) -> Level:
        """Smaller."""
        return dataclasses.replace(level, radius=self._less(level, gain))

    def _less(self, level: Level, gain: Gain) -> Tensor:
        """Half, or, where the cost has grown, down to a tenth: the minimum of the parabola through what is known."""
        slope = 2 - level.value * gain.length.square() / gain.promised  # of the cost along the step, over the promise
        part = torch.where(gain.ratio < 0, 0.5 * slope / (slope - gain.ratio), 0.5).clamp(min=0.1)
        part = torch.where(part.isfinite(), part, 0.1)
        return part * torch.where(gain.length.isfinite(), torch.minimum(level.radius, 10 * gain.length), level.radius)


def _between(value: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``value`` where it lies inside; else the geometric mean, not too near the lower end."""
    middle = torch.maximum((lower * upper).sqrt(), 1e-3 * upper)
    return torch.where((value > lower) & (value < upper), value, middle)


STRATEGIES: dict[str, Damping] = {"nielsen": Nielsen(), "marquardt": Marquardt(), "trust-region": TrustRegion()}
