"""Some of many problems (L4): rows are taken out of every tensor of a record, and put back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


def take(record: Record, index: Tensor) -> Record:
    """The problems ``index`` of a record of tensors ``(B, ...)``, nested as it may be."""
    result: Record = _map(lambda x: x[index], record)
    return result


def put(record: Record, index: Tensor, part: Record) -> Record:
    """The record with the problems ``index`` from ``part``."""
    result: Record = _map(lambda x, y: x.index_copy(0, index, y), record, part)
    return result


def where(chosen: Tensor, record: Record, other: Record) -> Record:
    """Each problem from the first record where it is chosen, else from the other."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(chosen.reshape(chosen.shape + (1,) * (x.ndim - chosen.ndim)), x, y)

    result: Record = _map(pick, record, other)
    return result


def _map(function: Any, record: Any, *others: Any) -> Any:
    if isinstance(record, Tensor):
        return function(record, *others)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = [field.name for field in dataclasses.fields(record)]
        new = {name: _map(function, *(getattr(r, name) for r in (record, *others))) for name in fields}
        return dataclasses.replace(record, **new)
    return record
