"""From a function of pytrees to a function of flat leaves (L0).

``argnums``, ``has_aux``, ``in_dims``, keyword arguments and pytrees are handled here and nowhere else: the
transforms see :class:`Bound`, whose ``call(leaves, data)`` takes two flat lists of tensors and returns a flat list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._exact import exact_kernels
from jacfn._torch import inside_transform
from jacfn._tree import LeafType

Argnums = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the structure of fn's outputs was in the latest call (Python data: it cannot travel through vmap)."""

    spec: optree.PyTreeSpec
    aux_spec: optree.PyTreeSpec | None
    aux_constants: tuple[Any, ...]  # the aux leaves that are no tensors, None where a tensor stands

    def aux(self, tensors: Sequence[Tensor]) -> Any:
        """The aux pytree with ``tensors`` put back in."""
        assert self.aux_spec is not None
        rest = iter(tensors)
        return _tree.unflatten(self.aux_spec, [next(rest) if leaf is _TENSOR else leaf for leaf in self.aux_constants])


_TENSOR = object()  # stands for a tensor among the aux constants


@dataclasses.dataclass(frozen=True)
class Bound:
    """``fn`` at one point: flat tensors apart, everything else closed over.

    ``leaves`` are differentiated, ``data`` are the other tensors that carry samples; both already lead with the
    sample axis where ``*_mapped`` says so. ``samples`` is None without ``in_dims``.
    """

    fn: Callable[..., Any]
    leaves: list[Tensor]
    leaves_mapped: tuple[bool, ...]
    data: list[Tensor]
    names: tuple[str, ...]
    spec: optree.PyTreeSpec  # of the differentiated argument, or of the tuple of them
    samples: int | None
    has_aux: bool
    rebuild: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Any, ...]]
    kwargs: dict[str, Any]
    signature: Hashable | None  # equal for calls that differ in values alone; None if it cannot be told
    seen: dict[str, Outputs]

    def call(self, leaves: Sequence[Tensor], data: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """``fn`` as a function of flat lists: its output leaves and the tensors of its aux."""
        with exact_kernels():
            result = self.fn(*self.rebuild(leaves, data), **self.kwargs)
        return self.note(result)

    def note(self, result: Any) -> tuple[list[Tensor], list[Tensor]]:
        """What ``fn`` has returned, checked, as flat lists; its structure is kept."""
        value, aux = _split_aux(result) if self.has_aux else (result, ())
        outputs, spec = _tree.flatten(value)
        _check_outputs(outputs, spec)
        aux_leaves, aux_spec = _tree.flatten(aux)
        constants = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in aux_leaves)
        self.seen["outputs"] = Outputs(spec, aux_spec, constants)
        return outputs, [leaf for leaf in aux_leaves if isinstance(leaf, Tensor)]

    @property
    def outputs(self) -> Outputs:
        """The structure of the outputs, known after the first call."""
        return self.seen["outputs"]

    def replace(self, leaves: list[Tensor], data: list[Tensor], samples: int | None) -> Bound:
        """The same function at another point of the same structure."""
        return dataclasses.replace(self, leaves=leaves, data=data, samples=samples)

    def block(self, start: int, length: int) -> Bound:
        """The same function at ``length`` of the samples only, from ``start`` on."""
        if self.samples is None or length == self.samples:
            return self

        def cut(tensor: Tensor) -> Tensor:
            return tensor.narrow(0, start, length)

        leaves = [cut(leaf) if mapped else leaf for leaf, mapped in zip(self.leaves, self.leaves_mapped, strict=True)]
        return self.replace(leaves, [cut(tensor) for tensor in self.data], length)

    def vmapped(self, function: Callable[..., Any], randomness: str, *in_dims: Any) -> Callable[..., Any]:
        """``function(leaves, data, ...)``, written for one sample, over all of them.

        ``in_dims`` are those of further arguments, or of all. Without samples the function stays as it is.
        """
        if self.samples is None:
            return function
        dims = in_dims or (self.leaf_dims, [0] * len(self.data))
        return torch.func.vmap(function, in_dims=dims, randomness=randomness)

    @property
    def leaf_types(self) -> list[LeafType]:
        """What each differentiated leaf looks like, for one sample."""
        return [
            LeafType(tuple(leaf.shape[mapped:]), leaf.dtype, leaf.device)
            for leaf, mapped in zip(self.leaves, self.leaves_mapped, strict=True)
        ]

    def only_sample(self) -> Bound:
        """The same function without its sample axis, which must have length 1."""
        if self.samples is None:
            return self
        leaves = [leaf[0] if mapped else leaf for leaf, mapped in zip(self.leaves, self.leaves_mapped, strict=True)]
        return dataclasses.replace(
            self,
            leaves=leaves,
            data=[x[0] for x in self.data],
            samples=None,
            leaves_mapped=(False,) * len(leaves),
        )

    @property
    def leaf_dims(self) -> list[int | None]:
        """The sample axis of each differentiated leaf, as vmap takes it."""
        return [0 if mapped else None for mapped in self.leaves_mapped]

    def expanded(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Every leaf as a new tensor on the same memory, with a sample axis when there are samples.

        A shared leaf has it in stride zero.
        """
        if self.samples is None:
            return [leaf.view_as(leaf) for leaf in leaves]
        return [
            leaf if mapped else leaf.expand(self.samples, *leaf.shape)
            for leaf, mapped in zip(leaves, self.leaves_mapped, strict=True)
        ]

    def clone(self) -> Bound:
        """The same point in memory of its own, without its history."""

        def copy(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)

        return self.replace([copy(leaf) for leaf in self.leaves], [copy(x) for x in self.data], self.samples)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that enters by the arguments."""
        everything = [*self.leaves, *_tree.flatten((self.rebuild(self.leaves, self.data), self.kwargs))[0]]
        return [tensor for tensor in everything if isinstance(tensor, Tensor)]

    def detach(self) -> Bound:
        """The same point without its history."""
        return self.replace(
            [leaf.detach() for leaf in self.leaves], [tensor.detach() for tensor in self.data], self.samples
        )

    def tracked(self) -> bool:
        """Whether results have to carry derivatives of their own: inside a transform, or by requires_grad."""
        if inside_transform():
            return True
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)


