"""``jacobian_operator`` (L3): from a function at a point to its Jacobian as an object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Argnums, Bound, bind
from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._evaluate import Method as Evaluator
from jacfn._evaluate import Options, Tracking
from jacfn._memory import Budget, Chunks, parse_budget
from jacfn._tree import LeafType
from jacfn.auto import choose_method
from jacfn.dense import forward_method, reverse_method
from jacfn.operator.block import Block
from jacfn.operator.budget import ALL_ROWS, Plan, plan_for
from jacfn.operator.given import Given
from jacfn.operator.jacobian import JacobianOperator
from jacfn.operator.passes import blocks_of
from jacfn.operator.source import Held, Products, Source, Streamed
from jacfn.operator.vectors import Vectors
from jacfn.quasilinear.linearise import StructureChangedError
from jacfn.quasilinear.structure import Structure
from jacfn.quasilinear.transform import quasilinear_method, with_structure

Method = Literal["auto", "rev", "fwd", "quasilinear", "products"]


def jacobian_operator(
    fn: Callable[..., Any],
    *primals: Any,
    argnums: Argnums = 0,
    in_dims: Any = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    memory: Budget = None,
    differentiable: bool = True,
) -> JacobianOperator:
    """The Jacobian of ``fn`` at ``primals`` as an object: products, Gram matrices, norms, or the dense matrix.

    One pass captures the inputs and cotangents of the layers that are linear in their weights; each question is then
    answered from these factors by the cheapest exact contraction. What has no closed form is kept as dense rows.

    Args:
        fn: ``fn(*primals) -> output``, pure; pytrees of floating-point tensors of one dtype in and out.
        primals: the point. Tensors are not copied: an operator refuses to answer from what was changed in place since.
        argnums: which primals to differentiate, an int or a tuple of ints.
        in_dims: which primals carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample.
            The differentiated ones must be shared by the samples.
        method: ``"quasilinear"`` for factors; ``"rev"`` and ``"fwd"`` for dense rows by reverse and forward mode;
            ``"products"`` to hold nothing: products by jvp and vjp, everything else by passes made anew; ``"auto"``
            as in :func:`jacfn.jacobian`.
        chunk_size: how many rows (columns, by forward mode) are evaluated at once.
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond inputs and results, what is
            held included. What does not fit is made again for each use, a block of samples at a time.
        differentiable: False detaches everything.

    Returns:
        A :class:`JacobianOperator`. It carries derivatives where those of :func:`torch.func.jacrev` would: inside
        transforms, and where an input requires grad.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``); the message names it.

    Cost: one forward pass over all samples and one backward pass for each row of one sample (by forward mode, a pass
    for each column). Held: for each use of a weight its input and its cotangents, or its dense rows where those are
    smaller.

    Example:
        >>> import torch
        >>> from jacfn import jacobian_operator, make_functional
        >>> fn, params = make_functional(torch.nn.Linear(3, 2))
        >>> J = jacobian_operator(fn, params, torch.ones(5, 3), in_dims=(None, 0))
        >>> J.shape, J.method, J.names
        ((10, 8), 'quasilinear', ('weight', 'bias'))
        >>> J.gram().shape, J.row_norms()[0]
        (torch.Size([10, 10]), tensor(2.))

    Dangel, Kunstner and Hennig (2020, arXiv:1912.10985) and Novak et al. (2022, arXiv:2206.08720) describe products and
    kernels from such factors.
    """
    if method not in get_args(Method):
        raise JacfnValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    options = Options(False, chunk_size, memory, "error", differentiable)
    bound = bind(fn, argnums, primals, {}, in_dims=in_dims)
    bound = bound if differentiable else bound.detach()
    _check(bound)
    chosen: str = choose_method(bound, options).method if method == "auto" else method

    def made(evaluator: Evaluator) -> JacobianOperator:
        return _Maker(bound, options, evaluator, chosen).operator()

    if chosen == "fwd":
        return made(forward_method(None, options))
    if chosen in ("rev", "products"):
        return made(reverse_method(None, options))

    def by_factors(structure: Structure) -> JacobianOperator:
        return made(quasilinear_method(structure, None, options))

    return with_structure(by_factors, bound, options)


@dataclasses.dataclass
class _Maker:
    """What is needed to make the rows of an operator."""

    bound: Bound
    options: Options
    evaluator: Evaluator
    method: str

    def operator(self) -> JacobianOperator:
        """With its rows held or not, as the budget has it."""
        budget = parse_budget(self.options.memory)
        hold = self.method != "products"
        plan = plan_for(self.evaluator, self.bound, self.options, budget, hold)
        held, values = [], []
        if plan.hold:
            for block, value in blocks_of(self.evaluator, self.bound, plan.chunks, self._tracking()):
                held.append(block)
                values.append(value)
            value = _joined(values, self.bound)
        else:
            value = self._value()
        if not self.options.differentiable:
            value = [leaf.detach() for leaf in value]
        rows = self._rows(value)
        return JacobianOperator(
            self._source(plan, held, rows.size, value),
            rows,
            Vectors(tuple(self.bound.leaf_types), self.bound.spec),
            tuple(_tree.dotted_names(self.bound.spec)),
            self.method,
            _tree.unflatten(self.bound.outputs.spec, value),
        )

    def _source(self, plan: Plan, held: list[Block], count: int, value: list[Tensor]) -> Source:
        kinds = self.bound.leaf_types
        arguments = [*self.bound.leaves, *self.bound.data]
        if plan.hold:
            return Held(held, count, kinds, plan.room, Given(arguments, value))

        def make(skip: int) -> Iterator[Block]:
            return self._again(plan.chunks, skip)

        if self.method == "products":
            return Products(self.bound, plan.chunks.samples, self._tracking(), make, count, plan.room, Given(arguments))
        return Streamed(make, count, kinds, plan.room, Given(arguments))

    def _again(self, chunks: Chunks, skip: int) -> Iterator[Block]:
        """The blocks from number ``skip`` on; blocks with rows of one sample are passed over."""
        whole = chunks.samples is not None and (self.evaluator.axis != 1 or chunks.rows >= ALL_ROWS)
        first = skip * (chunks.samples or 1) if whole else 0
        try:
            for number, (block, _) in enumerate(blocks_of(self.evaluator, self.bound, chunks, self._tracking(), first)):
                if whole or number >= skip:
                    yield block
        except StructureChangedError as error:
            raise JacfnError(
                "fn does something else than when the operator was made: it must be pure; use method='rev'"
            ) from error

    def _tracking(self) -> Tracking:
        if not self.options.differentiable:
            return "off"
        return "on" if self.bound.tracked() else "auto"

    def _value(self) -> list[Tensor]:
        """By a pass of its own."""
        bound = self.bound
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.options.differentiable):
            value: list[Tensor] = bound.vmapped(bound.call, "error")(bound.leaves, bound.data)[0]
        return value

    def _rows(self, value: list[Tensor]) -> Vectors:
        lead = 0 if self.bound.samples is None else 1
        kinds = tuple(LeafType(tuple(leaf.shape[lead:]), leaf.dtype, leaf.device) for leaf in value)
        dtypes = {str(kind.dtype) for kind in (*kinds, *self.bound.leaf_types)}
        if len(dtypes) > 1:
            raise JacfnTypeError(
                "outputs and differentiated arguments must have one dtype, got "
                f"{', '.join(sorted(dtypes))}: convert inside fn"
            )
        return Vectors(kinds, self.bound.outputs.spec, self.bound.samples)


def _check(bound: Bound) -> None:
    if not bound.leaves:
        raise JacfnTypeError(
            "the differentiated arguments hold no tensors, so that there are no columns: choose others by argnums"
        )
    if any(bound.leaves_mapped):
        name = next(name for name, mapped in zip(bound.names, bound.leaves_mapped, strict=True) if mapped)
        raise JacfnValueError(
            f"in_dims maps {name}, which is differentiated: the columns of an operator are shared by all samples. "
            "Take the transforms (jac_rev, ...) for derivatives with respect to samples, or vmap over the operator"
        )
    kinds = {(leaf.dtype, leaf.device) for leaf in bound.leaves}
    if len(kinds) > 1:
        raise JacfnTypeError(
            "differentiated arguments must have one dtype and device, got "
            f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}: choose them by argnums"
        )


def _joined(values: list[list[Tensor]], bound: Bound) -> list[Tensor]:
    if bound.samples is None:
        return values[0]
    distinct = [value for number, value in enumerate(values) if not number or value is not values[number - 1]]
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*distinct, strict=True)]
