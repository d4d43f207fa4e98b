"""Sums of matrix products of rows, in the arrangement that a contraction asks for (L3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Contraction = Literal["full", "trace", "diagonal"]


class InPlace:
    """Adds into ``out``; of a symmetric result the ``upper`` triangle alone, by panels of rows."""

    def __init__(self, out: Tensor, contraction: Contraction, upper: bool, room: int) -> None:
        self._full, self._upper, self._room = contraction == "full", upper, room
        self._contraction: Contraction = contraction
        self._rows_each = out.shape[1] if self._full else 1  # rows of a sample, where they stand side by side
        self._columns_each = out.shape[3] if self._full else 1
        self._out = as_matrix(out, contraction)

    def add_slices(self, left: Tensor, right: Tensor) -> None:
        """The products of ``(N, R, c)`` and ``(N', R', c)``."""
        left, right = arranged(left, self._contraction), arranged(right, self._contraction)
        for rows, first in self._panels(temporary=left.ndim == 3):
            target = self._out[..., rows, first:]
            if left.ndim == 2:
                target.addmm_(left[rows], right[first:].T)
            else:
                target += left[:, rows] @ right[:, first:].mT

    def add_pair(self, weights: Tensor, left: Tensor, right: Tensor) -> None:
        """The products of ``(N, R, c)`` and ``(N', R', c)`` times the weight ``(N, N')`` of the two samples."""
        left, right = arranged(left, self._contraction), arranged(right, self._contraction)
        for rows, first in self._panels(temporary=True):
            product = left[..., rows, :] @ right[..., first:, :].mT
            target, weight = (
                self._out[..., rows, first:],
                self._of_rows(weights, rows)[:, first // self._columns_each :],
            )
            if self._full:  # a column of weights for all columns of a sample
                grid = *weight.shape, self._columns_each
                target, product, weight = target.view(grid), product.view(grid), weight.unsqueeze(-1)
            target.addcmul_(product, weight)

    def _of_rows(self, weights: Tensor, rows: slice) -> Tensor:
        """Those of samples for each of these rows."""
        if not self._full:
            return weights[rows]
        return weights[torch.arange(rows.start, rows.stop, device=weights.device) // self._rows_each]

    def _panels(self, temporary: bool) -> Iterator[tuple[slice, int]]:
        """Rows, and the column from which on their products are wanted: the first one of a sample."""
        rows, columns = self._out.shape[-2:]
        step = max(_PANEL, -(-rows // _PANELS)) if self._upper else rows
        if temporary:
            step = min(step, self._room // max(self._out.shape[:-2].numel() * columns * self._out.element_size(), 1))
        step = max(step, 1)
        for start in range(0, rows, step):
            first = start // self._rows_each * self._rows_each if self._upper else 0
            yield slice(start, min(start + step, rows)), first


class Recorded:
    """Adds up in new memory, by operations that can be differentiated."""

    def __init__(self, zeros: Tensor, contraction: Contraction) -> None:
        self.total, self._contraction = zeros, contraction

    def add_slices(self, left: Tensor, right: Tensor) -> None:
        """The products of ``(N, R, c)`` and ``(N', R', c)``."""
        self.total = self.total + self._product(left, right)

    def add_pair(self, weights: Tensor, left: Tensor, right: Tensor) -> None:
        """The products of ``(N, R, c)`` and ``(N', R', c)`` times the weight ``(N, N')`` of the two samples."""
        weights = weights.view(_spread(weights.shape, self._contraction))
        self.total = self.total + self._product(left, right) * weights

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        product = arranged(left, self._contraction) @ arranged(right, self._contraction).mT
        return product.permute(1, 2, 0) if self._contraction == "diagonal" else product.reshape(self.total.shape)


Sums = InPlace | Recorded


def arranged(x: Tensor, contraction: Contraction) -> Tensor:
    """``(N, R, c)`` as the side of a matrix product that sums over its last axis."""
    n, r, c = x.shape
    if contraction == "full":
        return x.reshape(n * r, c)
    return x.reshape(n, r * c) if contraction == "trace" else x.transpose(0, 1)


def as_matrix(out: Tensor, contraction: Contraction) -> Tensor:
    """A view of the result as the matrix, or the stack of matrices, that such products give."""
    if contraction == "full":
        n, r, other, rows = out.shape
        return out.view(n * r, other * rows)
    return out if contraction == "trace" else out.permute(2, 0, 1)


def mirror(out: Tensor, contraction: Contraction) -> None:
    """Copy the upper triangle of a symmetric result below the diagonal."""
    matrix = as_matrix(out, contraction)
    size = matrix.shape[-1]
    for start in range(0, size, _PANEL):
        stop = min(start + _PANEL, size)
        _mirror_square(matrix[..., start:stop, start:stop])
        matrix[..., stop:, start:stop] = matrix[..., start:stop, stop:].mT


def _mirror_square(matrix: Tensor) -> None:
    size = matrix.shape[-1]
    if size <= _TILE:
        matrix.copy_(matrix.triu() + matrix.triu(1).mT)
        return
    half = size // 2
    matrix[..., half:, :half] = matrix[..., :half, half:].mT
    _mirror_square(matrix[..., :half, :half])
    _mirror_square(matrix[..., half:, half:])


def _spread(shape: tuple[int, ...], contraction: Contraction) -> tuple[int, ...]:
    n, other = shape
    return {"full": (n, 1, other, 1), "trace": (n, other), "diagonal": (n, other, 1)}[contraction]


# Measured on two cores: panels of fewer rows make products slow, more than 16 of them save nothing.
_PANEL = 128
_PANELS = 16
_TILE = 32  # rows that are mirrored by way of copies
