"""The Jacobian as an object (L3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn import _tree
from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._memory import Budget, empty, parse_budget
from jacfn._tree import LeafType
from jacfn.operator import arguments, changes
from jacfn.operator.block import Block, in_order, row_bytes
from jacfn.operator.changes import settled
from jacfn.operator.columns import ColumnSums, root
from jacfn.operator.pairs import add_normal, inner_products
from jacfn.operator.source import Source
from jacfn.operator.sums import mirror
from jacfn.operator.vectors import Vectors
from jacfn.operator.weighted import gram_by_columns
from jacfn.operator.with_scipy import as_scipy, largest_singular_values


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class JacobianOperator:
    """The Jacobian ``J`` of a function at a point, ``(M, P)``, as an object: made by :func:`jacfn.jacobian_operator`.

    Rows are the elements of the output (samples outermost), columns those of the differentiated arguments, leaf by
    leaf. Vectors are pytrees with the structure of the arguments (outputs) or flat tensors; stacks of several lead on
    axis 0. Nothing forms ``J`` but :meth:`materialize`, :meth:`blocks`, :meth:`leaves` and :meth:`tree`.

    Attributes:
        value: ``fn`` at the point, from the pass that made the operator.
        method: how rows are made.
        names: the leaves' paths, such as ``"0.weight"``.

    Example:
        >>> import torch
        >>> from jacfn import jacobian_operator
        >>> J = jacobian_operator(lambda x: torch.stack([x.sum(), x.prod()]), torch.tensor([2.0, 3.0]))
        >>> J.shape, J @ torch.tensor([1.0, 0.0]), J.T @ torch.tensor([0.0, 1.0])
        ((2, 2), tensor([1., 3.]), tensor([3., 2.]))
        >>> J.gram()
        tensor([[ 2.,  5.],
                [ 5., 13.]])
    """

    source: Source
    rows: Vectors
    columns: Vectors
    names: tuple[str, ...]
    method: str
    value: Any

    # --- what it is

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, P)``."""
        return self.source.count, self.columns.size

    @property
    def dtype(self) -> torch.dtype:
        """Of every element."""
        return self.source.kinds[0].dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.source.kinds[0].device

    @property
    def T(self) -> TransposedOperator:  # noqa: N802 (as tensors have it)
        """``Jᵀ``."""
        return TransposedOperator(self)

    def __repr__(self) -> str:
        """Shape, method, leaves, and what is held."""
        m, p = self.shape
        leaves = f"{len(self.names)} leaves" if len(self.names) != 1 else "1 leaf"
        kind = str(self.dtype).removeprefix("torch.")
        held = f"holds {self.source.held / 2**20:.4g} MiB"
        return f"JacobianOperator({m} x {p}, method={self.method!r}, {leaves}, {kind}, {self.device}, {held})"

    # --- products

    def mv(self, v: Any) -> Any:
        """``J v``, with the structure of the output; flat where ``v`` is flat. A stack ``(S, ...)`` gives a stack."""
        flat, form = self.columns.parse(v, "v")
        return self.rows.build(self.source.mv(self.columns.stacks(flat)).T, form)

    def rmv(self, u: Any) -> Any:
        """``Jᵀ u``, with the structure of the arguments; flat where ``u`` is flat. A stack gives a stack."""
        flat, form = self.rows.parse(u, "u")
        return self.columns.build(self.source.rmv(flat.T), form)

    def __matmul__(self, v: Tensor) -> Tensor:
        """``J v`` for flat vectors ``(P,)`` and matrices ``(P, S)``."""
        arguments.check_matrix(v, self.shape[1], self.dtype, self.device, "J @ v")
        stacks = self.columns.stacks((v if v.ndim == 2 else v.unsqueeze(1)).T)
        product = self.source.mv(stacks)
        return product if v.ndim == 2 else product.squeeze(1)

    def ggn_mv(self, v: Any, weights: Tensor) -> Any:
        """``Jᵀ W J v`` with weights ``(M,)`` or ``(N, K, K)``: a Gauss-Newton product, in the form of ``v``."""
        weights = arguments.weights(weights, self)
        flat, form = self.columns.parse(v, "v")
        product = changes.apply_weights(weights, self.source.mv(self.columns.stacks(flat)))
        return self.columns.build(self.source.rmv(product), form)

    # --- contractions

    def gram(self, other: JacobianOperator | None = None) -> Tensor:
        """``J Jᵀ``, ``(M, M)``, or ``J otherᵀ``, ``(M, M')``, for an operator with the same columns."""
        if other is not None:
            arguments.check_columns(self, other, "gram")
        elif (found := gram_by_columns(self.source)) is not None:
            return found
        return inner_products(self.source, None if other is None else other.source, "full", 0, None)

    def normal(self, weights: Tensor | None = None) -> Tensor:
        """``JᵀJ``, or ``JᵀWJ`` with weights ``(M,)`` or ``(N, K, K)``: ``(P, P)``, summed up block by block."""
        out: Tensor | None = None
        recorded: list[Tensor] = []
        p = self.shape[1]
        for block, weighted in self._with_weights(weights):
            if block.in_place and (weighted is None or weighted.in_place):
                out = torch.zeros(p, p, dtype=self.dtype, device=self.device) if out is None else out
                add_normal(out, block, weighted, self.source.room)
            else:
                recorded.append(block.dense().T @ (weighted or block).dense())
        if out is not None and weights is None:
            mirror(out.view(p, 1, p, 1), "full")
        return sum(recorded, out) if out is not None else sum(recorded[1:], recorded[0])

    def ggn_diagonal(self, weights: Tensor) -> Tensor:
        """The diagonal of ``JᵀWJ``, ``(P,)``, with weights ``(M,)`` or ``(N, K, K)``."""
        return self._column_sums(self._with_weights(weights))

    def row_norms(self) -> Tensor:
        """The Euclidean norm of every row, ``(M,)``.

        Where the positions of a layer cancel, it is exact to the root of the rounding of its terms' squares.
        """
        if self.dtype.itemsize == 2:
            return self.astype(torch.float32).row_norms().to(self.dtype)  # squares overflow earlier than their root
        places, parts = [], []
        for block in self.source.blocks():
            squares = [leaf.row_squares(self.source.room) for leaf in block.leaves]
            parts.append(sum(squares[1:], squares[0]).flatten())
            places.append(block.rows)
        return root(in_order(places, parts))

    def column_norms(self) -> Tensor:
        """The Euclidean norm of every column, ``(P,)``."""
        if self.dtype.itemsize == 2:
            return self.astype(torch.float32).column_norms().to(self.dtype)
        return root(self._column_sums((block, None) for block in self.source.blocks()))

    def singular_values(self, k: int) -> Tensor:
        """The ``k`` largest singular values, in descending order.

        From the dense matrix where that is small; from the smaller of ``J Jᵀ`` and ``JᵀJ`` where that is (relative to
        the largest, values below the root of the rounding unit are lost); else by Lanczos steps: not all, by SciPy.
        """
        m, p = self.shape
        arguments.check_count(k, min(m, p))
        if self.dtype.itemsize == 2:  # no decompositions
            return self.astype(torch.float32).singular_values(k).to(self.dtype)
        if m * p * self.dtype.itemsize <= self.source.room:
            values: Tensor = torch.linalg.svdvals(self.materialize())
            return values[:k]
        if 3 * min(m, p) ** 2 * self.dtype.itemsize > self.source.room:  # the matrix, and what decomposing it takes
            return largest_singular_values(self, k)
        squares: Tensor = torch.linalg.eigvalsh(self.gram() if m <= p else self.normal())
        return root(squares.flip(0)[:k])

    # --- dense

    def materialize(self, out: Tensor | None = None) -> Tensor:
        """``J`` as a tensor ``(M, P)``, each element written once; into ``out``, if given, which may be any view."""
        if out is not None:
            arguments.check_out(out, self)
        parts, places = [], []
        for block in self.source.blocks():
            if not block.in_place:
                parts.append(block.dense())
                places.append(block.rows)
                continue
            out = empty(LeafType(self.shape, self.dtype, self.device)) if out is None else out
            if isinstance(block.rows, slice):
                block.write(out[block.rows], self.source.room)
                continue
            for piece in block.pieces(self.source.room // (4 * row_bytes(self.source.kinds))):
                out[piece.rows] = piece.dense()
        if not parts:
            assert out is not None
            return out
        if out is not None:
            raise JacfnError("out: this Jacobian carries derivatives, which a buffer cannot; call detach() first")
        return in_order(places, parts)

    def tree(self) -> Any:
        """The pytree that the transforms return: structure of the output outside, that of the arguments inside."""
        if self.rows.spec is None or self.columns.spec is None:
            raise JacfnError("tree: a restricted operator has no structure; use materialize() or leaves()")
        lead = () if self.rows.samples is None else (self.rows.samples,)
        grid = (1 if self.rows.samples is None else self.rows.samples, self.rows.width)
        columns = [leaf.reshape(*grid, *leaf.shape[1:]) for _, leaf in self.leaves()]
        sizes = [kind.size for kind in self.rows.kinds]
        split = [torch.split(leaf, sizes, 1) for leaf in columns]
        outer = []
        for j, out in enumerate(self.rows.kinds):
            parts = [
                leaf[j].reshape(*lead, *out.shape, *kind.shape)
                for leaf, kind in zip(split, self.columns.kinds, strict=True)
            ]
            outer.append(_tree.unflatten(self.columns.spec, parts))
        return _tree.unflatten(self.rows.spec, outer)

    def leaves(self) -> Iterator[tuple[str, Tensor]]:
        """``(path, (M, *leaf))``, one leaf after the other; an operator that holds nothing makes a pass for each."""
        for number, (name, kind) in enumerate(zip(self.names, self.columns.kinds, strict=True)):
            one = self._restricted([number])
            yield name, one.materialize().reshape(self.shape[0], *kind.shape)

    def blocks(self, chunk_size: int | None = None, memory: Budget = None) -> Iterator[tuple[Any, Tensor]]:
        """``(rows, dense block)`` one after the other: at most ``chunk_size`` rows each, or what fits into ``memory``.

        ``rows`` is a slice (a LongTensor for an operator restricted to chosen rows).
        """
        most = arguments.rows_at_once(self, chunk_size, parse_budget(memory))
        for block in self.source.blocks():
            for piece in block.pieces(most):
                yield piece.rows, piece.materialized(self.source.room)

    def as_scipy(self) -> Any:
        """A :class:`scipy.sparse.linalg.LinearOperator` (needs SciPy)."""
        return as_scipy(self)

    # --- operators made from this one

    def weighted(self, weights: Tensor) -> JacobianOperator:
        """``W J``: rows scaled by ``(M,)`` (or ``(N, K)``), or mixed within each sample by blocks ``(N, K, K)``."""
        return self._with(settled(changes.Weighted(self.source, arguments.own(arguments.weights(weights, self)))))

    def column_weighted(self, weights: Any) -> JacobianOperator:
        """``J diag(d)`` for ``d`` with the structure of the arguments, or flat ``(P,)``."""
        flat, form = self.columns.parse(weights, "weights")
        if form.stacked:
            raise JacfnValueError("weights must be one vector, not a stack of them")
        pieces = [stack[0] for stack in self.columns.stacks(arguments.own(flat))]
        return self._with(changes.column_weighted(self.source, pieces))

    def restrict(self, *, rows: Any = None, leaves: Any = None, mask: Any = None) -> JacobianOperator:
        """The operator on some rows, on some leaves, or on the elements where a mask is True.

        Args:
            rows: places among the ``M`` rows: an int, a slice or a 1-D LongTensor, in any order.
            leaves: names out of :attr:`names`, or a function of a name that says whether to keep the leaf.
            mask: booleans with the structure of the arguments (tensors of the leaves' shapes), or flat ``(P,)``. The
                columns are flat then.
        """
        result = self
        if rows is not None:
            places = arguments.places(rows, self)
            chosen = Vectors((LeafType((len(places),), self.dtype, self.device),), None)
            source = settled(changes.Restricted(result.source, places))
            result = dataclasses.replace(result, source=source, rows=chosen)
        if leaves is not None:
            result = result._restricted(arguments.leaves(leaves, result.names))
        if mask is not None:
            masks = [arguments.own(one) for one in arguments.masks(mask, result.columns)]
            source = changes.masked(result.source, masks)
            result = dataclasses.replace(result, source=source, columns=Vectors(source.kinds, None))
        return result

    def astype(self, dtype: torch.dtype) -> JacobianOperator:
        """In another floating-point dtype."""
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise JacfnTypeError(f"dtype must be a floating-point dtype, got {dtype!r}")
        return self._converted(lambda x: x.to(dtype) if x.is_floating_point() else x)

    def to(self, device: torch.device | str) -> JacobianOperator:
        """On another device."""
        return self._converted(lambda x: x.to(device))

    def detach(self) -> JacobianOperator:
        """Without derivatives; products with vectors that carry some keep those.

        Of an operator that holds nothing, products then go by its rows: jvp and vjp cannot tell the two apart.
        """
        result = self._converted(Tensor.detach)
        result.source.matrix_free = False
        return result

    def __add__(self, other: JacobianOperator) -> JacobianOperator:
        """``J + K`` for operators with the same rows and columns."""
        if not isinstance(other, JacobianOperator):
            return NotImplemented
        arguments.check_columns(self, other, "+")
        if self.shape != other.shape:
            raise JacfnValueError(f"J + K: rows differ, {self.shape[0]} and {other.shape[0]}")
        return self._with(changes.Sum(self.source, other.source))

    def __sub__(self, other: JacobianOperator) -> JacobianOperator:
        """``J - K``."""
        return self + (-other) if isinstance(other, JacobianOperator) else NotImplemented

    def __neg__(self) -> JacobianOperator:
        """``-J``."""
        return self * -1.0

    def __mul__(self, factor: float | Tensor) -> JacobianOperator:
        """``c J``."""
        arguments.check_factor(factor)
        own = arguments.own(factor) if isinstance(factor, Tensor) else factor
        return self._with(settled(changes.Scaled(self.source, own)))

    __rmul__ = __mul__

    def __truediv__(self, factor: float | Tensor) -> JacobianOperator:
        """``J / c``."""
        arguments.check_factor(factor)
        return self * (1 / factor)

    # --- inside

    def _with(self, source: Source) -> JacobianOperator:
        return dataclasses.replace(self, source=source)

    def _restricted(self, kept: Sequence[int]) -> JacobianOperator:
        kinds = tuple(self.columns.kinds[i] for i in kept)
        names = tuple(self.names[i] for i in kept)
        spec = None if self.columns.spec is None else _tree.flatten(dict.fromkeys(names, 0))[1]
        source = settled(changes.SomeLeaves(self.source, list(kept)))
        return dataclasses.replace(self, source=source, names=names, columns=Vectors(kinds, spec))

    def _converted(self, convert: Callable[[Tensor], Tensor]) -> JacobianOperator:
        def kind_of(kind: LeafType) -> LeafType:
            like = convert(torch.empty(0, dtype=kind.dtype, device=kind.device))
            return kind._replace(dtype=like.dtype, device=like.device)

        def side(vectors: Vectors) -> Vectors:
            return dataclasses.replace(vectors, kinds=tuple(map(kind_of, vectors.kinds)))

        kinds = [kind_of(kind) for kind in self.source.kinds]
        leaves, spec = _tree.flatten(self.value)
        return dataclasses.replace(
            self,
            source=settled(changes.Converted(self.source, kinds, convert)),
            rows=side(self.rows),
            columns=side(self.columns),
            value=_tree.unflatten(spec, [convert(leaf) for leaf in leaves]),
        )

    def _with_weights(self, weights: Tensor | None) -> Iterator[tuple[Block, Block | None]]:
        """The blocks, each beside the weighted one."""
        change = None if weights is None else changes.Weighted(self.source, arguments.weights(weights, self))
        for block in self.source.blocks():
            yield block, None if change is None else change.block(block)

    def _column_sums(self, pairs: Any) -> Tensor:
        """The sums over rows of products of two blocks, element by element, ``(P,)``."""
        sums = ColumnSums(self.source.kinds, 1)
        for block, other in pairs:
            both = zip(block.leaves, (other or block).leaves, strict=True)
            sums.add(leaf.column_products(its, self.source.room) for leaf, its in both)
        return sums.result()[0]


@dataclasses.dataclass(frozen=True, eq=False)
class TransposedOperator:
    """``Jᵀ``: products with flat vectors ``(M,)`` and matrices ``(M, S)``."""

    T: JacobianOperator

    @property
    def shape(self) -> tuple[int, int]:
        """``(P, M)``."""
        m, p = self.T.shape
        return p, m

    def mv(self, u: Any) -> Any:
        """``Jᵀ u``, as :meth:`JacobianOperator.rmv`."""
        return self.T.rmv(u)

    def rmv(self, v: Any) -> Any:
        """``J v``, as :meth:`JacobianOperator.mv`."""
        return self.T.mv(v)

    def __matmul__(self, u: Tensor) -> Tensor:
        """``Jᵀ u``."""
        arguments.check_matrix(u, self.shape[1], self.T.dtype, self.T.device, "J.T @ u")
        product = self.T.source.rmv(u if u.ndim == 2 else u.unsqueeze(1)).T
        return product if u.ndim == 2 else product.squeeze(1)
