"""From a call of torch to a program of elementary operations (L3), cached by the kinds of its arguments.

A call is traced on fake tensors, outside of all transforms: only shapes, dtypes and the arguments that are no tensors
matter to it. The program runs on the tensors themselves, wrapped as the transforms have them.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from jacfn import _tree
from jacfn._torch import (
    FakeTensor,
    FakeTensorMode,
    OpOverload,
    core_aten_decompositions,
    get_decompositions,
    outside_modes,
    outside_transforms,
    shares_memory,
)
from jacfn.second_order.jet import UnseenError
from jacfn.second_order.rules import CONSTANT, RULES

aten = torch.ops.aten
_MOST = 4096  # programs
_programs: dict[Hashable, Program] = {}  # the oldest goes first
_TRACING = threading.RLock()  # PyTorch traces in one thread at a time


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for the result of an earlier step."""

    number: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One elementary operation."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]  # with slots
    kwargs: dict[str, Any]
    result: int
    done: tuple[int, ...]  # slots that nobody needs hereafter
    constant: bool  # its result has no derivatives


@dataclasses.dataclass(frozen=True)
class Program:
    """What a call consists of.

    Attributes:
        changed: inputs that the call changes in place, each with the slot of its new value.
        aliases: ``(output, input)``: the numbers of tensors on the same memory.
        same: of tensors that are the same.
    """

    constants: dict[int, Tensor]
    steps: list[Step]
    output: Any
    spec: optree.PyTreeSpec  # of the output
    changed: dict[int, int]
    aliases: list[tuple[int, int]]
    same: list[tuple[int, int]]


def filled(tree: Any, slots: dict[int, Any]) -> Any:
    """Arguments with the results of earlier steps in the places of their slots."""
    if isinstance(tree, Slot):
        return slots[tree.number]
    if isinstance(tree, dict):
        return {name: filled(item, slots) for name, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([filled(item, slots) for item in tree])
    return tree


def lowered(func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Program:
    """The program of ``func(*args, **kwargs)`` with the leaves of ``(args, kwargs)``, whose tensors are its inputs."""
    kinds = tuple(_kind(leaf) for leaf in leaves)
    key = (func, spec, kinds, torch.get_default_dtype(), *_autocast())
    try:
        hash(key)
    except TypeError:
        with _TRACING:
            return _traced(func, leaves, spec)
    program = _programs.get(key)
    if program is None:
        with _TRACING:
            program = _programs[key] = _traced(func, leaves, spec)
            while len(_programs) > _MOST:
                _programs.pop(next(iter(_programs)))
    return program


def _autocast() -> list[Hashable]:
    return [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return Tensor, tuple(leaf.shape), leaf.dtype, leaf.device
    if isinstance(leaf, slice) and all(x is None or type(x) is int for x in (leaf.start, leaf.stop, leaf.step)):
        return slice, leaf.start, leaf.stop, leaf.step  # slices have no hash before Python 3.12
    return type(leaf), repr(leaf) if isinstance(leaf, float) else leaf  # 1, 1.0 and True are equal, 0.0 and -0.0


def _traced(func: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> Program:
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(*tensors: Tensor) -> Any:
        whole = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            whole[place] = tensor
        args, kwargs = _tree.unflatten(spec, whole)
        return func(*args, **kwargs)

    try:
        with outside_transforms(), outside_modes(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            fakes, again = ([_stand_in(leaves[i]) for i in places] for _ in range(2))
            results, structure = _tree.flatten(run(*fakes))
            functional = torch.func.functionalize(run, remove="mutations")
            graph = make_fx(functional, decomposition_table=_table(), tracing_mode="real")(*again)
            if any(map(_changes_a_temporary, graph.graph.nodes)):
                functional = torch.func.functionalize(graph, remove="mutations")
                graph = make_fx(functional, decomposition_table=_table(), tracing_mode="real")(*again)
    except Exception as error:
        raise UnseenError(f"{_name(func)}: {type(error).__name__}: {error}") from error
    outputs = [leaf for leaf in results if isinstance(leaf, Tensor)]
    pairs = [(i, j) for i in range(len(outputs)) for j in range(len(fakes))]
    same = [(i, j) for i, j in pairs if outputs[i] is fakes[j]]
    aliases = [(i, j) for i, j in pairs if shares_memory(outputs[i], fakes[j]) and (i, j) not in same]
    return _program(graph, structure, aliases, same)


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", None) or repr(func)


def _changes_a_temporary(node: fx.Node) -> bool:
    """As decompositions do, which were not there yet when changes in place were taken out."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return False
    return node.target is not aten.copy_.default or node.args[0].op != "placeholder"  # type: ignore[union-attr]


def _stand_in(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@functools.cache
def _table() -> dict[Any, Callable[..., Any]]:
    """What to take apart: all that has no rule."""
    table = {**core_aten_decompositions(), **get_decompositions(_MORE)}
    return {operation: how for operation, how in table.items() if operation not in RULES}


#: Beyond PyTorch's core.
_MORE = (aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit, aten._trilinear, aten.polar)


def _program(
    graph: fx.GraphModule,
    spec: optree.PyTreeSpec,
    aliases: list[tuple[int, int]],
    same: list[tuple[int, int]],
) -> Program:
    nodes = list(graph.graph.nodes)
    numbers = {node: number for number, node in enumerate(nodes)}
    last = {used: node for node in nodes for used in node.all_input_nodes}
    program = Program({}, [], _slots(nodes[-1].args[0], numbers), spec, {}, aliases, same)
    for node, number in numbers.items():
        if node.op == "get_attr":
            program.constants[number] = getattr(graph, node.target)
            if isinstance(program.constants[number], FakeTensor):
                raise UnseenError("a tensor is made in it whose numbers are not known when it is traced")
        elif node.op == "call_function" and node.target is aten.copy_.default:
            program.changed[numbers[node.args[0]]] = numbers[node.args[1]]
        elif node.op == "call_function":
            args, kwargs = _slots(node.args, numbers), _slots(node.kwargs, numbers)
            done = tuple(numbers[used] for used in node.all_input_nodes if last[used] is node)
            program.steps.append(Step(node.target, args, kwargs, number, done, _is_constant(node)))
    return program


def _slots(tree: Any, numbers: dict[fx.Node, int]) -> Any:
    if isinstance(tree, fx.Node):
        return Slot(numbers[tree])
    if isinstance(tree, dict):
        return {name: _slots(item, numbers) for name, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return (list if isinstance(tree, list) else tuple)(_slots(item, numbers) for item in tree)
    return tree


def _is_constant(node: fx.Node) -> bool:
    """Whether the result has no derivatives, whatever those of the arguments are: integers, or by its nature."""
    results = [x for x in _tree.flatten(node.meta.get("val"))[0] if isinstance(x, Tensor)]
    return node.target in CONSTANT or not any(x.is_floating_point() or x.is_complex() for x in results)
