"""Calls of torch with jets (L3): taken apart into elementary operations, each of which has a rule."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnError
from jacfn._torch import base_tensor, custom_function_call, shares_memory, transform_depth, version
from jacfn._tree import tensors_in
from jacfn.second_order.carrier import Carrier
from jacfn.second_order.composites import COMPOSITES
from jacfn.second_order.jet import Jet, LateError, UnseenError, constant
from jacfn.second_order.lowering import Program, Step, filled, lowered
from jacfn.second_order.rules import RULES
from jacfn.second_order.values import VALUES

aten = torch.ops.aten


@dataclasses.dataclass
class Engine:
    """Runs calls."""

    recording: bool  # whether what is computed may be recorded by autograd
    depth: int  # of the transforms under which fn runs
    late: bool = True  # first derivatives when they are asked for
    widest: int = 1  # bytes of the largest value
    calls: int = 0
    lent: list[tuple[Tensor, int]] = dataclasses.field(default_factory=list)
    number: int = dataclasses.field(default_factory=itertools.count().__next__)

    def carry(self, jet: Jet) -> Carrier:
        """For ``fn``."""
        self.widest = max(self.widest, jet.value.numel() * jet.value.itemsize)
        return Carrier.of(jet, self)

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with jets."""
        self.calls += 1
        leaves, spec = _tree.flatten((args, kwargs))
        if func in VALUES or not torch.is_grad_enabled():  # fn runs under enable_grad: a no_grad is its own
            return self._of_values(func, leaves, spec)
        if transform_depth() != self.depth:  # it would take what it closes over for constants
            raise UnseenError("fn uses a transform of torch.func of its own")
        composite = COMPOSITES.get(func, _none)(*args, **kwargs)
        if composite is not NotImplemented:
            return composite
        with torch.set_grad_enabled(self.recording):
            if func in RULES:
                args, kwargs = _tree.unflatten(spec, [self.jet(x) for x in leaves])
                result = RULES[func](*args, **kwargs)
                if result is not NotImplemented:
                    results, structure = _tree.flatten(result)
                    for made in results:
                        if isinstance(made, Jet):
                            made.after([self.jet(x) for x in leaves if self.jet(x) is not x])
                    return _tree.unflatten(structure, self._carried(results, leaves))
            return self._taken_apart(func, leaves, spec)

    def jet(self, x: Any) -> Any:
        """What one of its own carriers carries; anything else itself."""
        return x.jet if isinstance(x, Carrier) and x.engine is self else x

    def _of_values(self, func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Any:
        """What has no derivatives."""
        args, kwargs = _tree.unflatten(spec, [value_of(self.jet(x)) for x in leaves])
        if _changes(func, kwargs):
            raise UnseenError("fn changes in place, under no_grad, what is differentiated")
        result = func(*args, **kwargs)
        self._lend(result, [x for x in leaves if self.jet(x) is not x])
        return result

    def _lend(self, result: Any, owners: Sequence[Any]) -> None:
        """What is a constant and lies on the memory of what is none: neither must change in place."""
        for x in tensors_in(_tree.flatten(result)[0]):
            for owner in owners:
                if shares_memory(base_tensor(x), base_tensor(owner.jet.value)):
                    owner.shares = True
                    self.lent.append((x, version(x)))

    def finish(self) -> None:
        """After ``fn``."""
        if any(version(x) != before for x, before in self.lent):
            raise JacfnError(
                "fn changes in place what it has detached from what is differentiated, on whose memory it is: detach "
                "and clone it"
            )

    def _taken_apart(self, func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Any:
        """As a program of operations."""
        if func is custom_function_call:
            raise UnseenError(f"the custom autograd.Function {leaves[0].__name__}")
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        program = lowered(func, [value_of(self.jet(x)) for x in leaves], spec)
        output, changed = self._run(program, [self.jet(x) for x in inputs])
        for number, new in changed.items():
            self._change(inputs[number], new)
        results = self._carried(_tree.flatten(output)[0], leaves)
        tensors = [i for i, x in enumerate(results) if isinstance(x, Tensor)]
        for i, j in program.same:
            results[tensors[i]] = inputs[j]
        for i, j in program.aliases:
            for tensor in (results[tensors[i]], inputs[j]):
                if isinstance(tensor, Carrier):
                    tensor.shares = True
        return _tree.unflatten(program.spec, results)

    def _carried(self, results: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
        """The results of a call with these arguments, jets in carriers."""
        constants = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Carrier)]
        return [self.carry(x.made_with(constants, self.late)) if isinstance(x, Jet) else x for x in results]

    def _change(self, tensor: Any, new: Any) -> None:
        """In place."""
        if self.jet(tensor) is tensor:
            if isinstance(new, Jet):
                raise UnseenError("fn writes what is differentiated into a tensor that is not")
            tensor.copy_(new)
        elif tensor.shares:
            raise UnseenError("fn changes in place what shares its memory with a view")
        else:
            tensor.jet = new if isinstance(new, Jet) else constant(new, tensor.jet)

    def _run(self, program: Program, inputs: Sequence[Any]) -> Any:
        slots: dict[int, Any] = {**dict(enumerate(inputs)), **program.constants}
        for step in program.steps:
            args, kwargs = filled(step.args, slots), filled(step.kwargs, slots)
            slots[step.result] = self._operation(step, args, kwargs)
            for number in step.done:
                del slots[number]
        return filled(program.output, slots), {i: slots[new] for i, new in program.changed.items()}

    def _operation(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        jets = [leaf for leaf in (*_leaves(args), *kwargs.values()) if isinstance(leaf, Jet)]
        if not jets or step.operation is operator.getitem:
            return _ANY_LAYOUT.get(step.operation, step.operation)(*args, **kwargs)
        if step.constant:
            return step.operation(*map(value_of, args), **{name: value_of(item) for name, item in kwargs.items()})
        name = getattr(step.operation, "__name__", None) or str(step.operation)
        try:
            result = RULES.get(step.operation, _none)(*args, **kwargs)
        except (JacfnError, LateError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # such as that of an operation that PyTorch cannot map once more
            raise UnseenError(f"the rule for {name} fails: {type(error).__name__}: {error}") from error
        if result is NotImplemented:
            raise UnseenError(f"no rule for {name}")
        for made in _leaves([result]):
            if isinstance(made, Jet):
                made.after(jets)
        return result


#: Traced on tensors that lie in order, which constants need not do.
_ANY_LAYOUT: dict[Any, Callable[..., Any]] = {
    aten.view.default: torch.reshape,
    aten._unsafe_view.default: torch.reshape,
}


def _none(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


def _leaves(tree: Any) -> Iterator[Any]:
    for item in tree:
        if isinstance(item, (tuple, list)):
            yield from _leaves(item)
        else:
            yield item


def value_of(tree: Any) -> Any:
    """Without derivatives."""
    if isinstance(tree, Jet):
        return tree.value
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(value_of, tree))
    return tree


def _changes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """In place, by its name or an argument."""
    name = getattr(func, "__name__", "")
    if kwargs.get("inplace") or kwargs.get("out") is not None:
        return True
    return name == "__setitem__" or (name[:3] == "__i" and name[2:-2] in _IN_PLACE) or (name[-1:] == "_" != name[-2:-1])


_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul")