def bind(
    fn: Callable[..., Any],
    argnums: Argnums,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_aux: bool = False,
    in_dims: Any = None,
) -> Bound:
    """Check the arguments and take ``fn`` apart; see :class:`Bound`."""
    if not callable(fn):
        raise JacfnTypeError(f"fn must be callable, got {type(fn).__name__}: pass the function itself")
    selected = _normalise_argnums(argnums, len(args))
    specs, flat, owner = _flatten_args(args)
    names = _leaf_names(args, selected)
    dims = _normalise_in_dims(in_dims, args, flat, owner)
    flat = [leaf if dim is None else leaf.movedim(dim, 0) for leaf, dim in zip(flat, dims, strict=True)]
    samples = _count_samples(flat, dims, owner)

    places = [i for arg in selected for i in range(len(flat)) if owner[i] == arg]
    mapped = [i for i in range(len(flat)) if dims[i] is not None and i not in places]
    leaves = [_check_leaf(flat[i], name) for i, name in zip(places, names, strict=True)]
    rest = [None if i in places or i in mapped else leaf for i, leaf in enumerate(flat)]

    touched = {owner[i] for i in (*places, *mapped)}  # the others are handed through as they are

    def rebuild(new_leaves: Sequence[Tensor], new_data: Sequence[Tensor]) -> tuple[Any, ...]:
        full = list(rest)
        for place, leaf in zip([*places, *mapped], [*new_leaves, *new_data], strict=True):
            full[place] = leaf
        parts = iter(full)
        rebuilt: list[Any] = []
        for arg, spec in zip(args, specs, strict=True):
            leaves = [next(parts) for _ in range(spec.num_leaves)]
            rebuilt.append(_tree.unflatten(spec, leaves) if len(rebuilt) in touched else arg)
        return tuple(rebuilt)

    subtree = tuple(args[i] for i in selected) if isinstance(argnums, tuple) else args[selected[0]]
    return Bound(
        fn=fn,
        leaves=leaves,
        leaves_mapped=tuple(dims[i] is not None for i in places),
        data=[flat[i] for i in mapped],
        names=tuple(names),
        spec=_tree.flatten(subtree)[1],
        samples=samples,
        has_aux=has_aux,
        rebuild=rebuild,
        kwargs=kwargs,
        signature=_signature(specs, flat, dims, places, kwargs),
        seen={},
    )


