"""What a plan says about a leaf, a method, and what to beware of (L3)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What happens to one differentiated leaf. ``flops`` and ``bytes`` are of all samples and rows."""

    path: str  # as in error messages: argument 0['0.weight']
    shape: tuple[int, ...]  # for one sample
    rule: str  # the claimed operations, 'vjp', both ('linear + vjp'), or 'zero'
    reason: str  # why vjp or zero: operation and call site; empty where all uses are in closed form
    uses: int  # claimed calls
    flops: int  # of the products in closed form; those of the vjp are in the backward passes
    bytes: int  # of the result

    @property
    def closed(self) -> bool:
        """Whether every use is in closed form."""
        return self.uses > 0 and not self.reason


@dataclasses.dataclass(frozen=True)
class MethodPlan:
    """What one of the transforms would cost. Samples share passes; ``flops`` are of all of them, by order."""

    name: str  # 'rev', 'fwd' or 'quasilinear'
    forward_passes: int
    backward_passes: int
    flops: int | None  # of all passes and products
    bytes: int  # written: the result
    samples_at_once: int | None
    at_once: int  # rows, or columns in forward mode
    peak: int | None  # predicted bytes beyond inputs and result
    note: str  # the error, where the method fails or its peak cannot be predicted
    fails: bool


@dataclasses.dataclass(frozen=True)
class Caution:
    """Something that fails, is slow, or differs between the methods."""

    kind: str
    message: str

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass(frozen=True)
class SecondPlan:
    """By what ways second derivatives are found."""

    uncovered: str  # why rules do not cover fn; empty where they do
    no_forward: str  # why not forward over reverse; empty where that works
    fails: str  # why not reverse over reverse either

    def __str__(self) -> str:
        gradient = f"reverse over reverse ({self.no_forward})" if self.no_forward else "forward over reverse"
        if self.fails:
            gradient = f"fail ({self.fails})"
        forward = f"as hessian ({self.uncovered})" if self.uncovered else "by rules"
        return f"hessian, hvp: {gradient}\nlaplacian, hessian_diag, partial: {forward}"
