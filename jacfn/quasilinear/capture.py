"""Where parameters meet data (L2): a torch-function mode that claims the linear uses of the differentiated leaves.

The mode sees every torch call above functorch, so it composes with all transforms. A claimed call is evaluated with
the caller's outer value of the parameter, which carries no gradient here, plus a *tap*, a zero that is
differentiated in its place; every other use of the leaf keeps its gradient. Whatever the mode cannot see is therefore
still exact: the two parts are a sum over uses, which is what a total derivative is.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from jacfn._errors import JacfnError, JacfnTypeError
from jacfn._exact import ExactKernels
from jacfn._torch import custom_function_call, is_active, is_mapped, is_wrapped, transform_depth, version
from jacfn._tree import tensors_in
from jacfn.quasilinear.autocast import autocast_of
from jacfn.quasilinear.derived import ELEMENTWISE, PURE, STRUCTURE, is_view, slotted
from jacfn.quasilinear.records import Claim, Derivation, Record
from jacfn.quasilinear.rules import EXPANSIONS, RULES, Rule, Use, find


class Capture(TorchFunctionMode):
    """Claims the linear uses of the sources of ``record`` in the calls made inside the ``with`` block.

    With ``taps``, the i-th claimed call gets the i-th tap added to its output; without, it is only recorded.
    ``level`` is that of the vmap over samples, where parameters can be told from data by it: where no sample takes
    part, a value is derived from parameters.
    """

    def __init__(
        self,
        record: Record,
        taps: Sequence[Tensor] | None = None,
        *,
        level: int | None = None,
        call_sites: bool = False,
    ) -> None:
        super().__init__()
        self._record, self._taps, self._level, self._call_sites = record, taps, level, call_sites
        self._depth = transform_depth()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Claim the call, or let it through as it is."""
        kwargs = kwargs or {}
        operation = func
        if func is custom_function_call:  # rules are registered for the class
            operation, func, args = args[0], args[0].apply, args[1:]
        if func is torch.autograd.grad or func is Tensor.backward:
            self._refuse_autograd(args)
        found = self._record.sources(args) + (self._record.sources(kwargs.values()) if kwargs else [])
        if not found:
            return self._noted(func(*args, **kwargs))
        self._refuse_in_place(func, args)
        if func is torch.as_strided or func is Tensor.as_strided:
            raise JacfnError(
                "fn takes a differentiated argument by as_strided, whose derivative PyTorch gets wrong for parameters "
                "that samples share: use indexing or views, or jac_rev"
            )
        # Inside a transform of fn's own, or a Laplacian, tensors cannot be captured: they belong to it.
        own = transform_depth() != self._depth or any(getattr(kind, "has_rules", False) for kind in types)
        here = kwargs.get("out") is None and not own
        if here and all(self._record.unchanged(source) for source in found):
            if self._derives(func, args, kwargs, found):
                return self._derive(func, args, kwargs, found)
            expand = find(EXPANSIONS, operation)
            if expand is not None:
                with self, ExactKernels():
                    result = expand(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            rule = find(RULES, operation)
            if rule is not None and rule.fits(args, kwargs):
                return self._claim(func, rule, args, kwargs)
        return self._let_through(func, args, kwargs)

    def _let_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._noted(func(*args, **kwargs))
        if args and result is args[0] and self._record.source(result) is not None:
            if not self._has_changed(func, result, kwargs):
                return result  # as dropout in evaluation, cpu and conj give their argument back
            if self._is_leaf(result):
                raise _changed_in_place(self._describe(func))
        if tensors_in(result):  # not so when a shape or dtype is read
            self._note_others(func, (*args, *kwargs.values()))
        return result

    # --- claims

    def _claim(self, func: Any, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        record = self._record
        # Inputs are captured from outer values: those of aliases would hide their gradient from outer transforms.
        outer_args, outer_kwargs = record.outer((args, kwargs))
        uses: Mapping[Any, Use] = rule.uses(*outer_args, **outer_kwargs)
        claimed: list[tuple[int, Use]] = []
        others: list[Any] = []

        def outer(place: Any, value: Any) -> Any:
            source = record.source(value) if isinstance(value, Tensor) else None
            if source is None or place not in uses:
                others.append(value)
                return value
            claimed.append((source, uses[place]))
            return record.outers[source]

        new_args = [outer(rule.place(i), value) for i, value in enumerate(args)]
        new_kwargs = {name: outer(name, value) for name, value in kwargs.items()}
        if not claimed:
            return self._let_through(func, args, kwargs)
        result = self._noted((rule.evaluate or func)(*new_args, **new_kwargs))
        if not isinstance(result, Tensor):
            raise JacfnTypeError(
                f"the rule {rule.name} is for an operation that returns {type(result).__name__}: rules are for one "
                "tensor; say by jacfn.register_expansion what the operation consists of"
            )
        inputs = [use.input() if callable(use.input) else use.input for _, use in claimed]
        dtypes = [x.dtype for x in inputs if x is not None and x.is_floating_point()]
        dtypes += [record.aliases[source].dtype for source, _ in claimed]
        if any(dtype != result.dtype for dtype in dtypes):  # autocast: the product is not the one that the rule means
            return self._let_through(func, args, kwargs)
        self._note_others(func, others)
        forms = tuple((source, use.form) for source, use in claimed)
        number = len(record.claims)
        record.claims.append(Claim(rule.name, forms, tuple(result.shape), result.dtype))
        record.inputs.append([record.keep(x, rule.name) for x in inputs])
        if self._taps is None or number >= len(self._taps) or self._taps[number].shape != result.shape:
            return result
        return result + self._taps[number]

    # --- values derived from parameters alone

    def _derives(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[int]) -> bool:
        """Whether the call is one of parameters alone."""
        if find(PURE, func) is None or not torch.is_grad_enabled():
            return False
        tensors = tensors_in((*args, *kwargs.values()))
        if torch.compiler.is_compiling():  # nobody counts versions: what has memory of its own may change unseen
            return len(tensors) == 1 and is_view(func, args)
        constants = [x for x in tensors if self._record.source(x) is None]
        if self._level is not None:
            if not all(self._record.shared[source] for source in found):  # data that is differentiated, too
                return len(tensors) == 1 and find(STRUCTURE, func) is not None
            return not any(is_mapped(x, self._level) for x in constants)
        # Without samples, constants look like data: all but those that leave the parameter its shape are taken as such.
        if not constants:
            return len(found) == 1 or find(RULES, func) is None or find(ELEMENTWISE, func) is not None
        if find(ELEMENTWISE, func) is None:
            return False
        shape = self._record.aliases[found[0]].shape
        if any(self._record.aliases[source].shape != shape for source in found):
            return False
        return all(not is_wrapped(x) and _fits_into(x.shape, shape) for x in constants)

    def _derive(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[int]) -> Any:
        record = self._record
        result = self._noted(func(*args, **kwargs))
        made = tensors_in(result)
        if not made or any(not x.is_floating_point() for x in made):
            return result  # a shape, a comparison, an index: no gradient flows
        before = len(record.constants)
        slot_args, slot_kwargs = slotted((args, kwargs), record)
        for constant in record.constants[before:]:
            record.keep(constant, self._describe(func))
        outer_args, outer_kwargs = record.outer((args, kwargs))
        outers = tensors_in(func(*outer_args, **outer_kwargs))
        first, shared = len(record.aliases), all(record.shared[source] for source in found)
        shapes = tuple(tuple(x.shape) for x in made)
        autocast = autocast_of(outers)
        record.derivations.append(Derivation(func, slot_args, slot_kwargs, first, shapes, autocast))
        for alias, outer in zip(made, outers, strict=True):
            record.add_source(alias, outer, shared)
        return result

    # --- bookkeeping

    def _is_leaf(self, value: Any) -> bool:
        return any(value is alias for alias in self._record.aliases[: self._leaves])

    @property
    def _leaves(self) -> int:
        derivations = self._record.derivations
        return derivations[0].first if derivations else len(self._record.aliases)

    def _refuse_in_place(self, func: Any, args: tuple[Any, ...]) -> None:
        if args and not torch.compiler.is_compiling() and func in _IN_PLACE and self._is_leaf(args[0]):
            raise _changed_in_place(self._describe(func))

    def _has_changed(self, func: Any, given: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a call that gave its argument back, a source, has changed it: by name where nobody counts."""
        if version(given) < 0:
            return bool(kwargs.get("inplace")) or find(_IN_PLACE, func) is not None
        source = self._record.source(given)
        return source is not None and not self._record.unchanged(source)

    def _refuse_autograd(self, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or transform_depth() != self._depth:
            return
        if any(is_active(x) for x in tensors_in(args)):  # else a transform's own, which fn uses
            raise JacfnError(
                "fn calls torch.autograd, which does not see the derivatives of claimed parameters: use torch.func "
                "inside fn (grad, jvp, vjp), or jac_rev"
            )

    def _noted(self, result: Any) -> Any:
        """The result; while learning, its dtypes and that of autocast, which may hide inside of an operation."""
        if self._taps is None and not torch.compiler.is_compiling():
            floating = [x for x in tensors_in(result) if x.is_floating_point()]
            rounded = autocast_of(floating)
            self._record.dtypes.update({x.dtype for x in floating}, () if rounded is None else (rounded,))
        return result

    def _note_others(self, func: Any, values: Sequence[Any]) -> None:
        for source in self._record.sources(values):
            self._record.other.setdefault(source, self._describe(func))

    def _describe(self, func: Any) -> str:
        if torch.compiler.is_compiling():
            return "an operation"
        owner = getattr(func, "__self__", None)  # of the apply of a custom Function
        name = resolve_name(func) or getattr(owner if isinstance(owner, type) else func, "__name__", str(func))
        if transform_depth() != self._depth:
            name = f"{name}, inside a transform,"
        if not self._call_sites:
            return str(name)
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_LIBRARIES)]
        return f"{name} at {frames[-1].filename}:{frames[-1].lineno}" if frames else str(name)


def _fits_into(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether broadcasting leaves ``whole`` as it is."""
    tail = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def _changed_in_place(function: str) -> JacfnError:
    return JacfnError(f"fn changes a differentiated argument in place, by {function}: clone it first")


def _in_place_functions() -> dict[Callable[..., Any], bool]:
    names = {name for name in dir(Tensor) if name.endswith("_") and not name.endswith("__")}
    names |= {name for name in dir(Tensor) if name.startswith("__i")} - {"__index__", "__int__", "__invert__"}
    names = (names | {"__setitem__"}) - {"__init__", "__init_subclass__"}
    functions = {getattr(place, name, None) for place in (Tensor, torch, F) for name in names}
    return {function: True for function in functions if callable(function)}


_IN_PLACE = _in_place_functions()
_LIBRARIES = (str(Path(__file__).parents[1]) + os.sep, str(Path(torch.__file__).parent) + os.sep)