def _normalise_argnums(argnums: Argnums, count: int) -> tuple[int, ...]:
    wanted = argnums if isinstance(argnums, tuple) else (argnums,)
    if not wanted or not all(isinstance(i, int) and not isinstance(i, bool) for i in wanted):
        raise JacfnTypeError(f"argnums must be an int or a non-empty tuple of ints, got {argnums!r}")
    for i in wanted:
        if not -count <= i < count:
            raise JacfnValueError(
                f"argnums={argnums!r} is out of range: fn was called with {count} positional argument(s); "
                "pass what is to be differentiated by position"
            )
    selected = tuple(i % count for i in wanted)
    if len(set(selected)) < len(selected):
        raise JacfnValueError(f"argnums must name each argument once, got {argnums!r}")
    return selected


def _flatten_args(args: tuple[Any, ...]) -> tuple[list[optree.PyTreeSpec], list[Any], list[int]]:
    """Each argument's structure, all leaves in one list, and for each leaf the argument that it belongs to."""
    specs, flat, owner = [], [], []
    for i, arg in enumerate(args):
        leaves, spec = _tree.flatten(arg)
        specs.append(spec)
        flat += leaves
        owner += [i] * len(leaves)
    return specs, flat, owner


def _leaf_names(args: tuple[Any, ...], selected: tuple[int, ...]) -> list[str]:
    names = []
    for i in selected:
        names += [f"argument {i}{path}" for path in _tree.leaf_names(_tree.flatten(args[i])[1])]
    return names


def _normalise_in_dims(in_dims: Any, args: tuple[Any, ...], flat: list[Any], owner: list[int]) -> list[int | None]:
    """One non-negative sample axis, or None, for every leaf of the arguments."""
    if in_dims is None:
        return [None] * len(flat)
    if isinstance(in_dims, int):
        in_dims = (in_dims,) * len(args)
    if isinstance(in_dims, list):
        in_dims = tuple(in_dims)
    if not isinstance(in_dims, tuple) or len(in_dims) != len(args):
        raise JacfnValueError(
            f"in_dims must be None, an int, or a tuple with one entry for each of the {len(args)} positional "
            f"argument(s), got {in_dims!r}"
        )
    dims = _tree.broadcast_prefix(in_dims, args, "in_dims")
    result = [_normalise_dim(dim, leaf, arg) for dim, leaf, arg in zip(dims, flat, owner, strict=True)]
    if all(dim is None for dim in result):
        raise JacfnValueError(
            f"in_dims={in_dims!r} maps no argument over samples: give the axis of at least one, or in_dims=None"
        )
    return result


def _normalise_dim(dim: Any, leaf: Any, arg: int) -> int | None:
    if dim is None:
        return None
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise JacfnTypeError(f"in_dims must hold ints or None, got {dim!r} for argument {arg}")
    if not isinstance(leaf, Tensor):
        raise JacfnTypeError(
            f"in_dims gives axis {dim} of argument {arg}, but that holds a {type(leaf).__name__}, not a tensor: "
            "give None for it"
        )
    if not -leaf.ndim <= dim < leaf.ndim:
        raise JacfnValueError(f"in_dims gives axis {dim} of argument {arg}, which has the shape {tuple(leaf.shape)}")
    return dim % leaf.ndim


