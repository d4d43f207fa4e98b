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
from jacfn._torch import custom_function_call, transform_depth
from jacfn.second_order.carrier import Carrier
from jacfn.second_order.composites import COMPOSITES
from jacfn.second_order.jet import Jet, UnseenError, constant
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
    number: int = dataclasses.field(default_factory=itertools.count().__next__)

    def carry(self, jet: Jet) -> Carrier:
        """For ``fn``."""
        self.widest = max(self.widest, jet.value.numel() * jet.value.itemsize)
        return Carrier.of(jet, self)

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with jets."""
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
                    return _tree.unflatten(structure, self._carried(results, leaves))
            return self._taken_apart(func, leaves, spec)

    def jet(self, x: Any) -> Any:
        """What one of its own carriers carries; anything else itself."""
        return x.jet if isinstance(x, Carrier) and x.engine is self else x

    def _of_values(self, func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Any:
        """What has no derivatives."""
        if _changes(func):
            raise UnseenError("fn changes in place, under no_grad, what is differentiated")
        args, kwargs = _tree.unflatten(spec, [value_of(self.jet(x)) for x in leaves])
        return func(*args, **kwargs)

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
        rule = RULES.get(step.operation)
        result = NotImplemented if rule is None else rule(*args, **kwargs)
        if result is not NotImplemented:
            return result
        raise UnseenError(f"no rule for {getattr(step.operation, '__name__', None) or step.operation}")


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


def _changes(func: Callable[..., Any]) -> bool:
    """In place, by its name."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name[:3] == "__i" and name[2:-2] in _IN_PLACE) or (name[-1:] == "_" != name[-2:-1])


_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul")
