"""Where parameters meet data (L2): a torch-function mode that claims the linear uses of the differentiated leaves.

The mode sees every torch call above functorch, so it composes with all transforms. A claimed call is evaluated with
the caller's outer value of the parameter, which carries no gradient here, plus a *tap*, a zero that is
differentiated in its place; every other use of the leaf keeps its gradient. Whatever the mode cannot see is therefore
still exact: the two parts are a sum over uses, which is what a total derivative is.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from jacfn._errors import JacfnError
from jacfn._torch import version
from jacfn.quasilinear.factors import Form
from jacfn.quasilinear.rules import RULES


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claimed call: which leaves take part in which form, and what its output looks like."""

    operation: str
    forms: tuple[tuple[int, Form], ...]  # (leaf, its form)
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass
class Record:
    """What a run of ``fn`` under the mode has shown. Plain data, handed to the mode (it keeps none itself)."""

    claims: list[Claim] = dataclasses.field(default_factory=list)
    inputs: list[list[Tensor | None]] = dataclasses.field(default_factory=list)  # one a form of a claim
    versions: list[tuple[Tensor, int, str]] = dataclasses.field(default_factory=list)
    other: dict[int, str] = dataclasses.field(default_factory=dict)  # leaf: its first use that nobody claims

    def check_inputs(self) -> None:
        """A captured input that was changed in place afterwards would give wrong factors: refuse."""
        for tensor, before, operation in self.versions:
            if version(tensor) != before:
                raise JacfnError(
                    f"the input of {operation} was changed in place after the call, which needs it for the Jacobian: "
                    "use an out-of-place operation in fn, or jac_rev"
                )


class Capture(TorchFunctionMode):
    """Claims the linear uses of ``aliases`` in the calls made inside the ``with`` block.

    ``aliases`` are the tensors that ``fn`` was given, ``outers`` the caller's values of the same leaves. With
    ``taps``, the i-th claimed call gets the i-th tap added to its output; without, it is only recorded.
    """

    def __init__(
        self,
        aliases: Sequence[Tensor],
        outers: Sequence[Tensor],
        record: Record,
        taps: Sequence[Tensor] | None = None,
        call_sites: bool = False,
    ) -> None:
        super().__init__()
        self._aliases, self._outers, self._record, self._taps = aliases, outers, record, taps
        self._fresh = [version(alias) for alias in aliases]
        self._call_sites = call_sites

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Claim the call, or let it through as it is."""
        kwargs = kwargs or {}
        if args and func in _IN_PLACE and self._leaf(args[0]) is not None:
            raise JacfnError(
                f"fn changes a differentiated argument in place, by {self._describe(func)}: clone it first"
            )
        rule = RULES.get(func)
        bound = None if rule is None else rule.bind(args, kwargs)
        if rule is not None and bound is not None:
            found = {
                name: leaf
                for name, value in bound.arguments.items()
                if (leaf := self._leaf(value)) is not None and self._unchanged(leaf)
            }
            uses = rule.uses(**bound.arguments) if found else {}
            claimed = {name: leaf for name, leaf in found.items() if name in uses}
            if claimed:
                return self._claim(func, rule.name, bound, claimed, uses)
        result = func(*args, **kwargs)
        if _holds_tensor(result):  # not so when a shape or dtype is read
            self._note_others(func, (*args, *kwargs.values()))
        return result

    def _claim(self, func: Any, operation: str, bound: Any, claimed: dict[str, int], uses: Any) -> Any:
        inputs = [uses[name].input for name in claimed]
        self._note_others(func, [v for name, v in bound.arguments.items() if name not in claimed])
        for name, leaf in claimed.items():
            bound.arguments[name] = self._outers[leaf]
        result = func(*bound.args, **bound.kwargs)
        if not all(
            value.dtype == result.dtype
            for value in (*inputs, *(self._aliases[leaf] for leaf in claimed.values()))
            if value is not None
        ):  # autocast: the product is not the one that the rule means
            for name, leaf in claimed.items():
                bound.arguments[name] = self._aliases[leaf]
                self._record.other.setdefault(leaf, self._describe(func))
            return func(*bound.args, **bound.kwargs)
        forms = tuple((leaf, uses[name].form) for name, leaf in claimed.items())
        claim = Claim(operation, forms, tuple(result.shape), result.dtype)
        number = len(self._record.claims)
        self._record.claims.append(claim)
        self._record.inputs.append(inputs)
        self._record.versions += [(x, version(x), operation) for x in inputs if x is not None]
        if self._taps is None or number >= len(self._taps) or self._taps[number].shape != result.shape:
            return result
        return result + self._taps[number]

    def _leaf(self, value: Any) -> int | None:
        for leaf, alias in enumerate(self._aliases):
            if value is alias:  # identity, not id(): torch.compile can follow it
                return leaf
        return None

    def _unchanged(self, leaf: int) -> bool:
        return version(self._aliases[leaf]) == self._fresh[leaf]

    def _note_others(self, func: Any, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, (tuple, list)):
                self._note_others(func, value)
            elif isinstance(value, Tensor) and (leaf := self._leaf(value)) is not None:
                self._record.other.setdefault(leaf, self._describe(func))

    def _describe(self, func: Any) -> str:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        if not self._call_sites:
            return str(name)
        package = __name__.split(".")[0]
        frames = [
            frame
            for frame in traceback.extract_stack()
            if f"/{package}/" not in frame.filename and "/torch/" not in frame.filename
        ]
        return f"{name} at {frames[-1].filename}:{frames[-1].lineno}" if frames else str(name)


def _holds_tensor(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(_holds_tensor(item) for item in result)
    return isinstance(result, Tensor)


def _in_place_functions() -> frozenset[Any]:
    names = {name for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")}
    names |= {name for name in dir(Tensor) if name.startswith("__i")} - {"__index__", "__int__", "__invert__"}
    names = (names | {"__setitem__"}) - {"__init__", "__init_subclass__"}
    functions = {getattr(place, name, None) for place in (Tensor, torch, F) for name in names}
    return frozenset(function for function in functions if callable(function))


_IN_PLACE = _in_place_functions()