def _count_samples(flat: list[Any], dims: list[int | None], owner: list[int]) -> int | None:
    """How many samples the mapped leaves carry: all the same number."""
    mapped = [(leaf.shape[0], arg) for leaf, dim, arg in zip(flat, dims, owner, strict=True) if dim is not None]
    counts = {size for size, _ in mapped}
    if len(counts) > 1:
        raise JacfnValueError(
            "in_dims: all mapped arguments must have the same number of samples, got "
            + ", ".join(f"{size} in argument {arg}" for size, arg in dict.fromkeys(mapped))
        )
    return counts.pop() if counts else None


def _check_leaf(leaf: Any, name: str) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise JacfnTypeError(
            f"{name}: only tensors can be differentiated, got {type(leaf).__name__}; choose other argnums or make it "
            "a tensor"
        )
    if leaf.is_complex():
        raise JacfnTypeError(
            f"{name}: complex inputs ({leaf.dtype}) are not supported, since a complex Jacobian is ambiguous; pass "
            "torch.view_as_real(z) and rebuild z inside fn by torch.view_as_complex"
        )
    if not leaf.is_floating_point():
        raise JacfnTypeError(
            f"{name}: only floating-point tensors can be differentiated, got {leaf.dtype}; choose other argnums or "
            "convert it with .float()"
        )
    return leaf


def _split_aux(result: Any) -> tuple[Any, Any]:
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise JacfnTypeError(
        f"has_aux=True: fn must return a tuple (output, aux), got {type(result).__name__}"
        + (f" of length {len(result)}" if isinstance(result, tuple) else "")
    )


def _check_outputs(outputs: list[Any], spec: optree.PyTreeSpec) -> None:
    if not outputs:
        raise JacfnTypeError("fn returned no tensor: return what is to be differentiated")
    for leaf, path in zip(outputs, _tree.leaf_names(spec), strict=True):
        if not isinstance(leaf, Tensor):
            raise JacfnTypeError(
                f"fn's output{path} must be a tensor, got {type(leaf).__name__}; "
                "return other things as aux (has_aux=True)"
            )
        if leaf.is_complex():
            raise JacfnTypeError(
                f"fn's output{path} is complex ({leaf.dtype}), which is not supported; return torch.view_as_real of it"
            )
        if not leaf.is_floating_point():
            raise JacfnTypeError(
                f"fn's output{path} must be floating-point, got {leaf.dtype}; return it as aux (has_aux=True)"
            )


def _signature(
    specs: list[optree.PyTreeSpec],
    flat: list[Any],
    dims: list[int | None],
    places: list[int],
    kwargs: dict[str, Any],
) -> Hashable | None:
    """Equal for two calls that differ only in the values of tensors (and in the number of samples)."""
    extra, extra_spec = _tree.flatten(kwargs)

    def describe(leaf: Any, dim: int | None) -> Hashable:
        if isinstance(leaf, Tensor):
            return (leaf.shape if dim is None else leaf.shape[1:], leaf.dtype, leaf.device)
        return (type(leaf), leaf)

    described = [describe(leaf, dim) for leaf, dim in zip([*flat, *extra], [*dims, *[None] * len(extra)], strict=True)]
    signature = (tuple(specs), extra_spec, tuple(described), tuple(dims), tuple(places))
    try:
        hash(signature)
    except TypeError:
        return None
    return signature


def check_positive(name: str, value: int | None) -> None:
    """``value`` must be a positive int or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise JacfnValueError(f"{name} must be a positive int or None, got {value!r}")


def check_randomness(randomness: str) -> None:
    """``randomness`` as in ``torch.func.vmap``."""
    if randomness not in ("error", "same", "different"):
        raise JacfnValueError(f"randomness must be 'error', 'same' or 'different', got {randomness!r}")
