"""TorchJD's autogram (Quinton and Rey 2024): the Gram matrix of the Jacobian, from hooks on modules."""

from __future__ import annotations

import copy

from torch import Tensor

from ..methods import Method, Run
from ..works import Work
from ._rows import missing


def _make(work: Work) -> Run:
    """One forward pass, and one backward pass vectorized over the outputs; the engine is made beforehand."""
    from torchjd.autogram import Engine

    net = copy.deepcopy(work.net)
    engine = Engine(net, batch_dim=0)
    n, k = len(work.x), work.outputs

    def run() -> dict[str, Tensor]:
        gram = engine.compute_gramian(net(work.x))
        return {"NTK": gram.reshape(n, k, n, k).transpose(1, 2)}

    return run


TORCHJD = Method("TorchJD autogram", _make, skip=missing("torchjd"))
