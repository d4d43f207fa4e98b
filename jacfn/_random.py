"""One draw of a random function, drawn again (L0)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Draw:
    """The state of the random number generators now, of the CPU and of the CUDA devices of ``tensors``."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind(self) -> None:
        """Put the generators back, so that the next numbers are the same again."""
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)

    def used(self) -> bool:
        """Whether random numbers were drawn since."""
        return not torch.equal(self._cpu, torch.get_rng_state()) or any(
            not torch.equal(state, torch.cuda.get_rng_state(device)) for device, state in self._cuda.items()
        )
