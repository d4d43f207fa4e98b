"""Memory (L1): result buffers, budgets, and the chunk sizes that keep to them.

A budget counts everything that is allocated beyond the inputs and the result. The peak of an evaluation is predicted
by running its first chunks on fake tensors, which have shapes but no memory, while a dispatch mode books every
storage that is made and freed. The peak grows linearly with the chunk, so two runs give the line.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._torch import FakeTensor, FakeTensorMode, TorchDispatchMode, inside_transform
from jacfn._tree import LeafType, tensors_in

log = logging.getLogger("jacfn")  # each evaluation logs the chunks it chose, at level DEBUG

Budget = int | str | None

# Workspaces inside kernels (im2col of a convolution, packed GEMM panels) are invisible to a dispatch mode; they were
# about 9 % of the peak on a ResNet. Plans therefore fill this part of the budget only.
USABLE = 0.8
_HUGE = 4 << 20  # from this size on NumPy asks for huge pages (Linux): a cold fill costs a quarter
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class TooSmallError(JacfnValueError):
    """A budget in which nothing can be done; ``need`` is one, in bytes, in which it can."""

    def __init__(self, message: str, need: int) -> None:
        super().__init__(message)
        self.need = need


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How an evaluation is cut: ``samples`` at a time, and of those ``rows`` (columns) of each at a time."""

    samples: int | None  # None: fn is not mapped over samples
    rows: int
    budget: int | None = None  # bytes
    predicted: int | None = None  # bytes, when a budget asked for a prediction

    def __str__(self) -> str:
        text = f"{self.rows}" if self.samples is None else f"{self.samples} x {self.rows}"
        if self.predicted is not None and self.budget is not None:
            text += f", predicted {mebibytes(self.predicted)} of {mebibytes(self.budget)}"
        return text


def parse_budget(memory: Budget) -> int | None:
    """``"512MiB"``, ``"2 GB"`` or a number of bytes, in bytes."""
    if memory is None:
        return None
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", memory)
        if match is None or match[2].lower() not in _UNITS:
            raise JacfnValueError(f"memory must be bytes or a string such as '512MiB' or '2GB', got {memory!r}")
        amount = int(float(match[1]) * _UNITS[match[2].lower()])
    elif isinstance(memory, int) and not isinstance(memory, bool):
        amount = memory
    else:
        raise JacfnTypeError(f"memory must be bytes (int) or a string such as '512MiB', got {type(memory).__name__}")
    if amount <= 0:
        raise JacfnValueError(f"memory must be positive, got {memory!r}")
    return amount


def empty(leaf: LeafType) -> Tensor:
    """Uninitialised memory for a result. Big ones on the CPU come from NumPy, which asks for huge pages."""
    size = leaf.size * leaf.dtype.itemsize
    if leaf.device.type != "cpu" or size < _HUGE:
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(leaf.dtype).view(leaf.shape)


class Assembly:
    """One leaf of the result, put together from blocks of samples (axis 0) and chunks along ``axis``.

    Chunks are written into one buffer. Where they carry derivatives (inside a transform, or under grad mode) they
    are concatenated at the end instead: autograd would record each write as a copy of the whole buffer.
    """

    def __init__(self, leaf: LeafType, axis: int) -> None:
        self._leaf, self._axis = leaf, axis
        self._buffer: Tensor | None = None
        self._chunks: dict[int, list[Tensor]] = {}  # by first sample, when nothing may be written in place

    def add(self, chunk: Tensor, sample: int, place: int) -> None:
        """Take the chunk that begins at ``sample`` and, along the axis, at ``place``; chunks come in order."""
        whole = chunk.shape == self._leaf.shape and not repeats(chunk)
        kept = whole or chunk.requires_grad or inside_transform()
        if self._chunks or (kept and self._buffer is None):  # as the first one, since not all of them need be tracked
            self._chunks.setdefault(sample, []).append(chunk)
        else:
            self.slot(sample, chunk.shape[0], place, chunk.shape[self._axis]).copy_(chunk)

    def slot(self, sample: int, samples: int, place: int, places: int) -> Tensor:
        """The part of the buffer that a chunk belongs in, to be written in place."""
        if self._buffer is None:
            self._buffer = empty(self._leaf)
        return self._buffer.narrow(0, sample, samples).narrow(self._axis, place, places)

    def result(self) -> Tensor:
        """The finished leaf; zeros-sized where no chunk ever came."""
        if self._buffer is not None:
            return self._buffer
        if not self._chunks:
            return torch.zeros(self._leaf.shape, dtype=self._leaf.dtype, device=self._leaf.device)
        return _join([_join(chunks, self._axis) for chunks in self._chunks.values()], 0)


