"""The ways to compute a work's Jacobian: PyTorch's, loops, and jacfn's.

Every way returns the same pytree: the weights' names, with leaves ``(N, *out, *in)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

import jacfn

from .works import Params, Work

Jacobian = dict[str, Tensor]
Run = Callable[[], Jacobian]
Transformed = Callable[[Params, Tensor], Jacobian]

#: A method that would need one tensor larger than this is skipped.
LARGEST_TENSOR = 1 << 30
#: Forward mode is run where it has at most this many columns.
MANY_COLUMNS = 1000


@dataclass(frozen=True)
class Method:
    """A way to compute a Jacobian.

    Attributes:
        name: As printed.
        make: From a work to a call that computes its Jacobian.
        first_rows: For loops over rows: from a work and a number of rows to a call that computes only those.
        skip: From a work to the reason not to run there, or an empty string.
        ours: Whether this is jacfn.
        compiled: Whether the first call compiles, and is left out of the time.
    """

    name: str
    make: Callable[[Work], Run]
    first_rows: Callable[[Work, int], Run] | None = None
    skip: Callable[[Work], str] = lambda work: ""
    ours: bool = False
    compiled: bool = False


def _eager(transform: Callable[[Work], Transformed]) -> Callable[[Work], Run]:
    def make(work: Work) -> Run:
        jacobian = transform(work)
        return lambda: jacobian(work.params, work.x)

    return make


def _compiled(transform: Callable[[Work], Transformed]) -> Callable[[Work], Run]:
    def make(work: Work) -> Run:
        jacobian = torch.compile(transform(work), fullgraph=True, dynamic=False)
        return lambda: jacobian(work.params, work.x)

    return make


# --- torch.func -----------------------------------------------------------------------------------


def _vmap_jacrev(work: Work) -> Transformed:
    return vmap(jacrev(work.fn), work.in_dims)


def _vmap_jacfwd(work: Work) -> Run:
    return lambda: vmap(jacfwd(work.fn), work.in_dims)(work.params, work.x)


def _jacrev(work: Work) -> Run:
    return lambda: jacrev(work.batch_fn)(work.params, work.x)


def _jacfwd(work: Work) -> Run:
    return lambda: jacfwd(work.batch_fn)(work.params, work.x)


# --- torch.autograd -------------------------------------------------------------------------------


def _functional(work: Work, rows: int | None = None, vectorize: bool = False) -> Run:
    def outputs(*weights: Tensor) -> Tensor:
        out = work.batch_fn(dict(zip(work.params, weights, strict=True)), work.x)
        return out if rows is None else out.reshape(-1)[:rows]

    def run() -> Jacobian:
        weights = tuple(work.params.values())
        leaves = torch.autograd.functional.jacobian(outputs, weights, vectorize=vectorize)
        return dict(zip(work.params, leaves, strict=True))

    return run


def _functional_vectorized(work: Work) -> Run:
    return _functional(work, vectorize=True)


def _leaves(params: Params) -> Params:
    return {name: weight.detach().requires_grad_() for name, weight in params.items()}


def _gather(rows: list[tuple[Tensor, ...]], work: Work) -> Jacobian:
    lead = (len(work.x), *work.out_shape) if len(rows) == work.rows else (len(rows),)
    leaves = (torch.stack(leaf).unflatten(0, lead) for leaf in zip(*rows, strict=True))
    return dict(zip(work.params, leaves, strict=True))


def _loop(work: Work, rows: int | None = None) -> Run:
    """One forward of the batch, then one backward through it for each output of each sample.

    Iterating over a tensor unbinds it, and each backward then fills in the other outputs' zeros one by one:
    costly, and what ``for output in net(x).view(-1)`` does.
    """

    def run() -> Jacobian:
        params = _leaves(work.params)
        weights = list(params.values())
        outputs = islice(work.batch_fn(params, work.x).reshape(-1), rows)
        return _gather([torch.autograd.grad(output, weights, retain_graph=True) for output in outputs], work)

    return run


def _loop_by_index(work: Work, rows: int | None = None) -> Run:
    """The same loop with the outputs indexed, which is cheaper to run backward."""

    def run() -> Jacobian:
        params = _leaves(work.params)
        weights = list(params.values())
        outputs = work.batch_fn(params, work.x).reshape(-1)
        indices = range(work.rows if rows is None else rows)
        return _gather([torch.autograd.grad(outputs[i], weights, retain_graph=True) for i in indices], work)

    return run


def _loop_by_sample(work: Work, rows: int | None = None) -> Run:
    """For each sample a forward of it alone, and one backward for each of its outputs."""

    def run() -> Jacobian:
        params = _leaves(work.params)
        weights = list(params.values())
        gradients = []
        for sample in work.x[: None if rows is None else rows // work.outputs]:
            for output in work.fn(params, sample).reshape(-1):
                gradients.append(torch.autograd.grad(output, weights, retain_graph=True))
        return _gather(gradients, work)

    return run


# --- jacfn ----------------------------------------------------------------------------------------


def _ours(transform: Callable[..., Transformed]) -> Callable[[Work], Transformed]:
    return lambda work: transform(work.fn, in_dims=work.in_dims)


_quasilinear = _ours(jacfn.jac_quasilinear)


def some_columns(work: Work, columns: Tensor) -> Callable[[], Tensor]:
    """jacfn's forward mode for chosen columns only."""
    jacobian = jacfn.jac_fwd(work.fn, in_dims=work.in_dims, columns=columns)
    return lambda: jacobian(work.params, work.x)


