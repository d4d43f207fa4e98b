"""The only module that touches private PyTorch API (L0).

Everything that ``torch.func`` does not say in public is asked here, one short function a question, so that a change
in PyTorch is mended in one place. ``PRIVATE`` names every private attribute used; a test resolves each.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch._dynamo  # torch.func imports it at first use: 66 MiB that a memory budget would have to answer for
import torch.utils._pytree
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
    maybe_get_level,
)
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._functorch.autograd_function import custom_function_call
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "PRIVATE",
    "FakeTensor",
    "FakeTensorMode",
    "OpOverload",
    "Parameter",
    "TorchDispatchMode",
    "as_called",
    "base_tensor",
    "core_aten_decompositions",
    "custom_function_call",
    "derivative_levels",
    "forward_levels",
    "get_decompositions",
    "innermost_level",
    "inside_transform",
    "is_active",
    "is_differentiated",
    "is_mapped",
    "is_wrapped",
    "outside_modes",
    "outside_transforms",
    "parameters_of",
    "shares_memory",
    "torch_registration",
    "transform_depth",
    "version",
    "weight_norm",
    "wrapper",
]

PRIVATE: tuple[str, ...] = (
    "torch._decomp.core_aten_decompositions",
    "torch._decomp.get_decompositions",
    "torch._dynamo",
    "torch._C._functorch.TransformType",
    "torch._C._functorch.TransformType.Grad",
    "torch._C._functorch.TransformType.Jvp",
    "torch._C._functorch.get_interpreter_stack",
    "torch._C._functorch.get_unwrapped",
    "torch._C._functorch.is_batchedtensor",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.is_gradtrackingtensor",
    "torch._C._functorch.maybe_get_level",
    "torch._functorch.autograd_function.custom_function_call",
    "torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack",
    "torch._library.custom_ops.CustomOpDef",
    "torch._ops.OpOverload",
    "torch._ops.OpOverloadPacket",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils._pytree",
    "torch.utils._pytree.SUPPORTED_NODES",
    "torch.Tensor._make_wrapper_subclass",
    "torch.Tensor._version",
    "torch.UntypedStorage._cdata",
    "torch._weight_norm",
)

weight_norm: Callable[..., Tensor] = torch._weight_norm
Kind = TypeVar("Kind", bound=Tensor)


def inside_transform() -> bool:
    """Whether the caller runs inside a ``torch.func`` transform (or is being compiled, where one cannot ask)."""
    if torch.compiler.is_compiling():
        return True
    return bool(get_interpreter_stack())


def base_tensor(tensor: Tensor) -> Tensor:
    """The tensor that holds the memory, under all the wrappers of the active transforms."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def transform_depth() -> int:
    """How many transforms are active; 0 where one cannot ask."""
    return 0 if torch.compiler.is_compiling() else len(get_interpreter_stack() or ())


def is_active(tensor: Tensor) -> bool:
    """Whether the outermost wrapper of the tensor belongs to a transform that is active."""
    return is_functorch_wrapped_tensor(tensor) and 0 < maybe_get_level(tensor) <= transform_depth()


def is_wrapped(tensor: Tensor) -> bool:
    """Whether some active transform has wrapped the tensor."""
    return is_functorch_wrapped_tensor(tensor)


def innermost_level() -> int | None:
    """The level of the innermost active transform; None where one cannot ask."""
    if torch.compiler.is_compiling():
        return None
    stack = get_interpreter_stack()
    return stack[-1].level() if stack else None


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative is under way in which the tensor takes part (no, where nobody can ask)."""
    if torch.compiler.is_compiling():
        return False
    while is_functorch_wrapped_tensor(tensor):
        if is_gradtrackingtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return torch.is_grad_enabled() and tensor.requires_grad


def is_mapped(tensor: Tensor, level: int) -> bool:
    """Whether the vmap of this level maps over the tensor."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor) and maybe_get_level(tensor) == level:
            return True
        tensor = get_unwrapped(tensor)
    return False


def outside_transforms() -> contextlib.AbstractContextManager[Any]:
    """No transform is active inside."""
    manager: contextlib.AbstractContextManager[Any] = temporarily_clear_interpreter_stack()
    return manager


def outside_modes() -> contextlib.AbstractContextManager[Any]:
    """No dispatch mode is active inside."""
    manager: contextlib.AbstractContextManager[Any] = _disable_current_modes()
    return manager


