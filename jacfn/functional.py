"""Modules as pure functions of their parameters (L1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jacfn import _tree
from jacfn._errors import JacfnTypeError, JacfnValueError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def make_functional(module: nn.Module, *, batched: bool = False) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as a pure function ``fn(params, *inputs, **kwargs)``, and its parameters.

    Args:
        module: any module; it is not copied. Buffers and frozen parameters (``requires_grad=False``) are closed over
            and read at each call, so ``module.eval()`` and loaded weights of these show.
        batched: False: ``fn`` is a function of one sample; every tensor among its inputs gets a batch axis of
            length 1, which every output loses again. True: ``fn`` takes batches as the module does.

    Returns:
        ``(fn, params)``: ``params`` maps names to detached trainable parameters (sharing memory with the module) in
        the order of ``module.named_parameters()``, a shared parameter once, under its first name. Pass
        ``in_dims=(None, 0)`` to a transform of ``fn`` for the Jacobian of every sample of a batch.

    Raises:
        JacfnTypeError: ``module`` is no ``nn.Module``, or a scripted one.
        JacfnValueError: a lazy module has no shapes yet; at a call, an output carries no batch axis of length 1, or a
            normalisation of the module is no function of its inputs: a batch norm of one sample that would use the
            statistics of its batch (``module.eval()`` makes it use the running ones), and one that would change its
            running statistics.

    Cost: none beyond the module's own.

    Example:
        >>> import torch
        >>> from jacfn import jac_rev, make_functional
        >>> fn, params = make_functional(torch.nn.Linear(3, 2))
        >>> jac = jac_rev(fn, in_dims=(None, 0))(params, torch.ones(5, 3))
        >>> {name: tuple(leaf.shape) for name, leaf in jac.items()}
        {'weight': (5, 2, 2, 3), 'bias': (5, 2, 2)}

    Built on :func:`torch.func.functional_call`.
    """
    if not isinstance(module, nn.Module):
        raise JacfnTypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise JacfnTypeError(
            "module: a scripted or traced module cannot be called with other parameters than its own; pass the module "
            "that it was made from"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise JacfnValueError(
                f"module: the lazy tensor {name!r} has no shape yet; call the module once on an input first"
            )
    params = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    kinds = _BATCH_NORMS + _INSTANCE_NORMS
    norms = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]

    def batch_function(params: dict[str, Tensor], *inputs: Any, **kwargs: Any) -> Any:
        for name, norm in norms:  # at each call: module.train() and module.eval() show
            _check_norm(name, norm, batched)
        return torch.func.functional_call(module, params, inputs, kwargs)

    def sample_function(params: dict[str, Tensor], *inputs: Any, **kwargs: Any) -> Any:
        inputs, kwargs = _map_tensors(lambda x: x.unsqueeze(0), (inputs, kwargs))
        return _map_tensors(_drop_batch, batch_function(params, *inputs, **kwargs))

    return (batch_function if batched else sample_function), params


def _check_norm(name: str, norm: nn.Module, batched: bool) -> None:
    """Refuse statistics that mix samples where there is one sample, and running statistics that change at a call."""
    running = norm.running_mean is not None
    changes = norm.training and norm.track_running_stats and running
    if not batched and (norm.training or not running) and isinstance(norm, _BATCH_NORMS):
        trouble = "normalises by the statistics of its batch, which mixes samples: there is no function of one sample"
    elif changes:
        trouble = "changes its running statistics at every call: the module is no pure function"
    else:
        return
    layer = f"the layer {name!r}" if name else "the module itself"
    mode = "training" if norm.training else "eval"
    remedy = (
        "call module.eval() first, or use a GroupNorm in its place"
        if changes
        else "give it running statistics (track_running_stats=True) and call module.eval(), use a GroupNorm in its "
        "place, or take the batch as a whole by make_functional(module, batched=True)"
    )
    raise JacfnValueError(f"module: {layer}, {type(norm).__name__} in {mode} mode, {trouble}; {remedy}")


def _map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    leaves, spec = _tree.flatten(tree)
    return _tree.unflatten(spec, [change(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def _drop_batch(output: Tensor) -> Tensor:
    if output.ndim == 0 or output.shape[0] != 1:
        raise JacfnValueError(
            f"module: an output of shape {tuple(output.shape)} carries no batch axis of length 1 for a single sample; "
            "use make_functional(module, batched=True), or wrap the module so that every output leads with the batch"
        )
    return output.squeeze(0)
