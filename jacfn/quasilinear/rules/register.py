"""Closed forms for a user's own operations (L2)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._torch import as_called, parameters_of
from jacfn.quasilinear.rules._registry import CASES, EXPANSIONS, RULES, Operation, Rule, Use, rule_from

Function = TypeVar("Function", bound=Callable[..., Any])


def register_rule(*operations: Any, replace: bool = False) -> Callable[[Function], Function]:
    """Register a closed form for operations that are linear, or affine, in some of their arguments.

    The decorated function is called with the arguments of a call, and says for each argument in which the operation
    is linear (the others held fixed) which form that has. It is asked whenever a differentiated parameter meets the
    operation. The first call of :func:`jacfn.jac_quasilinear` with a new function compares the result with a plain
    vjp, so that a wrong rule is an error and not a wrong Jacobian.

    Args:
        operations: what the rule is for: classes derived from :class:`torch.autograd.Function`, operators of
            ``torch.library`` (as far as ``torch.func`` can differentiate them), functions of torch, methods of
            ``torch.Tensor``, and Python functions that PyTorch can see because they call
            ``torch.overrides.handle_torch_function``. They return one tensor.
        replace: replace the rule that an operation has already.

    Returns:
        A decorator, which hands the function through. The function has the parameters of the operation, under their
        names, with defaults where the operation has some. The tensors that it gets are those of one sample: shapes
        without the axis of samples. It returns a dictionary from the names of arguments to
        :class:`jacfn.quasilinear.Use`, without those that it has no form for: these go through vjp, and so does a
        call with an argument that the rule has no parameter for.

    Raises:
        JacfnTypeError: an operation is nothing that PyTorch can see a call of; the parameters of the rule are not
            those of the operation.
        JacfnValueError: the operation has a rule already, and ``replace`` is False.

    Example:
        A linear layer in blocks, ``y[h, o] = sum_i x[h, i] W[h, o, i]``, with a derivative of its own:

        >>> import jacfn, torch
        >>> from jacfn.quasilinear import Use, contraction
        >>> class BlockLinear(torch.autograd.Function):
        ...     generate_vmap_rule = True
        ...     @staticmethod
        ...     def forward(x, weight):
        ...         return torch.einsum("hi,hoi->ho", x, weight)
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         ctx.save_for_backward(*inputs)
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         x, weight = ctx.saved_tensors
        ...         return torch.einsum("ho,hoi->hi", grad, weight), torch.einsum("ho,hi->hoi", grad, x)
        >>> @jacfn.register_rule(BlockLinear)
        ... def block_linear(x, weight):
        ...     return {"weight": Use(contraction("hoi", "hi", "ho"), x)}
        >>> fn = lambda weight, x: BlockLinear.apply(x, weight).tanh()
        >>> jacobian = jacfn.jac_quasilinear(fn, in_dims=(None, 0), strict=True)
        >>> jacobian(torch.randn(2, 4, 3), torch.randn(5, 2, 3)).shape
        torch.Size([5, 2, 4, 2, 4, 3])
    """
    seen = _checked("register_rule", operations, replace)

    def register(uses: Function) -> Function:
        rule = _checked_rule(uses)
        for operation in seen:
            _check_parameters(operation, rule)
        _forget(seen)
        RULES.update(dict.fromkeys(seen, rule))
        return uses

    return register


def register_expansion(*operations: Any, replace: bool = False) -> Callable[[Function], Function]:
    """Register what operations consist of, where each part has a closed form.

    The decorated function stands in for a call in which a differentiated parameter takes part; the calls that it makes
    itself are claimed in turn. For fused operations, those with several outputs, and those that only move numbers.

    Args:
        operations: as in :func:`jacfn.register_rule`; any outputs.
        replace: replace the rule or expansion that an operation has already.

    Returns:
        A decorator, which hands the function through. The function has the parameters of the operation and returns
        the same result; it may return NotImplemented to leave a call as it is.

    Raises:
        JacfnTypeError: an operation is nothing that PyTorch can see a call of, or what is decorated cannot be called.
        JacfnValueError: the operation has a rule or expansion already, and ``replace`` is False.

    Example:
        >>> import jacfn, torch
        >>> class ScaledSoftplus(torch.autograd.Function):
        ...     generate_vmap_rule = True
        ...     @staticmethod
        ...     def forward(x, scale):
        ...         return (x * scale).exp().log1p()
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         ctx.save_for_backward(*inputs)
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         x, scale = ctx.saved_tensors
        ...         slope = grad * torch.sigmoid(x * scale)
        ...         return slope * scale, slope * x
        >>> @jacfn.register_expansion(ScaledSoftplus)
        ... def scaled_softplus(x, scale):
        ...     return torch.nn.functional.softplus(x * scale)
        >>> fn = lambda scale, x: ScaledSoftplus.apply(x, scale)
        >>> jacfn.jac_quasilinear(fn, in_dims=(None, 0), strict=True)(torch.ones(2), torch.zeros(3, 2)).shape
        torch.Size([3, 2, 2])
    """
    seen = _checked("register_expansion", operations, replace)

    def register(expand: Function) -> Function:
        _check_callable("register_expansion", expand)
        _forget(seen)
        EXPANSIONS.update(dict.fromkeys(seen, expand))
        return expand

    return register


def _checked(what: str, operations: tuple[Any, ...], replace: bool) -> list[Operation]:
    """The operations as the capture sees them."""
    if not operations:
        raise JacfnTypeError(f'{what}() needs the operations: write "@{what}(operation)"')
    seen = []
    for number, operation in enumerate(operations):
        found = as_called(operation)
        if not found:
            raise JacfnTypeError(
                f"{what}: argument {number} is {_describe(operation)}, and PyTorch cannot see calls of that. Make it a "
                "torch.autograd.Function (and give the class) or a torch.library.custom_op, or decorate it with "
                "torch.overrides.wrap_torch_function"
            )
        taken = [one for one in found if one in RULES or one in EXPANSIONS]
        if taken and not replace:
            kind = "a rule" if taken[0] in RULES else "an expansion"
            raise JacfnValueError(
                f"{what}: {_name(operation)} has {kind} already; pass replace=True to put another in its place"
            )
        seen += found
    return seen


def _forget(operations: list[Operation]) -> None:
    """What was registered before, and the example calls that belong to it."""
    for operation in operations:
        RULES.pop(operation, None)
        EXPANSIONS.pop(operation, None)
        CASES.pop(operation, None)


def _checked_rule(uses: Any) -> Rule:
    """The entry for a rule, which says how it is wrong."""
    _check_callable("register_rule", uses)
    parameters = inspect.signature(uses).parameters.values()
    odd = [str(p) for p in parameters if p.kind not in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if odd:
        raise JacfnTypeError(
            f"register_rule: the rule {_name(uses)} has the parameter {odd[0]}, which no argument of a call can be "
            "told apart by: write plain parameters, named as those of the operation"
        )
    return rule_from(_checking(uses))


def _checking(uses: Callable[..., Any]) -> Callable[..., Mapping[Any, Use]]:
    """The rule, whose answers are looked at."""
    rule = rule_from(uses)

    @functools.wraps(uses)
    def checked(*args: Any, **kwargs: Any) -> Mapping[Any, Use]:
        found = uses(*args, **kwargs)
        if not isinstance(found, Mapping) or not all(isinstance(use, Use) for use in found.values()):
            raise JacfnTypeError(
                f"the rule {rule.name} returned {found!r:.100}: it has to be a dictionary from names of arguments to "
                "jacfn.quasilinear.Use(form, input)"
            )
        unknown = [place for place in found if isinstance(place, str) and place not in rule.names]
        if unknown:
            raise JacfnTypeError(f"the rule {rule.name} returned a use of {unknown[0]!r}; it has {rule.names}")
        return found

    return checked


def _check_callable(what: str, value: Any) -> None:
    if not callable(value):
        raise JacfnTypeError(f"{what}: it decorates a function of the operation's arguments, not {_describe(value)}")


def _check_parameters(operation: Operation, rule: Rule) -> None:
    """Raise where no call, or not the plain one, could have the arguments that the rule has parameters for."""
    known = parameters_of(operation)
    if known is None or rule.rest is not None:
        return
    places = [p.name for p in known if p.by_position]
    others = [p.name for p in known if not p.by_position]
    paired = zip(rule.names, places, strict=False)
    fits = all(theirs in (None, "self", mine) for mine, theirs in paired)
    fits &= all(name in others for name in rule.names[len(places) : rule.required])
    fits &= all(p.name in rule.names for p in known[len(rule.names) :] if p.required)
    if not fits:
        theirs = ", ".join(p.name or "_" for p in known)
        raise JacfnTypeError(
            f"register_rule: the rule {rule.name} has the parameters ({', '.join(rule.names)}), but "
            f"{_name(operation)} has ({theirs}): name them as the operation does"
        )


def _name(operation: Any) -> str:
    return str(getattr(operation, "__name__", None) or operation)


def _describe(value: Any) -> str:
    kind = "a plain Python function" if inspect.isfunction(value) else f"of type {type(value).__name__}"
    return f"{_name(value)}, {kind}"
