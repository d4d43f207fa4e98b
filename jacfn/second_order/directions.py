"""Along what second derivatives are taken (L3): coordinates, vectors given by the caller, or random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Bound
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._products import given
from jacfn._selection import Side, frozen, select
from jacfn._tree import LeafType


@dataclasses.dataclass(frozen=True)
class Probes:
    """Random directions for an estimate of a Laplacian: its mean over many draws is the Laplacian.

    Every sample has directions of its own. They are drawn by PyTorch's global generators.

    Args:
        count: how many.
        distribution: ``"rademacher"`` (each element 1 or -1, the estimate with the smaller variance) or ``"normal"``.

    Raises:
        JacfnError: an argument does not fit.

    Example:
        >>> import torch
        >>> from jacfn import Probes, laplacian
        >>> laplacian(lambda x: (x**2).sum(), directions=Probes(4))(torch.ones(3))
        tensor(6.)

    Hutchinson (1990, doi:10.1080/03610919008812866).
    """

    count: int
    distribution: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise JacfnValueError(f"Probes: count must be a positive int, got {self.count!r}")
        if self.distribution not in ("rademacher", "normal"):
            raise JacfnValueError(f"Probes: distribution must be 'rademacher' or 'normal', got {self.distribution!r}")

    def draw(self, count: int, samples: int, leaf: LeafType) -> Tensor:
        """``(samples, count, *leaf)``."""
        shape = (samples, count, *leaf.shape)
        normal = torch.randn(shape, dtype=leaf.dtype, device=leaf.device)
        return normal if self.distribution == "normal" else torch.where(normal < 0, -1.0, 1.0).to(leaf.dtype)


@dataclasses.dataclass(frozen=True)
class Drawn(Side):
    """Random directions as a side."""

    random: Probes = dataclasses.field(default_factory=lambda: Probes(1))

    def draw(self, count: int, samples: int) -> list[Tensor]:
        """``(samples, count, *leaf)`` for each leaf."""
        return [self.random.draw(count, samples, leaf) for leaf in self.leaves]


def directions_of(bound: Bound, directions: Any) -> Side:
    """The directions that the caller names, as a side of the inputs."""
    leaves = tuple(bound.leaf_types)
    if isinstance(directions, Probes):
        return Drawn(leaves, None, ((directions.count,),), None, directions)
    stacks = [leaf for leaf in _tree.flatten(directions)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not stacks:
        return select(leaves, bound.spec, frozen(directions), "directions")
    return given(_tree.flatten_like(bound.spec, directions, "directions"), leaves, bound.names, "directions of ")


def weights_of(weights: Any, side: Side, like: Sequence[LeafType]) -> Tensor | None:
    """``(K,)``, of the sum over the directions."""
    if weights is None and isinstance(side, Drawn):
        weights = 1 / side.total
    if weights is None:
        return None
    if isinstance(weights, (int, float)) and not isinstance(weights, bool):
        return torch.full((side.total,), float(weights), dtype=like[0].dtype, device=like[0].device)
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise JacfnTypeError(
            f"weights must be a number or a floating-point tensor of shape ({side.total},), one for each direction, "
            f"got {weights.dtype if isinstance(weights, Tensor) else type(weights).__name__}"
        )
    if tuple(weights.shape) != (side.total,):
        raise JacfnValueError(
            f"weights must have the shape ({side.total},), one for each direction, got {tuple(weights.shape)}"
        )
    return weights