def wrapper(kind: type[Kind], like: Tensor) -> Kind:
    """A tensor of a subclass, without memory, that looks like another."""
    made: Kind = torch.Tensor._make_wrapper_subclass(kind, like.shape, dtype=like.dtype, device=like.device)
    return made


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, fake ones too, are on the same memory."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def version(tensor: Tensor) -> int:
    """How often the memory of ``tensor`` was changed in place; -1 where nobody counts."""
    if torch.compiler.is_compiling():
        return -1
    base = base_tensor(tensor)
    return -1 if base.is_inference() else base._version


def derivative_levels(values: Iterable[Any], mapped: bool = False) -> int:
    """How many derivatives may be taken of a call with these arguments: active grad and jvp levels, and autograd.

    With ``mapped``, vmap levels count as well.
    """
    if torch.compiler.is_compiling():
        return 2  # nobody can ask there
    kinds = (TransformType.Grad, TransformType.Jvp)
    levels = sum(mapped or interpreter.key() in kinds for interpreter in get_interpreter_stack() or [])
    recorded = any(isinstance(x, Tensor) and base_tensor(x).requires_grad for x in values)
    return levels + recorded


def forward_levels() -> int:
    """How many levels of forward mode are active (none while compiling, where nobody can ask)."""
    if torch.compiler.is_compiling():
        return 0
    return sum(interpreter.key() == TransformType.Jvp for interpreter in get_interpreter_stack() or [])


def torch_registration(
    kind: type,
) -> tuple[Callable[[Any], tuple[Any, Any]], Callable[[Any, Any], Any]] | None:
    """The flatten and unflatten functions under which ``kind`` is registered as a pytree with PyTorch, if it is."""
    node = torch.utils._pytree.SUPPORTED_NODES.get(kind)
    if node is None:
        return None
    return cast("Callable[[Any], tuple[Any, Any]]", node.flatten_fn), node.unflatten_fn


class Parameter(NamedTuple):
    """Of an operation."""

    name: str | None  # None where it is given by position alone
    required: bool
    by_position: bool


def as_called(operation: Any) -> list[Callable[..., Any]]:
    """What a torch-function mode sees when ``operation`` is called; empty where it sees nothing.

    Of a custom autograd Function it sees ``custom_function_call`` with the class, which is what is given here. Plain
    Python functions are seen if they ask for it by ``handle_torch_function``.
    """
    if isinstance(operation, CustomOpDef):
        operation = operation._opoverload
    if isinstance(operation, OpOverload):
        packet = operation.overloadpacket
        return [operation, packet] if len(_overloads(packet)) == 1 else [operation]
    if isinstance(operation, OpOverloadPacket):
        return [operation, *_overloads(operation)]
    owner = getattr(operation, "__self__", None) if inspect.ismethod(operation) else operation
    if isinstance(owner, type):
        if issubclass(owner, torch.autograd.Function) and operation in (owner, owner.apply):
            return [owner]
        return []
    if inspect.isfunction(operation):
        seen = operation.__module__.split(".")[0] == "torch" or "handle_torch_function" in operation.__code__.co_names
        return [operation] if seen else []
    kinds = (inspect.isbuiltin, inspect.ismethoddescriptor, lambda x: type(x) is type("".__len__))
    return [operation] if any(kind(operation) for kind in kinds) else []


def _overloads(packet: OpOverloadPacket) -> list[Callable[..., Any]]:
    names: list[str] = packet.overloads()  # type: ignore[no-untyped-call]
    return [getattr(packet, name) for name in names]


def parameters_of(operation: Callable[..., Any]) -> list[Parameter] | None:
    """The parameters of an operation as a torch-function mode sees it; None where nobody knows."""
    if isinstance(operation, OpOverload):
        arguments = operation._schema.arguments
        return [Parameter(x.name, not x.has_default_value(), not x.kwarg_only) for x in arguments]
    if isinstance(operation, type) and issubclass(operation, torch.autograd.Function):
        operation = operation.forward
    try:
        parameters = inspect.signature(operation).parameters.values()
    except (TypeError, ValueError):  # builtin
        return None
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return None
    return [
        Parameter(None if p.kind is p.POSITIONAL_ONLY else p.name, p.default is p.empty, p.kind is not p.KEYWORD_ONLY)
        for p in parameters
    ]
