"""One run of ``fn`` on one sample, watched (L3): what it returns, costs, draws and changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.flop_counter import flop_registry

from jacfn._binding import Bound
from jacfn._random import Draw
from jacfn._torch import TorchDispatchMode, version
from jacfn._tree import LeafType, tensors_in


@dataclasses.dataclass
class Notes:
    """What a run has shown."""

    touched: dict[int, str] = dataclasses.field(default_factory=dict)  # leaf: the first operation that it is seen in
    outputs: list[LeafType] = dataclasses.field(default_factory=list)  # of one sample
    finite: bool = True
    flops: int = 0
    random: bool = False
    changes: bool = False  # its arguments, in place

    @property
    def rows(self) -> int:
        """Of one sample."""
        return sum(leaf.size for leaf in self.outputs)


def watch(bound: Bound) -> Notes:
    """Run ``fn`` on the first sample; what it raises is raised here, as the transforms would."""
    one = bound.detach().block(0, min(1, bound.samples or 0)).clone()
    notes = Notes()

    def run(leaves: list[Tensor], data: list[Tensor]) -> list[Tensor]:
        with Watch(leaves, notes):
            return one.call(leaves, data)[0]

    before = [version(tensor) for tensor in one.tensors]
    draw = Draw(one.tensors)
    with torch.no_grad(), Flops() as counter:
        values = one.vmapped(run, "different")(one.leaves, one.data)
    notes.random = draw.used()
    draw.rewind()
    notes.changes = before != [version(tensor) for tensor in one.tensors]
    notes.flops = counter.total
    lead = 0 if one.samples is None else 1
    notes.outputs = [LeafType(tuple(value.shape[lead:]), value.dtype, value.device) for value in values]
    notes.finite = all(bool(value.isfinite().all()) for value in values)
    return notes


class Flops(TorchDispatchMode):
    """Counts those of the matrix products, convolutions and attention inside the ``with`` block.

    By the formulas of PyTorch's ``FlopCounterMode``, which itself allows no derivative to be taken inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call as it is."""
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _BY_VECTOR:
            self.total += 2 * args[_BY_VECTOR[packet]].numel()
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


# Products with a vector, which have no formula there, and their matrix.
_BY_VECTOR = {torch.ops.aten.mv: 0, torch.ops.aten.addmv: 1, torch.ops.aten.dot: 0}


class Watch(TorchFunctionMode):
    """Notes the operations in which the leaves take part inside the ``with`` block."""

    def __init__(self, leaves: list[Tensor], notes: Notes) -> None:
        super().__init__()
        self._leaves, self._notes = leaves, notes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call as it is."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        values = tensors_in([*args, *kwargs.values()])
        found = [i for i, leaf in enumerate(self._leaves) if any(leaf is value for value in values)]
        if found and tensors_in(result):  # not so when a shape or dtype is read
            for i in found:
                self._notes.touched.setdefault(i, resolve_name(func) or getattr(func, "__name__", str(func)))
        return result
