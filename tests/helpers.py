"""What the tests share: trees, oracles that share no code with jacfn, small networks, strategies.

The main oracle chooses the Jacobian first and builds the function from it: see :func:`chosen_jacobian`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

# --- trees ----------------------------------------------------------------------------------------


class Square(torch.autograd.Function):
    """A custom Function, whose inside no function mode sees."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Pair(NamedTuple):
    """A namedtuple."""

    first: Any
    second: Any


@dataclasses.dataclass
class Box:
    """A dataclass that nobody registered as a pytree."""

    left: Any
    right: Any


def map_tree(change: Callable[[Any], Any], tree: Any) -> Any:
    """``change`` applied to every leaf; dictionaries in insertion order."""
    if isinstance(tree, dict):
        return type(tree)((key, map_tree(change, part)) for key, part in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(change, part) for part in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tree(change, part) for part in tree)
    if dataclasses.is_dataclass(tree):
        parts = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **map_tree(change, parts))
    return tree if tree is None else change(tree)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves in the order in which :func:`map_tree` meets them."""
    found: list[Any] = []
    map_tree(found.append, tree)
    return found


def rebuild(tree: Any, leaves: Sequence[Any]) -> Any:
    """``tree`` with other leaves."""
    rest = iter(leaves)
    return map_tree(lambda _: next(rest), tree)


def ravel(tree: Any) -> Tensor:
    """All leaves of ``tree`` as one vector."""
    return torch.cat([leaf.reshape(-1) for leaf in leaves_of(tree)])


def unravel(tree: Any, vector: Tensor) -> Any:
    """The opposite of :func:`ravel`."""
    leaves = leaves_of(tree)
    parts = vector.split([leaf.numel() for leaf in leaves])
    return rebuild(tree, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


def assert_same(actual: Any, expected: Any, **tolerance: Any) -> None:
    """The same structure (types, keys, their order), shapes, dtypes and devices, and values within the tolerance."""
    where = tolerance.pop("where", "result")
    if not isinstance(expected, Tensor):
        assert type(actual) is type(expected), f"{where}: {type(actual)} for {type(expected)}"
    if isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected, equal_nan=True, msg=lambda m: f"{where}: {m}", **tolerance)
    elif dataclasses.is_dataclass(expected):
        assert_same(vars(actual), vars(expected), where=where, **tolerance)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], where=f"{where}[{key!r}]", **tolerance)
    elif isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected), where
        for i, (left, right) in enumerate(zip(actual, expected, strict=True)):
            assert_same(left, right, where=f"{where}[{i}]", **tolerance)
    else:
        assert actual == expected, where


# --- oracles --------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """A function whose Jacobian is known without differentiating."""

    fn: Callable[..., Any]  # of one tree
    matrix: Callable[[Any], Tensor]  # (outputs, inputs) at a tree
    outputs: Any  # a tree like that which fn returns


def chosen_jacobian(inputs: Any, outputs: Any, seed: int = 0) -> Chosen:
    """``y = tanh(A sin(x))``, so ``J = diag(1 - y²) A diag(cos x)``, over trees like ``inputs`` and ``outputs``."""
    columns, rows = ravel(inputs).numel(), ravel(outputs).numel()
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    def fn(tree: Any) -> Any:
        return unravel(outputs, torch.tanh(A @ ravel(tree).sin()))

    def matrix(tree: Any) -> Tensor:
        x = ravel(tree)
        y = torch.tanh(A @ x.sin())
        return (1 - y**2)[:, None] * A * x.cos()

    return Chosen(fn, matrix, outputs)


def as_tree(matrix: Tensor, outputs: Any, inputs: Any) -> Any:
    """A matrix cut into a Jacobian pytree: output structure outside, input structure inside."""

    def row_block(block: Tensor, out: Tensor) -> Any:
        parts = block.split([leaf.numel() for leaf in leaves_of(inputs)], dim=1)
        shapes = [(*out.shape, *leaf.shape) for leaf in leaves_of(inputs)]
        return rebuild(inputs, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

    leaves = leaves_of(outputs)
    blocks = matrix.split([leaf.numel() for leaf in leaves])
    return rebuild(outputs, [row_block(block, leaf) for block, leaf in zip(blocks, leaves, strict=True)])


def reference(fn: Callable[..., Any], *args: Any, argnums: int | tuple[int, ...] = 0) -> Any:
    """The Jacobian pytree by ``torch.autograd.functional.jacobian``: one plain backward pass a row."""
    chosen = tuple(args[i] for i in argnums) if isinstance(argnums, tuple) else args[argnums]

    def flat(vector: Tensor) -> Tensor:
        new = unravel(chosen, vector)
        full = list(args)
        for i, arg in zip(argnums, new, strict=True) if isinstance(argnums, tuple) else [(argnums, new)]:
            full[i] = arg
        return ravel(fn(*full))

    outputs = fn(*args)
    if ravel(outputs).numel() == 0:  # autograd.functional stacks the rows, and fails without one
        return as_tree(torch.zeros(0, ravel(chosen).numel()), outputs, chosen)
    return as_tree(torch.autograd.functional.jacobian(flat, ravel(chosen)), outputs, chosen)


def per_sample(fn: Callable[..., Any], *args: Any, argnums: int | tuple[int, ...], mapped: Sequence[bool]) -> Any:
    """:func:`reference` sample by sample, stacked; mapped arguments lead with the samples."""
    count = next(len(leaves_of(arg)[0]) for arg, yes in zip(args, mapped, strict=True) if yes)
    jacobians = []
    for n in range(count):
        sample = [map_tree(lambda leaf, n=n: leaf[n], a) if yes else a for a, yes in zip(args, mapped, strict=True)]
        jacobians.append(reference(fn, *sample, argnums=argnums))
    stacked = [torch.stack(leaves) for leaves in zip(*map(leaves_of, jacobians), strict=True)]
    return rebuild(jacobians[0], stacked)


def finite_differences(fn: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """``(*out, *in)`` by central differences: what no derivative formula can spoil."""
    columns = []
    for direction in torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape):
        columns.append((fn(x + step * direction) - fn(x - step * direction)) / (2 * step))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


# --- networks -------------------------------------------------------------------------------------


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int = 3, classes: int = 4) -> nn.Sequential:
    """For images ``(1, 8, 8)``."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(channels * 4, classes),
    )


