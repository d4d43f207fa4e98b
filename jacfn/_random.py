"""One draw of a random function, drawn again (L0)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from jacfn._errors import JacfnError
from jacfn._torch import FakeTensor


class Draw:
    """The state of the random number generators now, of the CPU and of the CUDA devices of ``tensors``.

    Fake tensors draw no numbers: for them there is nothing to keep.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        self._cpu = None if any(isinstance(tensor, FakeTensor) for tensor in tensors) else torch.get_rng_state()
        devices = {tensor.device for tensor in tensors if tensor.is_cuda and self._cpu is not None}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind(self) -> None:
        """Put the generators back, so that the next numbers are the same again."""
        if self._cpu is not None:
            torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)

    def used(self) -> bool:
        """Whether random numbers were drawn since."""
        if self._cpu is None:
            return False
        return not torch.equal(self._cpu, torch.get_rng_state()) or any(
            not torch.equal(state, torch.cuda.get_rng_state(device)) for device, state in self._cuda.items()
        )


@contextlib.contextmanager
def refuse_unannounced(randomness: str, tensors: Iterable[Tensor]) -> Iterator[None]:
    """With ``randomness="error"``, an error when random numbers are drawn inside: what vmap does where it is used."""
    if randomness != "error" or torch.compiler.is_compiling():
        yield
        return
    draw = Draw(tensors)
    yield
    if draw.used():
        raise JacfnError(
            "fn draws random numbers, and randomness='error': pass randomness='same' or 'different' (for the samples)"
        )
