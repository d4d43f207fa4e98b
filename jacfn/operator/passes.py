"""Blocks of a Jacobian's rows from passes through ``fn`` (L3), by the methods of the transforms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from jacfn._binding import Bound
from jacfn._evaluate import Evaluation, Method, Tracking
from jacfn._memory import Chunks
from jacfn._torch import inside_transform
from jacfn.operator.block import Block
from jacfn.quasilinear.factors import Dense, Leaf, Term


def blocks_of(
    method: Method, bound: Bound, chunks: Chunks, tracking: Tracking, first: int = 0, *, probing: bool = False
) -> Iterator[tuple[Block, list[Tensor]]]:
    """One block after the other from the sample ``first`` on, and the value of ``fn`` on its samples.

    A block has all rows of several samples, or some rows of one.
    """
    samples = 1 if bound.samples is None else bound.samples
    for start in range(first, max(samples, 1), chunks.samples or 1):
        here = bound
        if bound.samples is not None:
            here = bound.block(start, min(chunks.samples or 1, samples - start))
        evaluation = method.start(here, chunks.rows, tracking, probing)
        n = min(samples, 1) if here.samples is None else here.samples
        value, total = evaluation.value, _width(evaluation, method)
        for low, high, leaves in _parts(evaluation, method, here, n):
            begin = start * total + low
            yield Block(slice(begin, begin + n * (high - low)), (n, high - low), tuple(leaves)), value
            del leaves
        del here, evaluation


def dense_leaf(rows: Tensor) -> Leaf:
    """A leaf with all of its rows ``(N, R, *leaf)`` given."""
    in_place = not rows.requires_grad and not inside_transform()
    return Leaf((Term(Dense(), rows.transpose(0, 1), None),), tuple(rows.shape), rows.dtype, rows.device, in_place)


def _width(evaluation: Evaluation, method: Method) -> int:
    """The rows of a sample."""
    return evaluation.side.total if method.axis == 1 else sum(kind.size for kind in evaluation.others)


def _parts(evaluation: Evaluation, method: Method, block: Bound, n: int) -> Iterator[tuple[int, int, list[Leaf]]]:
    if method.axis != 1:
        yield 0, _width(evaluation, method), _by_columns(evaluation, block, n)
    elif n == 1:
        yield from _by_rows(evaluation, n)
    else:
        parts = list(_by_rows(evaluation, n))
        merged = [_merged(list(leaves)) for leaves in zip(*(leaves for _, _, leaves in parts), strict=True)]
        yield 0, parts[-1][1], merged


def _by_rows(evaluation: Evaluation, n: int) -> Iterator[tuple[int, int, list[Leaf]]]:
    empty = True
    for low, high, parts in evaluation.chunks:
        empty = False
        leaves = [dense_leaf(part) if isinstance(part, Tensor) else part for part in parts]
        yield low, high, [leaf.compressed() for leaf in leaves]
    if empty:  # no rows at all
        shapes = [(n, 0, *kind.shape) for kind in evaluation.others]
        kinds = zip(shapes, evaluation.others, strict=True)
        yield 0, 0, [dense_leaf(torch.zeros(shape, dtype=kind.dtype, device=kind.device)) for shape, kind in kinds]


def _merged(chunks: list[Leaf]) -> Leaf:
    """The leaf with the rows of all chunks; dense where they are not in the same form."""
    first = chunks[0]
    if len(chunks) == 1:
        return first
    forms = [[(term.form, term.x is None) for term in leaf.terms] for leaf in chunks]
    if any(form != forms[0] for form in forms):
        return dense_leaf(torch.cat([leaf.dense() for leaf in chunks], 1))
    terms = [
        Term(same[0].form, _cat([term.delta for term in same]), same[0].x)
        for same in zip(*(leaf.terms for leaf in chunks), strict=True)
    ]
    shape = (first.shape[0], sum(leaf.shape[1] for leaf in chunks), *first.shape[2:])
    return dataclasses.replace(first, terms=tuple(terms), shape=shape, in_place=all(leaf.in_place for leaf in chunks))


def _cat(deltas: list[Tensor]) -> Tensor:
    """Along the rows, in the order of axes that the first one has in memory."""
    if deltas[0].transpose(0, 1).is_contiguous():
        return torch.cat([delta.transpose(0, 1) for delta in deltas], 1).transpose(0, 1)
    return torch.cat(deltas)


def _by_columns(evaluation: Evaluation, block: Bound, n: int) -> list[Leaf]:
    """All rows at once, since a chunk of columns has a part of each."""
    kinds = block.leaf_types
    sizes = [kind.size for kind in kinds]
    width = sum(kind.size for kind in evaluation.others)
    like = evaluation.others[0] if evaluation.others else kinds[0]
    whole: Tensor | None = None
    kept: list[Tensor] = []
    for low, high, parts in evaluation.chunks:  # (N, C, *out) for each output leaf
        columns = torch.cat([part.reshape(*part.shape[:2], part.shape[2:].numel()) for part in parts], 2)
        if kept or columns.requires_grad or inside_transform():
            if not kept and whole is not None:  # those before carry no derivatives
                kept.append(whole[:, :low])
            kept.append(columns)
            continue
        if whole is None:
            whole = torch.empty(n, sum(sizes), width, dtype=like.dtype, device=like.device)
        whole[:, low:high] = columns
    if kept:
        whole = torch.cat(kept, 1)
    if whole is None:  # no columns at all
        whole = torch.zeros(n, sum(sizes), width, dtype=like.dtype, device=like.device)
    rows = torch.split(whole.transpose(1, 2), sizes, -1)  # (N, K, P)
    return [dense_leaf(part.view(*part.shape[:2], *kind.shape)) for part, kind in zip(rows, kinds, strict=True)]