# --- where they do not fit ------------------------------------------------------------------------


def largest_activation(work: Work) -> int:
    """Bytes of the largest activation that a backward pass through the batch keeps."""
    sizes = [0]
    weights = {weight.data_ptr() for weight in work.params.values()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.data_ptr() not in weights:
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work.batch_fn(_leaves(work.params), work.x)
    return max(sizes)


def _too_large(vectors: int, work: Work) -> str:
    size = vectors * largest_activation(work)
    return f"would need {size / 2**30:.1f} GiB for one activation" if size > LARGEST_TENSOR else ""


def _all_rows(work: Work) -> str:
    return _too_large(work.rows, work)


def _all_columns(work: Work) -> str:
    many = f"{work.columns} columns, a forward pass each" if work.columns > MANY_COLUMNS else ""
    return many or _too_large(work.columns, work)


BASELINE = "vmap(jacrev)"
OURS = "jacfn.jac_quasilinear"

METHODS = (
    Method(OURS, _eager(_quasilinear), ours=True),
    Method("jacfn.jac_rev", _eager(_ours(jacfn.jac_rev)), ours=True),
    Method("jacfn.jac_fwd", _eager(_ours(jacfn.jac_fwd)), skip=_all_columns, ours=True),
    Method(BASELINE, _eager(_vmap_jacrev)),
    Method("vmap(jacfwd)", _vmap_jacfwd, skip=_all_columns),
    Method("jacrev of the batch", _jacrev, skip=_all_rows),
    Method("jacfwd of the batch", _jacfwd, skip=_all_columns),
    Method("functional.jacobian, vectorize", _functional_vectorized, skip=_all_rows),
    Method("functional.jacobian", _functional, first_rows=_functional),
    Method("naive loop", _loop, first_rows=_loop),
    Method("naive loop, indexed", _loop_by_index, first_rows=_loop_by_index),
    Method("naive loop by sample", _loop_by_sample, first_rows=_loop_by_sample),
)

#: The two that are compared when both are compiled.
OURS_COMPILED = f"{OURS}, compiled"
BASELINE_COMPILED = f"{BASELINE}, compiled"

COMPILED = (
    Method(OURS_COMPILED, _compiled(_quasilinear), ours=True, compiled=True),
    Method(BASELINE_COMPILED, _compiled(_vmap_jacrev), compiled=True),
)


def named(*names: str) -> tuple[Method, ...]:
    """Those of METHODS that have these names."""
    return tuple(method for name in names for method in METHODS if method.name == name)
