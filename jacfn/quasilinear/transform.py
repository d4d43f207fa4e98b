"""``jac_quasilinear`` (L2): closed forms where parameters enter linearly, plain vjp for the rest, in one pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacfn._binding import Argnums, Bound, bind
from jacfn._cache import remember, store
from jacfn._errors import JacfnError
from jacfn._evaluate import Evaluation, Method, Options, Tracking, evaluate
from jacfn._memory import Budget, Chunks
from jacfn._products import Linearisation
from jacfn._selection import Selection, frozen, select, selection_key
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.quasilinear.capture import Capture, Record
from jacfn.quasilinear.factors import Form
from jacfn.quasilinear.structure import Structure, check_strict, learn
from jacfn.quasilinear.witness import scalar_like, witness


class StructureChangedError(Exception):
    """A run of ``fn`` did not do what was learnt about it."""


@dataclasses.dataclass
class LeafRows:
    """A chunk of the rows of one leaf: the sum over its claimed uses and, where it is joined, the plain vjp."""

    uses: list[tuple[Form, Tensor, Any]]  # (form, cotangents (R, N, *y), prepared input)
    rest: list[Tensor]  # (N, r, *leaf), one behind the other along the rows; empty for a leaf that is not joined
    shape: tuple[int, ...]  # (N, R, *leaf)
    like: LeafType
    in_place: bool

    @property
    def samples(self) -> int:
        """In this block."""
        return self.shape[0]

    def write(self, out: Tensor) -> None:
        """The first term is written, the others are added."""
        for number, (form, delta, x) in enumerate(self.uses):
            if number == 0:
                form.write(delta, x, out)
            else:
                out += form.rows(delta, x).reshape(self.shape)
        if not self.uses and not self.rest:
            out.zero_()
        low = 0
        for part in self.rest:
            place = out.narrow(1, low, part.shape[1])
            place.add_(part) if self.uses else place.copy_(part)
            low += part.shape[1]

    def dense(self) -> Tensor:
        """The sum in new memory."""
        terms = [form.rows(delta, x).reshape(self.shape) for form, delta, x in self.uses]
        if self.rest:
            terms.append(_join(self.rest, 1))
        if not terms:
            return torch.zeros(self.shape, dtype=self.like.dtype, device=self.like.device)
        return sum(terms[1:], terms[0])


def _stack_rows(parts: list[Tensor]) -> Tensor:
    """``(R, N, ...)`` from ``(r, N, ...)``, with samples first in memory, as the products want it."""
    return _join([part.transpose(0, 1) for part in parts], 1).transpose(0, 1)


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


class Factors:
    """``fn`` at a block, linearised: cotangents of claimed calls, their inputs, and the vjp of all other uses."""

    def __init__(self, block: Bound, structure: Structure, randomness: str, inner: str, tracking: Tracking) -> None:
        self._block, self._structure = block, structure
        self._lead = () if block.samples is None else (block.samples,)
        self._joined = [i for i, joined in enumerate(structure.joined) if joined]
        self._seen: set[int] = set()
        self._randomness = randomness
        leaves = block.expanded_leaves()
        primals = [*self._taps(), *(leaves[i] for i in self._joined), scalar_like(block.leaves[0])]
        self.linear = Linearisation(self._call, primals, inner, tracking)
        self.value = self.linear.value
        self.aux: list[Tensor]
        self.aux, inputs = self.linear.aux  # type: ignore[assignment]
        places = [
            (i, j)
            for i, claim in enumerate(structure.claims)
            for j, (_, form) in enumerate(claim.forms)
            if form.needs_input
        ]
        self._captured = dict(zip(places, inputs, strict=True))
        self._prepared: dict[tuple[int, int], Tensor] = {}

    def _taps(self) -> list[Tensor]:
        device = self._block.leaves[0].device
        return [
            torch.zeros((), dtype=claim.dtype, device=device).expand(*self._lead, *claim.shape)
            for claim in self._structure.claims
        ]

    def _call(self, *primals: Tensor) -> tuple[list[Tensor], Any]:
        """``fn`` with taps and aliases; its aux are fn's aux and the captured inputs."""
        block, claims = self._block, self._structure.claims
        taps, joined, scalar = primals[: len(claims)], iter(primals[len(claims) : -1]), primals[-1]
        taken = self._structure.joined
        free = [leaf for leaf, is_joined in zip(block.expanded_leaves(), taken, strict=True) if not is_joined]
        watched = iter(witness(free, scalar, self._seen) if free else [])
        aliases = [next(joined) if is_joined else next(watched) for is_joined in taken]

        def run(aliases: list[Tensor], data: list[Tensor], outers: list[Tensor], taps: list[Tensor]) -> Any:
            record = Record()
            with Capture(aliases, outers, record, taps):
                values, aux = block.call(aliases, data)
            if tuple(record.claims) != claims:
                raise StructureChangedError
            record.check_inputs()
            return values, aux, [x for inputs in record.inputs for x in inputs if x is not None]

        dims = [[0] * len(aliases), [0] * len(block.data), block.leaf_dims, [0] * len(taps)]
        vmapped = block.vmapped(run, self._randomness, *dims)
        values, aux, inputs = vmapped(aliases, block.data, block.leaves, list(taps))
        return values, (aux, inputs)

    def rows(self, cotangents: Sequence[Tensor | None], keep: bool) -> list[LeafRows]:
        """The rows of every leaf for stacks ``(R, *out)`` of one sample's cotangents; ``keep`` for the next call."""
        size = next(len(stack) for stack in cotangents if stack is not None)
        if self._lead:
            cotangents = [
                None if stack is None else stack.unsqueeze(1).expand(size, *self._lead, *stack.shape[1:])
                for stack in cotangents
            ]
        parts = self._pull(cotangents, size)
        if self._seen:
            raise StructureChangedError
        if not self._lead:
            parts = [[grad.unsqueeze(1) for grad in part] for part in parts]
        claims = len(self._structure.claims)
        deltas = [_stack_rows([part[i] for part in parts]) for i in range(claims)]
        rest = {leaf: [part[claims + j] for part in parts] for j, leaf in enumerate(self._joined)}
        return [self._leaf_rows(i, size, deltas, rest.get(i, []), keep) for i in range(len(self._block.leaves))]

    def _pull(self, cotangents: Sequence[Tensor | None], size: int) -> list[list[Tensor]]:
        """The cotangents of taps and joined leaves, ``(R, N, ...)``, a few rows at a time.

        Backward passes of rows that are vmapped together run through memory together: where their cotangents leave
        the cache, one row after the other is faster; not so for the large gradients of joined leaves.
        """
        step = max(1, _CACHE // max(self._structure.cotangent_bytes * (self._block.samples or 1), 1))
        step = size if self._joined else step
        return [
            self.linear.pull([None if stack is None else stack[low : low + step] for stack in cotangents])[:-1]
            for low in range(0, size, step)
        ]

    def _leaf_rows(self, leaf: int, size: int, deltas: list[Tensor], rest: list[Tensor], keep: bool) -> LeafRows:
        structure, kind = self._structure, self._block.leaf_types[leaf]
        uses = [(structure.claims[i].forms[j][1], deltas[i], self._input(i, j, keep)) for i, j in structure.forms(leaf)]
        shape = (*(self._lead or (1,)), size, *kind.shape)
        in_place = not self.linear.tracked and not inside_transform()
        return LeafRows(uses, [part.transpose(0, 1) for part in rest], shape, kind, in_place)

    def _input(self, claim: int, place: int, keep: bool) -> Tensor | None:
        """What the form makes of its captured input: once, if more rows are to come."""
        key = (claim, place)
        if key not in self._captured:
            return None
        if key not in self._prepared:
            x = self._captured[key]
            prepared = self._structure.claims[claim].forms[place][1].prepare(x if self._lead else x.unsqueeze(0))
            if not keep:
                return prepared
            self._prepared[key] = prepared
        return self._prepared[key]


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
    lead = len(factors._lead)
    kinds = [LeafType(tuple(v.shape[lead:]), v.dtype, v.device) for v in factors.value]
    side = select(kinds, block.outputs.spec, rows, "rows")
    ranges = side.probes(rows_at_once) if probing else side.chunks(rows_at_once)

    def chunks() -> Iterator[tuple[int, int, list[LeafRows]]]:
        for low, high in ranges:
            yield low, high, factors.rows(side.basis(low, high), keep=len(ranges) > 1)

    return Evaluation(side, block.leaf_types, factors.value, factors.aux, chunks())


def self_check(bound: Bound, structure: Structure, options: Options) -> None:
    """Compare one random ``uᵀ J`` from the factors with a plain vjp, on one sample; a difference is a wrong rule."""
    one = bound if bound.samples is None else bound.block(0, min(1, bound.samples))
    if structure.random or one.samples == 0:
        return
    one = one.clone()
    factors = Factors(one, structure, options.randomness, options.inner_randomness, "off")
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in factors.value
    ]
    lead = len(factors._lead)
    got = factors.rows([u if lead else u.unsqueeze(0) for u in cotangents], keep=False)

    def plain(*leaves: Tensor) -> list[Tensor]:
        dims = [[0] * len(leaves), [0] * len(one.data)]
        values: list[Tensor] = one.vmapped(one.call, options.randomness, *dims)(list(leaves), one.data)[0]
        return values

    _, vjp = torch.func.vjp(plain, *one.expanded_leaves())  # type: ignore[misc]
    with torch.no_grad():
        wanted = vjp(cotangents)
    for name, rows, grad in zip(one.names, got, wanted, strict=True):
        _compare(name, rows.dense()[:, 0].reshape(grad.shape), grad)  # one sample, one row


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def _compare(name: str, mine: Tensor, plain: Tensor) -> None:
    tolerance = _TOLERANCE.get(plain.dtype, 1e-1)
    scale = plain.nan_to_num(0, 0, 0).abs().max().item() if plain.numel() else 0.0
    if not torch.allclose(mine, plain, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise JacfnError(
            f"{name}: the closed form differs from a plain vjp by {(mine - plain).abs().max().item():.3g} (scale "
            f"{scale:.3g}). This is a wrong rule in jacfn, or fn is not a pure function. Use jac_rev, and please "
            "report it"
        )


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
            are not differentiated. The first call with new shapes runs ``fn`` three times more, on one sample: a
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
        structure = known_structure(bound, options, strict)
        for again in (_learn_again, _join_all, None):
            try:
                return evaluate(_method(structure, rows, options), bound, options)
            except StructureChangedError:
                if again is not None:
                    structure = again(bound, options, strict, structure)
        raise JacfnError("fn does something else at every call: jac_quasilinear needs a pure function; use jac_rev")

    return jacobian


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
    return "quasilinear", inside_transform(), strict, options.randomness, bound.signature


def _learn(bound: Bound, options: Options, strict: bool) -> Structure:
    structure = learn(bound, options.randomness, call_sites=strict)
    if strict:
        check_strict(structure, bound.names)
    if not inside_transform():
        self_check(bound, structure, options)
    return structure


def _method(structure: Structure, rows: Selection, options: Options) -> Method:
    start = partial(start_quasilinear, rows=rows, structure=structure, options=options)
    default = partial(_default_chunks, structure)
    return Method("jac_quasilinear", 1, start, samples_first=True, default=default, key=selection_key(rows))


def _default_chunks(structure: Structure, bound: Bound) -> Chunks:
    """Chunks that take little memory, and of samples rather than of rows: see :meth:`Matmul.write`."""
    leaves = zip(bound.leaf_types, structure.joined, strict=True)
    joined = sum(leaf.size * leaf.dtype.itemsize for leaf, is_joined in leaves if is_joined)
    room = max(1, _ROOM // max(structure.cotangent_bytes + joined, 1))  # rows of one sample
    if not bound.samples:
        return Chunks(bound.samples, room)
    blocks = math.ceil(bound.samples * max(structure.rows, 1) / room)
    return Chunks(math.ceil(bound.samples / min(blocks, bound.samples)), min(room, max(structure.rows, 1)))


# Measured by benchmarks.dense on two cores: cotangents pulled back at once, and all that a chunk holds.
_CACHE = 2 << 20
_ROOM = 32 << 20