def repeats(tensor: Tensor) -> bool:
    """Whether elements share memory, as in an expanded tensor: it cannot be written to."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books every storage that is allocated inside the ``with`` block, in bytes.

    ``now`` is what is alive, ``peak`` the most there ever was, ``peak_beyond(kept)`` the most without some results.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes: negative when it is freed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, then book the storages that it returned and nobody has seen before."""
        for tensor in tensors_in(args):
            self._known.setdefault(tensor.untyped_storage(), -1)  # given, not made
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._book(tensor.untyped_storage())
        return result

    def peak_beyond(self, kept: Sequence[Tensor]) -> int:
        """The peak without the storages of ``kept``, which are a result."""
        spared = {self._known.get(tensor.untyped_storage(), -1) for tensor in kept}
        now = peak = 0
        for number, size in self._events:
            now += 0 if number in spared else size
            peak = max(peak, now)
        return peak

    def _book(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        number = len(self._events)
        self._known[storage] = number
        self._count(number, storage.nbytes())
        weakref.finalize(storage, self._count, number, -storage.nbytes())

    def _count(self, number: int, size: int) -> None:
        self._events.append((number, size))
        self.now += size
        self.peak = max(self.peak, self.now)


def predict(run: Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]) -> int:
    """The peak in bytes of ``run(fake)`` beyond the tensors that it returns, found without memory.

    ``fake`` turns an input into a fake tensor.
    """
    mode, tracker = FakeTensorMode(allow_non_fake_inputs=True), PeakBytes()
    given: list[Tensor] = []

    def fake(x: Tensor) -> Tensor:
        """With memory of its own: forward mode fails on fake views that have gaps."""
        if type(x) in (Tensor, FakeTensor) and x.layout is torch.strided:
            given.append(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device))
        else:
            given.append(mode.from_tensor(x))
        return given[-1]

    try:
        with mode, tracker:
            result = run(fake)
    except JacfnError:
        raise
    except Exception as error:
        raise JacfnError(
            "memory: fn cannot be evaluated on fake tensors (shapes without data), by which the peak is predicted: "
            f"{type(error).__name__}: {error}. Pass chunk_size instead of memory"
        ) from error
    return tracker.peak_beyond([*result, *given])


def plan(
    peak: Callable[[int, int], int], samples: int | None, rows: int, budget: int, *, samples_first: bool, what: str
) -> Chunks:
    """The largest chunks whose predicted peak keeps to the budget.

    ``peak(n, r)`` predicts ``r`` rows at a time of ``n`` samples at a time; ``rows`` is what one sample has; ``what``
    names a row in the error. One of
    the two grows first, the other only when the first is whole.
    """
    usable = int(USABLE * budget)
    peak = functools.cache(peak)
    most = (samples or 1, max(rows, 1))
    if peak(1, 1) > usable:
        need = math.ceil(peak(1, 1) / USABLE)
        raise TooSmallError(
            f"memory={mebibytes(budget)} is too small: one {what} at a time needs {mebibytes(need)} "
            f"(predicted {mebibytes(peak(1, 1))}, planned to fill {USABLE:.0%}); give at least that much",
            need,
        )
    if samples_first:
        n = _largest(lambda n: peak(n, 1), most[0], usable)
        r = _largest(lambda r: peak(n, r), most[1], usable) if n == most[0] else 1
    else:
        r = _largest(lambda r: peak(1, r), most[1], usable)
        n = _largest(lambda n: peak(n, r), most[0], usable) if r == most[1] else 1
    return Chunks(None if samples is None else n, r, budget, peak(n, r))


def _largest(peak: Callable[[int], int], most: int, usable: int) -> int:
    """The largest size up to ``most`` that fits, given that 1 does; ``peak`` is close to a line."""
    if peak(most) <= usable:
        return most
    low, high = 1, most  # fits at low, not at high
    while high - low > 1 and peak(low) < 0.9 * usable:
        slope = (peak(high) - peak(low)) / (high - low)
        middle = low + int((usable - peak(low)) / slope)
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if peak(middle) <= usable else (low, middle)
    return low


def mebibytes(size: int) -> str:
    """For messages."""
    return f"{size / 2**20:.4g} MiB"
