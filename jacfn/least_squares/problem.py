"""What is minimised (L4): ``½ Σ w fn(params, *args)²`` as a function of flat vectors, for one problem or for many.

Frozen leaves are closed over, so that nothing is spent on them.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._binding import Bound, bind
from jacfn._cache import remember
from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._memory import mebibytes, parse_budget, plan, predict
from jacfn._torch import inside_transform
from jacfn._tree import LeafType
from jacfn.auto import jacobian
from jacfn.least_squares.passes import Passes
from jacfn.least_squares.rows import OperatorRows, Rows, StackedRows
from jacfn.operator import jacobian_operator
from jacfn.operator.vectors import Vectors
from jacfn.second_order.along import curvature

_STACKED = 10  # times the Jacobians of many problems: what there is at once of them and of what solvers make of them
_JET = 4  # evaluations that a second derivative takes at once


@dataclasses.dataclass(frozen=True)
class Problem(abc.ABC):
    """The function, with its free leaves as flat vectors ``x (..., P)`` and residuals ``(..., M)``.

    Attributes:
        bound: ``fn`` at the start.
        free: the numbers of the leaves that are fitted.
        names: the names of all leaves.
        roots: the roots of the weights, flat, or None.
        passes: how derivatives are taken.
    """

    bound: Bound
    free: tuple[int, ...]
    names: tuple[str, ...]
    roots: Tensor | None
    passes: Passes

    @property
    def start(self) -> Tensor:
        """``x`` of the given parameters."""
        lead = self.lead
        return torch.cat([self.bound.leaves[i].detach().reshape(*lead, -1) for i in self.free], -1)

    @property
    @abc.abstractmethod
    def lead(self) -> tuple[int, ...]:
        """``(B,)`` for many problems, else ``()``."""

    @property
    def kinds(self) -> list[LeafType]:
        """What the free leaves look like."""
        kinds = self.bound.leaf_types
        return [kinds[i] for i in self.free]

    @property
    def columns(self) -> list[str]:
        """A name for each element of ``x``."""
        return [
            self.names[i] + (f"[{', '.join(map(str, place))}]" if place else "")
            for i, kind in zip(self.free, self.kinds, strict=True)
            for place in itertools.product(*map(range, kind.shape))
        ]

    def leaves(self, x: Tensor) -> list[Tensor]:
        """All leaves, the free ones from ``x``."""
        whole = [leaf.detach() for leaf in self.bound.leaves]
        for i, leaf in zip(self.free, self.free_leaves(x), strict=True):
            whole[i] = leaf
        return whole

    def free_leaves(self, x: Tensor) -> list[Tensor]:
        """The free leaves."""
        parts = torch.split(x, [kind.size for kind in self.kinds], -1)
        return [part.reshape((*self.lead, *kind.shape)) for part, kind in zip(parts, self.kinds, strict=True)]

    def params(self, x: Tensor) -> Any:
        """The pytree of parameters, in memory of its own."""
        return _tree.unflatten(self.bound.spec, [leaf.clone() for leaf in self.leaves(x)])

    def value(self, x: Tensor) -> Any:
        """What ``fn`` returns."""
        outputs = self._outputs(x)
        return _tree.unflatten(self.bound.outputs.spec, outputs)

    def residuals(self, x: Tensor) -> Tensor:
        """Flat, times the roots of the weights."""
        return self._flat(self._outputs(x))

    def curvature(self, x: Tensor, h: Tensor) -> Tensor | None:
        """The second derivative of the residuals along ``h``; None where it has to come from a difference."""
        tangents: list[Tensor | None] = [None] * len(self.bound.leaves)
        for i, part in zip(self.free, self.free_leaves(h), strict=True):
            tangents[i] = part.unsqueeze(len(self.lead))  # an axis for the one direction
        dim = 0 if self.lead else None

        def run(block: Bound, start: int) -> list[Tensor] | None:
            if self.lead:
                stacks = [t if t is None else t[start : start + (block.samples or 1)] for t in tangents]
                return curvature(block, stacks, dim)
            return curvature(block, tangents, dim)

        share = self.passes.share
        outputs = self._by_blocks(x, None if share is None else share // _JET, run)
        return None if outputs is None else self._flat(outputs)

    @abc.abstractmethod
    def linearise(self, x: Tensor) -> tuple[Tensor, Rows]:
        """The residuals and their Jacobian."""

    def _outputs(self, x: Tensor) -> list[Tensor]:
        outputs = self._by_blocks(x, self.passes.share, lambda block, _: _run(block))
        assert outputs is not None
        return outputs

    def _by_blocks(
        self, x: Tensor, share: int | None, run: Callable[[Bound, int], list[Tensor] | None]
    ) -> list[Tensor] | None:
        """Of blocks of samples, the first of which has the number given, a few at a time where there is a budget."""
        bound = self.bound.replace(self.leaves(x), self.bound.data, self.bound.samples)
        with self.passes.shared():
            at_once = _at_once(bound, share)
        with torch.no_grad():
            if at_once is None or bound.samples is None:
                return run(bound, 0)
            starts = range(0, bound.samples, at_once)
            parts = [run(bound.block(start, min(at_once, bound.samples - start)), start) for start in starts]
        if any(part is None for part in parts):
            return None
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _flat(self, outputs: Sequence[Tensor]) -> Tensor:
        """Samples outermost."""
        lead = () if self.bound.samples is None else (self.bound.samples,)
        flat = torch.cat([leaf.reshape(*lead, -1) for leaf in outputs], -1)
        flat = flat if self.lead else flat.reshape(-1)
        return flat if self.roots is None else flat * self.roots


@dataclasses.dataclass(frozen=True)
class OneProblem(Problem):
    """All residuals belong to one fit; ``fn_of_free`` takes the free leaves by name where some are frozen."""

    args: tuple[Any, ...]
    in_dims: Any
    fn_of_free: Callable[..., Any]

    @property
    def lead(self) -> tuple[int, ...]:
        """No axis."""
        return ()

    def linearise(self, x: Tensor) -> tuple[Tensor, Rows]:
        """By an operator."""
        whole = len(self.free) == len(self.names)
        leaves = self.free_leaves(x)
        params = (
            _tree.unflatten(self.bound.spec, leaves) if whole else dict(zip(self._free_names(), leaves, strict=True))
        )
        with self.passes.shared():
            operator = jacobian_operator(
                self.fn_of_free,
                params,
                *self.args,
                in_dims=self.in_dims,
                method=self.passes.method,
                chunk_size=self.passes.chunk_size,
                memory=self.passes.share,
                differentiable=False,
            )
        residual = self._flat(_tree.flatten(operator.value)[0])
        return residual, OperatorRows(operator if self.roots is None else operator.weighted(self.roots))

    def _free_names(self) -> list[str]:
        return [self.names[i] for i in self.free]


@dataclasses.dataclass(frozen=True)
class ManyProblems(Problem):
    """A fit for each sample; ``flat(free leaves, (frozen leaves, data))`` is the function of one problem."""

    flat: Callable[..., Any]

    @property
    def lead(self) -> tuple[int, ...]:
        """``(B,)``."""
        assert self.bound.samples is not None
        return (self.bound.samples,)

    def linearise(self, x: Tensor) -> tuple[Tensor, Rows]:
        """Dense."""
        transform = jacobian(
            self.flat,
            method="auto" if self.passes.method == "products" else self.passes.method,
            return_value=True,
            in_dims=(0, (self._frozen_dims(), 0)) if self.bound.data else (0, (self._frozen_dims(), None)),
            chunk_size=self.passes.chunk_size,
            memory=self.passes.share,
            differentiable=False,
        )
        frozen = [leaf for i, leaf in enumerate(self.bound.leaves) if i not in self.free]
        with self.passes.shared():
            blocks, outputs = transform(self.free_leaves(x), (frozen, self.bound.data))
        count = len(x)
        rows = [
            torch.cat([part.reshape(count, -1, kind.size) for part, kind in zip(row, self.kinds, strict=True)], -1)
            for row in blocks
        ]
        dense = torch.cat(rows, -2)
        return self._flat(outputs), StackedRows(dense if self.roots is None else dense * self.roots.unsqueeze(-1))

    def take(self, index: Tensor) -> ManyProblems:
        """Some of the problems."""
        leaves = [
            leaf[index] if mapped else leaf
            for leaf, mapped in zip(self.bound.leaves, self.bound.leaves_mapped, strict=True)
        ]
        bound = self.bound.replace(leaves, [x[index] for x in self.bound.data], len(index))
        return dataclasses.replace(self, bound=bound, roots=None if self.roots is None else self.roots[index])

    def _frozen_dims(self) -> list[int | None]:
        return [dim for i, dim in enumerate(self.bound.leaf_dims) if i not in self.free]


def make_problem(
    fn: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    in_dims: Any,
    frozen: Any,
    weights: Any,
    passes: Passes,
) -> Problem:
    """Check the arguments; many problems where ``in_dims`` has an axis for the parameters."""
    if inside_transform():
        raise JacfnError(
            "levenberg_marquardt goes by values, step after step, so no transform (vmap, grad, ...) can go through it: "
            "give in_dims an axis for params to fit many problems at once"
        )
    bound = bind(fn, 0, (params, *args), {}, in_dims=in_dims).detach()
    names = tuple(_tree.dotted_names(bound.spec))
    free = _free(frozen, names)
    _check_leaves(bound, free)
    if bound.samples == 0 or not any(kind.size for kind in (bound.leaf_types[i] for i in free)):
        raise JacfnValueError("params: there is nothing to fit: no elements, or no samples")
    mapped = {bound.leaves_mapped[i] for i in free}
    if len(mapped) > 1:
        raise JacfnValueError("in_dims: either all free leaves of params carry problems, or none")
    if mapped.pop():
        many = ManyProblems(bound, free, names, None, passes, _flat_function(bound, free))
        _check_room(many)
        problem: Problem = many
    else:
        call = fn
        if len(free) < len(names):
            kept = [i for i in range(len(names)) if i not in free]
            call = _function_of_free(bound, free, fn)
            if in_dims is not None:
                dims = [bound.leaf_dims[i] for i in kept]
                in_dims = (None, dims if any(dim is not None for dim in dims) else None, *_rest(in_dims, len(args)))
            args = ([bound.leaves[i] for i in kept], *args)
        problem = OneProblem(bound, free, names, None, passes, args, in_dims, call)
    return problem if weights is None else dataclasses.replace(problem, roots=_roots(problem, weights))


def _check_room(problem: ManyProblems) -> None:
    """Their Jacobians are stacked, whatever the budget is."""
    budget = parse_budget(problem.passes.memory)
    if budget is None:
        return
    count, columns = problem.start.shape
    one = problem.take(torch.zeros(1, dtype=torch.int64, device=problem.start.device))
    rows = one.residuals(one.start).shape[-1]
    need = _STACKED * count * rows * columns * problem.start.dtype.itemsize
    if need > budget:
        raise JacfnValueError(
            f"memory={mebibytes(budget)} is too small: the Jacobians of {count} problems, and what is made of them, "
            f"take about {mebibytes(need)}; give at least that much, or fit fewer problems at a time"
        )


def renewed_dims(in_dims: Any, bound: Bound, count: int) -> Any:
    """``in_dims`` for parameters that a state gives: their problems, as all samples, lead on axis 0."""
    if in_dims is None:
        return None
    return (_tree.unflatten(bound.spec, bound.leaf_dims), *_rest(in_dims, count))


def _rest(in_dims: Any, count: int) -> tuple[Any, ...]:
    """Those of the further arguments."""
    return (in_dims,) * count if isinstance(in_dims, int) else tuple(in_dims[1:])


def _run(bound: Bound) -> list[Tensor]:
    outputs: list[Tensor] = bound.vmapped(bound.call, "error")(bound.leaves, bound.data)[0]
    return outputs


def _at_once(bound: Bound, budget: int | None) -> int | None:
    """How many samples are evaluated at once; None for all."""
    if budget is None or bound.samples is None:
        return None

    def peak(samples: int, _: int) -> int:
        def run(fake: Callable[[Tensor], Tensor]) -> list[Tensor]:
            block = bound.block(0, samples)
            with torch.no_grad():
                return _run(block.replace([fake(x) for x in block.leaves], [fake(x) for x in block.data], samples))

        return predict(run)

    def most() -> int | None:
        return plan(peak, bound.samples, 1, budget, samples_first=True, what="sample").samples

    key = None if bound.signature is None else ("residuals", bound.signature, bound.samples, budget)
    return remember(bound.fn, key, most)


def _free(frozen: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the leaves that are not frozen."""
    if not names:
        raise JacfnValueError("params: there is no tensor in it, so there is nothing to fit")
    if frozen is None:
        return tuple(range(len(names)))
    if callable(frozen):
        chosen = {name for name in names if frozen(name)}
    elif isinstance(frozen, str) or not hasattr(frozen, "__iter__"):
        raise JacfnTypeError(f"frozen must be names of leaves or a function of a name, got {frozen!r}")
    else:
        chosen = set(frozen)
        if unknown := sorted(map(str, chosen - set(names))):
            raise JacfnValueError(f"frozen: there is no leaf {unknown[0]!r}; there are {', '.join(names)}")
    free = tuple(i for i, name in enumerate(names) if name not in chosen)
    if not free:
        raise JacfnValueError("frozen: every leaf is frozen, so there is nothing to fit")
    return free


