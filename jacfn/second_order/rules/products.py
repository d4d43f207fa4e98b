"""Products of matrices (L3): linear in each factor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacfn.second_order.jet import Jet, Sum, added
from jacfn.second_order.rules.binary import combined, plain
from jacfn.second_order.rules.linear import behind, by_rule, split_axis
from jacfn.second_order.rules.table import rule

aten = torch.ops.aten

Bilinear = Callable[[Tensor, Tensor], Tensor]
Cross = Callable[[Tensor, Tensor, Sum], Tensor]  # Σ B(Ja, Jb)


def bilinear(a: Any, b: Any, operation: Bilinear, cross: Cross) -> Any:
    """``B(a, b)``, for an operation that takes axes in front of either factor: the directions."""
    if not isinstance(b, Jet):
        return a.linear(lambda t, lead: operation(t, b))
    if not isinstance(a, Jet):
        return b.linear(lambda t, lead: operation(a, t))
    second = added(
        None if a.second is None else operation(a.second, b.value),
        None if b.second is None else operation(a.value, b.second),
    )
    second = added(second, 2 * cross(a.first, b.first, a.sum))
    value = operation(a.value, b.value)
    return a.new(value, lambda: operation(a.first, b.value) + operation(a.value, b.first), second)


def sums(a: Tensor, b: Tensor, sum: Sum) -> Tensor:
    """Σ over the directions of products of ``(K, ..., n, m)`` and ``(K, ..., m, p)``: one product of longer rows."""
    if sum.apart:
        return a @ b
    rows = sum.weighted(a).movedim(0, -2).flatten(-2)  # (..., n, K m)
    columns = b.movedim(0, -3).flatten(-3, -2)  # (..., K m, p)
    return rows @ columns


@rule(aten.mm.default, aten.bmm.default, torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(input: Any, other: Any) -> Any:
    """The product of two stacks of matrices, which may have different numbers of axes."""
    ranks = plain(input).ndim, plain(other).ndim
    if min(ranks) < 2:
        return NotImplemented
    rank = max(ranks)
    a, b = (x.to_rank(rank) if isinstance(x, Jet) else x for x in (input, other))
    return bilinear(a, b, functools.partial(multiplied, rank=rank), sums)


def multiplied(a: Tensor, b: Tensor, rank: int) -> Tensor:
    """Directions of one factor become further rows, or columns, of each of the matrices."""
    if a.ndim > rank and b.ndim > 2:
        rows = a.movedim(0, -3)  # (..., K, n, m)
        return split_axis(rows.flatten(-3, -2) @ b, -2, rows.shape[-3:-1]).movedim(-3, 0)
    if b.ndim > rank and a.ndim > 2:
        columns = b.movedim(0, -2)  # (..., m, K, p)
        return split_axis(a @ columns.flatten(-2), -1, columns.shape[-2:]).movedim(-2, 0)
    return a @ b


@rule(aten.mv.default)
def _mv(a: Any, b: Any) -> Any:
    column = b.linear(lambda t, lead: t.unsqueeze(-1)) if isinstance(b, Jet) else b.unsqueeze(-1)
    return matmul(a, column).linear(lambda t, lead: t.squeeze(-1))


@rule(aten.dot.default)
def _dot(a: Any, b: Any) -> Any:
    row = a.linear(lambda t, lead: t.unsqueeze(-2)) if isinstance(a, Jet) else a.unsqueeze(-2)
    return _mv(row, b).linear(lambda t, lead: t.squeeze(-1))


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return combined(bias, by_rule(torch.matmul, a, b), beta, alpha)


@rule(aten.addmv.default)
def _addmv(bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return combined(bias, by_rule(aten.mv.default, a, b), beta, alpha)


@rule(aten.addbmm.default)
def _addbmm(bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """The products of all pairs, added up."""
    return combined(bias, by_rule(aten.sum.dim_IntList, by_rule(torch.matmul, a, b), [-3]), beta, alpha)


@rule(aten.linalg_cross.default)
def _cross(a: Any, b: Any, *, dim: int = -1) -> Any:
    rank = max(plain(a).ndim, plain(b).ndim)
    axis = behind(dim, rank)
    a, b = (x.to_rank(rank) if isinstance(x, Jet) else x for x in (a, b))

    def product(a: Tensor, b: Tensor) -> Tensor:
        both = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        crossed: Tensor = torch.linalg.cross(*both, dim=axis)
        return crossed

    return bilinear(a, b, product, lambda a, b, sum: sum.of(product(a, b)))


@rule(aten._trilinear.default)
def _trilinear(
    a: Any, b: Any, c: Any, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Any:  # fmt: skip
    """The sum over ``sumdim`` of the product of three tensors, each without the axes that it is expanded along."""
    rank = plain(a).ndim + len(expand1)
    of_a, of_b, of_c = ([d for d in range(rank) if d not in expanded] for expanded in (expand1, expand2, expand3))
    result = [d for d in range(rank) if d not in sumdim]
    both = [d for d in range(rank) if d in {*of_a, *of_b} and d in {*of_c, *result}]
    half = _contracted(a, of_a, b, of_b, both)
    return _contracted(half, both, c, of_c, result)


def _contracted(a: Any, of_a: list[int], b: Any, of_b: list[int], result: list[int]) -> Any:
    """Of axes by number: those that are not of the result are summed over."""
    if not isinstance(a, Jet) and not isinstance(b, Jet):
        return torch.einsum(a, of_a, b, of_b, result)
    over = 1 + max(of_a + of_b)  # the directions

    def product(a: Tensor, b: Tensor) -> Tensor:
        sides = [over] * (a.ndim - len(of_a)), [over] * (b.ndim - len(of_b))
        return torch.einsum(a, sides[0] + of_a, b, sides[1] + of_b, (sides[0] or sides[1]) + result)

    def cross(a: Tensor, b: Tensor, sum: Sum) -> Tensor:
        if sum.apart:
            return product(a, b)
        return torch.einsum(sum.weighted(a), [over, *of_a], b, [over, *of_b], result)

    return bilinear(a, b, product, cross)
