"""Matrix products with the parameter on either side (L2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._contraction import LETTERS, contraction
from jacfn.quasilinear.rules._registry import Use, expansion, rule
from jacfn.quasilinear.rules.elementwise import in_old_order, shift


def _product(left: Tensor, right: Tensor, factor: float = 1.0) -> tuple[Use, Use]:
    """The uses of both sides of ``factor * left @ right``, with broadcast batches in front."""
    batch: torch.Size = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])  # type: ignore[no-untyped-call]
    letters = LETTERS[: len(batch)]
    m = "m" if left.ndim > 1 else ""
    n = "n" if right.ndim > 1 else ""
    output = letters + m + n

    def use(weight: Tensor, matrix: str, other: Tensor, other_matrix: str) -> Use:
        # A batch axis along which the weight is broadcast is one of positions, so it is none of the weight's.
        kept = [c for c, size in zip(reversed(letters), reversed(weight.shape[: -len(matrix)])) if size > 1]  # noqa: B905
        form = contraction("".join(reversed(kept)) + matrix, letters + other_matrix, output)

        def input() -> Tensor:
            whole = other.expand(*batch, *other.shape[-len(other_matrix) :])
            return whole if factor == 1.0 else factor * whole

        return Use(form, input)

    return use(left, m + "k", right, "k" + n), use(right, "k" + n, left, m + "k")


@rule(
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    cases=lambda rand: [
        call(rand(2, 3), rand(3, 4)),
        call(rand(3), rand(3, 2)),
        call(rand(2, 3), rand(3)),
        call(rand(3), rand(3)),
        call(rand(5, 1, 2, 3), rand(4, 3, 2)),
        call(rand(4, 2, 3), rand(3)),
        call(rand(3), rand(4, 3, 2)),
        call(rand(1, 2, 3), rand(4, 3, 2)),
    ],
)
def matmul(input: Tensor, other: Tensor) -> dict[str, Use]:
    """``A B``."""
    left, right = _product(input, other)
    return {"input": left, "other": right}


@rule(Tensor.__rmatmul__, cases=lambda rand: [call(rand(3, 4), rand(2, 3)), call(rand(3, 2), rand(3))])
def rmatmul(self: Tensor, other: Tensor) -> dict[str, Use]:
    """``B A``."""
    left, right = _product(other, self)
    return {"other": left, "self": right}


@rule(torch.mm, Tensor.mm, cases=lambda rand: [call(rand(2, 3), rand(3, 4)), call(rand(1, 1), rand(1, 2))])
@rule(torch.bmm, Tensor.bmm, cases=lambda rand: [call(rand(2, 2, 3), rand(2, 3, 4))])
def mm(input: Tensor, mat2: Tensor) -> dict[str, Use]:
    """``A B``, one matrix or a batch of them."""
    left, right = _product(input, mat2)
    return {"input": left, "mat2": right}


@rule(torch.mv, Tensor.mv, cases=lambda rand: [call(rand(2, 3), rand(3))])
def mv(input: Tensor, vec: Tensor) -> dict[str, Use]:
    """``A v``."""
    left, right = _product(input, vec)
    return {"input": left, "vec": right}


@rule(torch.dot, Tensor.dot, cases=lambda rand: [call(rand(3), rand(3))])
def dot(input: Tensor, tensor: Tensor) -> dict[str, Use]:
    """``u · v``."""
    left, right = _product(input, tensor)
    return {"input": left, "tensor": right}


@rule(
    torch.addmm,
    Tensor.addmm,
    cases=lambda rand: [
        call(rand(2, 4), rand(2, 3), rand(3, 4)),
        call(rand(4), rand(2, 3), rand(3, 4), beta=0.5, alpha=2.0),
        call(rand(2, 1), rand(2, 3), rand(3, 4), beta=0),
    ],
)
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, beta: float = 1, alpha: float = 1) -> dict[str, Use]:
    """``beta C + alpha A B``."""
    if in_old_order(beta, alpha):
        return {}
    left, right = _product(mat1, mat2, alpha)
    return {"input": shift(input, beta), "mat1": left, "mat2": right}


@rule(
    torch.baddbmm,
    Tensor.baddbmm,
    cases=lambda rand: [
        call(rand(5, 2, 4), rand(5, 2, 3), rand(5, 3, 4)),
        call(rand(2, 1), rand(5, 2, 3), rand(5, 3, 4), beta=0.5, alpha=2.0),
    ],
)
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, beta: float = 1, alpha: float = 1) -> dict[str, Use]:
    """``beta C + alpha A B``, a batch of matrices."""
    if in_old_order(beta, alpha):
        return {}
    left, right = _product(batch1, batch2, alpha)
    return {"input": shift(input, beta), "batch1": left, "batch2": right}


@rule(
    torch.einsum,
    cases=lambda rand: [
        call("ti,oi->to", rand(2, 3), rand(4, 3)),
        call("iaj,ti->tja", rand(3, 2, 4), rand(2, 3)),
        call("i,ij,...j->...", rand(3), rand(3, 4), rand(2, 4)),
        call("gti,goi->gto", rand(2, 3, 4), rand(2, 5, 4)),
        call("ij,jk", rand(2, 3), rand(3, 2)),
        call("...i, ij -> ...j", rand(2, 2, 3), rand(3, 2)),
        call("i,j->ji", rand(2), rand(3)),
    ],
)
def einsum(equation: str, *operands: Tensor) -> dict[tuple[str, int], Use]:
    """A sum of products: each operand meets the product of the others."""
    parsed = _letters(equation, operands)
    if parsed is None:
        return {}
    inputs, output = parsed
    uses = {}
    for number, (weight, operand) in enumerate(zip(inputs, operands, strict=True)):
        others = [letters for i, letters in enumerate(inputs) if i != number]
        tensors = [x for i, x in enumerate(operands) if i != number]
        product = "".join(dict.fromkeys(c for c in "".join(others) if c in weight + output))
        if not tensors or any(c not in product + output for c in weight):
            continue

        def input(others: list[str] = others, tensors: list[Tensor] = tensors, product: str = product) -> Tensor:
            return torch.einsum(f"{','.join(others)}->{product}", *tensors)

        uses["operands", number] = Use(contraction(weight, product, output, operand.shape), input)
    return uses


def _letters(equation: str, operands: tuple[Any, ...]) -> tuple[list[str], str] | None:
    """The letters of each operand and of the output, ellipses written out; None for what is no plain product."""
    if not all(isinstance(operand, Tensor) for operand in operands):
        return None
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if not arrow:
        every = "".join(inputs).replace("...", "")
        output = "..." * ("..." in left) + "".join(sorted(c for c in every if every.count(c) == 1))
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    longest = 0
    spelt = []
    for letters, operand in zip(inputs, operands, strict=True):
        if "..." in letters:
            hidden = operand.ndim - len(letters.replace("...", ""))
            longest = max(longest, hidden)
            letters = letters.replace("...", "".join(free[:hidden][::-1]))
        if len(set(letters)) < len(letters):
            return None
        spelt.append(letters)
    sizes: dict[str, set[int]] = {}
    for letters, operand in zip(spelt, operands, strict=True):
        for letter, size in zip(letters, operand.shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    if any(len(found) > 1 for found in sizes.values()):  # an axis of length one is broadcast
        return None
    return spelt, output.replace("...", "".join(free[:longest][::-1]))


@expansion(
    torch.tensordot,
    cases=lambda rand: [
        call(rand(2, 3), rand(3, 4), 1),
        call(rand(2, 3, 4), rand(3, 4), dims=2),
        call(rand(2, 3), rand(4, 3, 2), dims=([1], [1])),
        call(rand(2, 3, 4), rand(4, 5, 2), dims=([0, -1], [2, 0])),
        call(rand(2), rand(3), dims=0),
    ],
)
def tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: None = None) -> Tensor:
    """Axes of both that are summed over, as a matrix product."""
    if isinstance(dims, Tensor):
        dims = dims.tolist() if dims.numel() > 1 else int(dims)
    if isinstance(dims, int):
        first, second = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        first, second = ([axis % x.ndim for axis in _list(axes)] for axes, x in zip(dims, (a, b), strict=True))
    a, b = _unbroadcast(a, first, b, second), _unbroadcast(b, second, a, first)
    kept = [[axis for axis in range(x.ndim) if axis not in summed] for x, summed in ((a, first), (b, second))]
    rows, columns = [a.shape[axis] for axis in kept[0]], [b.shape[axis] for axis in kept[1]]
    left = a.permute(*kept[0], *first).reshape(_numel(rows), -1)
    right = b.permute(*second, *kept[1]).reshape(-1, _numel(columns))
    return (left @ right).reshape(*rows, *columns)


def _unbroadcast(x: Tensor, axes: list[int], other: Tensor, others: list[int]) -> Tensor:
    """Summed over the axes along which the other tensor is broadcast, from length one."""
    pairs = zip(axes, others, strict=True)
    once = [axis for axis, its in pairs if other.shape[its] == 1 and x.shape[axis] != 1]
    return x.sum(once, keepdim=True) if once else x


def _list(axes: Any) -> list[int]:
    return [axes] if isinstance(axes, int) else list(axes)


def _numel(sizes: list[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