class Shared(nn.Module):
    """One layer used twice, and a weight that two names lead to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.again = nn.Linear(width, width)
        self.encoder = nn.Linear(width, width, bias=False)
        self.decoder = nn.Linear(width, width, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.tanh(self.again(x)))
        return self.decoder(torch.sin(self.encoder(x)))


# --- strategies -----------------------------------------------------------------------------------


def shapes(*, most: int = 3, empty: bool = True) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of at most three axes, scalars and (``empty``) tensors without elements among them."""
    return st.lists(st.integers(0 if empty else 1, most), max_size=3).map(tuple)


def tensors(**options: Any) -> st.SearchStrategy[Tensor]:
    """Float64 tensors whose values stay where tanh and sin are well away from flat."""
    return st.builds(_tensor, shapes(**options), st.integers(0, 99))


def _tensor(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5


def trees(**options: Any) -> st.SearchStrategy[Any]:
    """Nested dicts (keys in any order), lists, tuples, namedtuples and dataclasses of :func:`tensors`."""

    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        keys = st.permutations(["b", "a", "c"])
        dicts = st.builds(lambda order, parts: dict(zip(order, parts, strict=False)), keys, _some(inner))
        return st.one_of(
            _some(inner),
            _some(inner).map(tuple),
            dicts,
            st.builds(Pair, inner, inner),
            st.builds(Box, inner, inner),
        )

    return st.recursive(tensors(**options), extend, max_leaves=4)


def _some(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(inner, min_size=1, max_size=3)


def selectors(size: int) -> st.SearchStrategy[Any]:
    """Everything that selects places out of ``size``: None, ints, slices, tensors, ranges, with repeated places."""
    if size == 0:
        return st.sampled_from([None, slice(None), torch.tensor([], dtype=torch.long)])
    places = st.integers(-size, size - 1)
    return st.one_of(
        st.none(),
        places,
        st.slices(size),
        st.lists(places, max_size=size + 2).map(lambda chosen: torch.tensor(chosen, dtype=torch.long)),
        st.integers(0, size).map(range),
    )


def places_of(selector: Any, size: int) -> list[int]:
    """The places that a selector means, by Python's own indexing."""
    everything = list(range(size))
    if selector is None:
        return everything
    if isinstance(selector, slice):
        return everything[selector]
    if isinstance(selector, int):
        return [everything[selector]]
    return [everything[int(i)] for i in selector]


def chunk_sizes() -> st.SearchStrategy[int | None]:
    """Sizes that divide, do not divide, and exceed the work."""
    return st.none() | st.integers(1, 7) | st.just(1000)