def _check_leaves(bound: Bound, free: tuple[int, ...]) -> None:
    kinds = {(bound.leaves[i].dtype, bound.leaves[i].device) for i in free}
    if len(kinds) > 1:
        raise JacfnTypeError(
            "params must have one dtype and device, got "
            f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}: convert them, or freeze some"
        )
    (dtype, _) = kinds.pop()
    if dtype not in (torch.float32, torch.float64):
        raise JacfnTypeError(f"params must be float32 or float64, got {dtype}: matrices are factored in these")


def _function_of_free(bound: Bound, free: tuple[int, ...], fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` of the free leaves by name, and of the frozen ones, which may carry samples."""

    def of_free(leaves: dict[str, Tensor], frozen: list[Tensor], *args: Any) -> Any:
        return fn(_tree.unflatten(bound.spec, _woven(free, leaves.values(), frozen)), *args)

    return of_free


def _flat_function(bound: Bound, free: tuple[int, ...]) -> Callable[..., Any]:
    """One problem as a function of its free leaves and of everything else that carries problems."""

    def flat(leaves: list[Tensor], rest: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        return bound.call(_woven(free, leaves, rest[0]), rest[1])[0]

    return flat


def _woven(free: tuple[int, ...], leaves: Iterable[Tensor], frozen: Sequence[Tensor]) -> list[Tensor]:
    """All leaves in order."""
    fitted, kept = iter(leaves), iter(frozen)
    return [next(fitted) if i in free else next(kept) for i in range(len(free) + len(frozen))]


def _roots(problem: Problem, weights: Any) -> Tensor:
    """The roots of the weights, flat: given with the structure of the residuals, or flat."""
    outputs = problem.value(problem.start)
    leaves, spec = _tree.flatten(outputs)
    lead = 0 if problem.bound.samples is None else 1
    kinds = tuple(LeafType(tuple(leaf.shape[lead:]), leaf.dtype, leaf.device) for leaf in leaves)
    flat, form = Vectors(kinds, spec, problem.bound.samples).parse(weights, "weights")
    if form.stacked:
        raise JacfnValueError("weights must be one vector of weights, not a stack of them")
    if not bool((flat >= 0).all()):
        raise JacfnValueError("weights must be at least 0: they multiply the squares of the residuals")
    return flat[0].detach().sqrt().reshape(*problem.lead, -1)
