"""``jac_quasilinear`` (L2): closed forms where parameters enter linearly, plain vjp for the rest, in one pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch

from jacfn._binding import Argnums, Bound, bind
from jacfn._cache import remember, store
from jacfn._errors import JacfnError
from jacfn._evaluate import Evaluation, Method, Options, Tracking, evaluate
from jacfn._memory import Budget, Chunks
from jacfn._selection import Selection, frozen, select, selection_key
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.quasilinear.autocast import autocast_of, autocast_to
from jacfn.quasilinear.check import self_check
from jacfn.quasilinear.factors import Leaf
from jacfn.quasilinear.linearise import Factors, StructureChangedError
from jacfn.quasilinear.structure import Structure, check_strict, learn

T = TypeVar("T")


def start_quasilinear(
    block: Bound,
    rows_at_once: int | None,
    tracking: Tracking,
    probing: bool,
    *,
    rows: Selection,
    structure: Structure,
    options: Options,
) -> Evaluation:
    """A block in closed form: one vjp around all its samples, then their rows chunk by chunk."""
    factors = Factors(block, structure, options.randomness, options.inner_randomness, tracking)
    lead = factors.samples is not None
    kinds = [LeafType(tuple(v.shape[lead:]), v.dtype, v.device) for v in factors.value]
    side = select(kinds, block.outputs.spec, rows, "rows")
    ranges = side.probes(rows_at_once) if probing else side.chunks(rows_at_once)

    def chunks() -> Iterator[tuple[int, int, list[Leaf]]]:
        for low, high in ranges:
            yield low, high, factors.rows(side.basis(low, high), keep=len(ranges) > 1)

    return Evaluation(side, block.leaf_types, factors.value, factors.aux, chunks())


def jac_quasilinear(
    fn: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    return_value: bool = False,
    in_dims: Any = None,
    rows: Selection = None,
    chunk_size: int | None = None,
    memory: Budget = None,
    randomness: str = "error",
    differentiable: bool = True,
    strict: bool = False,
) -> Callable[..., Any]:
    """The Jacobian of ``fn``, in closed form wherever a parameter enters its operation linearly.

    A weight enters its layer linearly, so its Jacobian is the product of the layer's input and the cotangent at the
    layer's output: ``dz/dW = delta (x) x``. Both are captured in one pass over all samples, and every element of the
    result is written once. All other uses of a parameter go through a plain vjp in the same pass, so the
    result is exact for every function; it is fast for parameters of networks.

    Args:
        fn: ``fn(*args, **kwargs) -> output``, pure; pytrees of floating-point tensors in and out. Keyword arguments
            are not differentiated. The first call with new shapes runs ``fn`` four times more, on a sample or two: a
            function made afresh for every call pays that every time.
        argnums: which positional arguments to differentiate, an int or a tuple of ints.
        has_aux: ``fn`` returns ``(output, aux)``; aux is handed through.
        return_value: return the value beside the Jacobian.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``fn`` is then a function of one sample
            and the result leads with the samples.
        rows: the rows to compute, places in the raveled output (of one sample): an int, a slice, a 1-D LongTensor,
            or a pytree with one of these for each output leaf. Other rows cost nothing.
        chunk_size: how many rows are evaluated at once (default: chosen for speed).
        memory: a budget, bytes or such as ``"512MiB"``, for all that is allocated beyond the inputs and the result;
            the chunk size is derived from it.
        randomness: ``"error"``, ``"same"`` or ``"different"`` random numbers for the samples, as in
            :func:`torch.func.vmap`.
        differentiable: False detaches the result from every outer transform and graph.
        strict: raise where a leaf has a use without closed form, naming leaf, operation and call site.

    Returns:
        A function of the arguments of ``fn`` with the result of :func:`jacfn.jac_rev`.

    Raises:
        JacfnError: an argument does not fit (also a ``TypeError`` or ``ValueError``); a captured input is changed in
            place afterwards; ``strict`` finds a use without closed form; the self-check of the first call fails.

    Cost: one forward pass over all samples, one backward pass for each row of one sample (all samples at once), and one
    write of the result. Memory beyond the result: the graph, and the cotangents of a chunk of rows.

    Under ``torch.compile`` closed forms are for parameters and views of them; whatever else ``fn`` computes from
    parameters (``W + B A``) goes by vjp there, since nobody could see it being changed in place.

    Example:
        >>> import torch
        >>> from jacfn import jac_quasilinear, make_functional
        >>> fn, params = make_functional(torch.nn.Linear(3, 2))
        >>> jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(params, torch.ones(5, 3))
        >>> jac["weight"][0, 1]  # derivative of output 1 of sample 0
        tensor([[0., 0., 0.],
                [1., 1., 1.]])

    Goodfellow (2015, arXiv:1510.01799) has the outer product for linear layers, Rochette et al. (2019,
    arXiv:1912.06015) the convolutions; the additive split that makes it exact for any function is described in the
    design notes of this library.
    """
    options = Options(return_value, chunk_size, memory, randomness, differentiable)
    rows = frozen(rows)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        bound = bind(fn, argnums, args, kwargs, has_aux=has_aux, in_dims=in_dims)
        bound = bound if differentiable else bound.detach()

        def run(structure: Structure) -> Any:
            with autocast_to(None, bound.leaves):
                return evaluate(quasilinear_method(structure, rows, options), bound, options)

        return with_structure(run, bound, options, strict)

    return jacobian


def with_structure(run: Callable[[Structure], T], bound: Bound, options: Options, strict: bool = False) -> T:
    """``run(structure)`` with what is learnt about ``fn``; learnt anew where the run does not follow it."""
    structure = known_structure(bound, options, strict)
    for again in (_learn_again, _join_all, None):
        try:
            return run(structure)
        except StructureChangedError:
            if again is not None:
                structure = again(bound, options, strict, structure)
    raise _impure()


def known_structure(bound: Bound, options: Options, strict: bool = False) -> Structure:
    """What was learnt about ``fn`` for calls like this one; learnt now at the first."""
    return remember(bound.fn, _key(bound, options, strict), lambda: _learn(bound, options, strict))


def _learn_again(bound: Bound, options: Options, strict: bool, _: Structure) -> Structure:
    """After a run that did not follow the structure."""
    structure = _learn(bound, options, strict)
    store(bound.fn, _key(bound, options, strict), structure)
    return structure


def _join_all(bound: Bound, options: Options, strict: bool, structure: Structure) -> Structure:
    """After a second one: some use shows in the whole run alone."""
    if strict:
        raise JacfnError("strict=True: fn uses a leaf in a way that did not show when its structure was learnt")
    structure = structure.all_joined()
    store(bound.fn, _key(bound, options, strict), structure)
    return structure


def _key(bound: Bound, options: Options, strict: bool) -> Hashable | None:
    if bound.signature is None:
        return None
    # which replacements of operations apply, and what is rounded
    context = inside_transform(), bound.tracked(), torch.is_grad_enabled(), autocast_of(bound.leaves)
    return "quasilinear", context, strict, options.randomness, bound.signature


def _learn(bound: Bound, options: Options, strict: bool) -> Structure:
    for _ in range(2):  # fn may keep what its first run computes
        structure = learn(bound, options.randomness, call_sites=strict)
        if strict:
            check_strict(structure, bound.names)
        if inside_transform():
            return structure
        with contextlib.suppress(StructureChangedError):
            self_check(bound, structure, options)
            return structure
    raise _impure()


def _impure() -> JacfnError:
    return JacfnError("fn does something else at every call: it must be a pure function; use jac_rev (method='rev')")


def quasilinear_method(structure: Structure, rows: Selection, options: Options) -> Method:
    """How ``jac_quasilinear`` evaluates a block."""
    start = partial(start_quasilinear, rows=rows, structure=structure, options=options)
    default = partial(_default_chunks, structure)
    return Method("jac_quasilinear", 1, start, samples_first=True, default=default, key=selection_key(rows))


def _default_chunks(structure: Structure, bound: Bound) -> Chunks:
    """Rows of all samples, so many that no temporary is large; fewer samples where one row is too much."""
    rows, samples = max(structure.rows, 1), bound.samples
    if torch.compiler.is_compiling():  # which unrolls chunks, and needs none where it fuses what they are for
        return Chunks(samples, rows)
    leaves = zip(bound.leaf_types, structure.joined, strict=True)
    joined = [leaf.size * leaf.dtype.itemsize for leaf, is_joined in leaves if is_joined]
    each = structure.cotangent_bytes + sum(joined)
    largest = max([*structure.tap_bytes, *joined], default=1)
    together = min(samples or 1, max(1, _ROOM // max(each, 1)))
    if samples:
        together = math.ceil(samples / math.ceil(samples / together))
    at_once = min(_ROOM // max(each * together, 1), _LARGEST // max(largest * together, 1))
    return Chunks(samples and together, min(max(at_once, 1), rows))


# Bytes of all that a chunk holds, and of each temporary: malloc maps large ones anew each time. Measured on two cores.
_ROOM = 128 << 20
_LARGEST = 16 << 20
