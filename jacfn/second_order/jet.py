"""A value with its derivatives along ``K`` directions (L3): what a forward Laplacian carries through a function.

Beside a value ``x`` there are its first derivatives ``(K, *x.shape)`` and its second ones, along each direction twice:
summed over the directions, ``x.shape``, or apart, ``(K, *x.shape)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._torch import version

Lazy = Tensor | Callable[[], Tensor]
_DEEPEST = 32  # a chain of first derivatives that nobody has asked for yet


@dataclasses.dataclass(frozen=True)
class Sum:
    """What becomes of the second derivatives along the directions.

    Attributes:
        apart: each is kept.
        weights: ``(K,)``, of the sum; None: ones.
    """

    apart: bool = False
    weights: Tensor | None = None

    def of(self, stack: Tensor) -> Tensor:
        """``(K, *shape)``, summed or not."""
        if self.apart:
            return stack
        return stack.sum(0) if self.weights is None else torch.tensordot(self.weights.to(stack.dtype), stack, 1)

    def restricted(self, low: int, high: int) -> Sum:
        """Of the directions from ``low`` to ``high``."""
        return self if self.weights is None else Sum(self.apart, self.weights[low:high])

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Of ``a * b``, both ``(K, *shape)`` up to broadcasting."""
        return self.of(a * b)

    def weighted(self, a: Tensor) -> Tensor:
        """``(K, *shape)`` with the weights in it, for a contraction over the directions."""
        if self.weights is None:
            return a
        return a * self.weights.to(a.dtype).reshape(-1, *(1,) * (a.ndim - 1))


class UnseenError(JacfnError):
    """``fn`` does something with a jet that the engine cannot follow; says what."""


class LateError(Exception):
    """What first derivatives are made of has changed before anybody asked for them."""


class Jet:
    """A value, its first and its second derivatives, as the rules see them.

    The first ones may be given as a function, which is called when they are asked for: those of the last layers never
    are, unless the caller wants the Jacobian. No second ones are zeros.
    """

    __slots__ = ("_constants", "_depth", "_first", "second", "sum", "value")

    def __init__(self, value: Tensor, first: Lazy, second: Tensor | None, sum: Sum, depth: int = 0) -> None:
        if isinstance(first, Tensor) and first.dtype != value.dtype:
            first = first.to(value.dtype)
        self.value, self._first, self.sum, self._depth = value, first, sum, depth
        self._constants: list[tuple[Tensor, int]] = []
        self.second = second if second is None or second.dtype == value.dtype else second.to(value.dtype)
        if depth > _DEEPEST:
            self._force()

    @property
    def first(self) -> Tensor:
        """``(K, *shape)``."""
        return self._first if isinstance(self._first, Tensor) else self._force()

    def made_with(self, constants: Iterable[Tensor], late: bool) -> Jet:
        """Tensors of ``fn`` that first derivatives are made of, which must not change before that is done."""
        if not late:
            self._force()
        if not isinstance(self._first, Tensor):
            self._constants += [(x, version(x)) for x in constants]  # a rule may hand on the jet that it got
        return self

    def after(self, sources: Iterable[Jet]) -> None:
        """It was made of these, so long is the chain of what is not yet asked for."""
        if not isinstance(self._first, Tensor):
            self._depth = max(self._depth, 1 + max(x._depth for x in sources))
            if self._depth > _DEEPEST:
                self._force()

    def _force(self) -> Tensor:
        if any(version(x) != before for x, before in self._constants):
            raise LateError
        self._constants = []
        first = self._first if isinstance(self._first, Tensor) else self._first()
        # A factor without axes may have promoted it, which it does not do to the value.
        self._first, self._depth = first if first.dtype == self.value.dtype else first.to(self.value.dtype), 0
        return self._first

    @property
    def directions(self) -> int:
        """How many there are; its first derivatives are computed to see."""
        return len(self.first)

    def filled(self) -> Tensor:
        """The second derivatives as a tensor."""
        if self.second is not None:
            return self.second
        return torch.zeros_like(self.first if self.sum.apart else self.value)

    @property
    def lead(self) -> int:
        """The axes that second derivatives have in front of those of the value."""
        return int(self.sum.apart)

    def new(self, value: Tensor, first: Lazy, second: Tensor | None) -> Jet:
        """Another one, along the same directions."""
        return Jet(value, first, second, self.sum, self._depth + 1)

    def linear(self, function: Callable[[Tensor, int], Tensor]) -> Jet:
        """``function(tensor, lead)`` of a value is linear, so it is the same of the derivatives, behind their axes."""
        second = None if self.second is None else function(self.second, self.lead)
        return self.new(function(self.value, 0), lambda: function(self.first, 1), second)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Jet:
        """The same for a function that knows no further axes."""
        return self.linear(lambda x, lead: torch.func.vmap(function, randomness="same")(x) if lead else function(x))

    def curved(self, value: Tensor, slope: Tensor, curvature: Tensor | None) -> Jet:
        """An elementwise function: ``f'J`` and ``f'L + f'' Σ J²``; no curvature is zero."""
        second = None if self.second is None else slope * self.second
        if curvature is not None:
            first = self.first
            second = added(second, curvature * self.sum.product(first, first))
        return self.new(value, lambda: slope * self.first, second)

    def to_rank(self, rank: int) -> Jet:
        """With axes of length one in front, for broadcasting."""
        missing = (1,) * (rank - self.value.ndim)
        if not missing:
            return self
        return self.linear(lambda x, lead: x.reshape([*x.shape[:lead], *missing, *x.shape[lead:]]))

    def to_shape(self, shape: Sequence[int]) -> Jet:
        """Broadcast."""
        if tuple(self.value.shape) == tuple(shape):
            return self
        return self.to_rank(len(shape)).linear(lambda x, lead: x.expand(*x.shape[:lead], *shape))


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of second derivatives, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def scaled(factor: Tensor, second: Tensor | None) -> Tensor | None:
    """A multiple of second derivatives, where None is zero."""
    return None if second is None else factor * second


def constant(value: Tensor, like: Jet) -> Jet:
    """Without derivatives, along the directions of ``like``."""
    return like.new(value, lambda: value.new_zeros((like.directions, *value.shape)), None)
