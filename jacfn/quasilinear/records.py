"""What a run of ``fn`` shows (L2): the claimed calls, the values derived from parameters alone, and other uses.

A *source* is a tensor whose uses are claimed: a differentiated leaf, or a value that ``fn`` computes from leaves and
constants alone (a transposed weight, ``W + B A``). Sources are numbered, the leaves first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._torch import version
from jacfn.quasilinear.factors import Form


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claimed call: which sources take part in which form, and what its output looks like."""

    operation: str
    forms: tuple[tuple[int, Form], ...]  # (source, its form)
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for a tensor in the arguments of a derivation: the n-th source, or the n-th constant."""

    number: int
    constant: bool


@dataclasses.dataclass(frozen=True)
class Derivation:
    """One call on sources and constants alone, with slots for its tensors; its results are sources, too."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    first: int  # its results are the sources first, first + 1, ...
    shapes: tuple[tuple[int, ...], ...]
    autocast: torch.dtype | None = None  # what was rounded to in the call


@dataclasses.dataclass
class Record:
    """What a run of ``fn`` under the mode has shown. Plain data, handed to the mode (it keeps none itself)."""

    aliases: list[Tensor]  # of every source, as fn sees it
    outers: list[Tensor]  # its value without a gradient here
    shared: list[bool]  # among samples
    claims: list[Claim] = dataclasses.field(default_factory=list)
    inputs: list[list[Tensor | None]] = dataclasses.field(default_factory=list)  # one a form of a claim
    derivations: list[Derivation] = dataclasses.field(default_factory=list)
    constants: list[Tensor] = dataclasses.field(default_factory=list)
    other: dict[int, str] = dataclasses.field(default_factory=dict)  # source: its first use that nobody claims
    versions: list[int] = dataclasses.field(default_factory=list)  # of the sources when they were new
    kept: list[tuple[Tensor, int, str]] = dataclasses.field(default_factory=list)  # captured tensors
    numbers: dict[int, int] = dataclasses.field(default_factory=dict)  # id of an alias: its source
    dtypes: set[torch.dtype] = dataclasses.field(default_factory=set)  # that results were rounded to

    def __post_init__(self) -> None:
        """The leaves are the first sources."""
        self.versions = [version(alias) for alias in self.aliases]
        if not torch.compiler.is_compiling():
            self.numbers = {id(alias): number for number, alias in enumerate(self.aliases)}

    def source(self, value: Any) -> int | None:
        """The number of the source that ``value`` is."""
        if self.numbers:
            return self.numbers.get(id(value))  # aliases live as long as the record, so an id is theirs alone
        for number, alias in enumerate(self.aliases):  # compiling, or no leaves at all
            if value is alias:
                return number
        return None

    def sources(self, values: Iterable[Any]) -> list[int]:
        """The sources among the values, and in lists and tuples among them."""
        found: list[int] = []
        for value in values:
            if isinstance(value, Tensor):
                source = self.source(value)
                if source is not None:
                    found.append(source)
            elif isinstance(value, (tuple, list)):
                found += self.sources(value)
        return found

    def outer(self, values: Any) -> Any:
        """``values`` with the outer values of the sources among them."""
        if isinstance(values, (tuple, list)):
            outers = [self.outer(value) for value in values]
            return tuple(outers) if isinstance(values, tuple) else outers
        if isinstance(values, dict):
            return {name: self.outer(value) for name, value in values.items()}
        source = self.source(values) if isinstance(values, Tensor) else None
        return values if source is None else self.outers[source]

    def add_source(self, alias: Tensor, outer: Tensor, shared: bool) -> None:
        """A derived value."""
        if self.numbers:
            self.numbers[id(alias)] = len(self.aliases)
        self.aliases.append(alias)
        self.outers.append(outer)
        self.shared.append(shared)
        self.versions.append(version(alias))

    def unchanged(self, source: int) -> bool:
        """Whether the source still has the value that it had."""
        return version(self.aliases[source]) == self.versions[source]

    def keep(self, tensor: Tensor | None, operation: str) -> Tensor | None:
        """Remember how old a captured tensor was; a copy where nobody counts, which compilers leave out again."""
        if tensor is None or torch.compiler.is_compiling():
            return None if tensor is None else tensor.clone()
        self.kept.append((tensor, version(tensor), operation))
        return tensor

    def check_kept(self) -> None:
        """A captured tensor that was changed in place afterwards would give wrong factors: refuse."""
        for tensor, before, operation in self.kept:
            if version(tensor) != before:
                raise JacfnError(
                    f"the input of {operation} was changed in place after the call, which needs it for the Jacobian: "
                    "use an out-of-place operation in fn, or jac_rev"
                )

    @property
    def captured(self) -> list[Tensor]:
        """The inputs of the claims, then the constants of the derivations: all that leaves the run."""
        return [x for inputs in self.inputs for x in inputs if x is not None] + self.constants
