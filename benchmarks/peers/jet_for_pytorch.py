"""jet-for-pytorch: collapsed Taylor mode (Dangel et al. 2025, arXiv:2505.13644)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..methods import Method, Run
from ..works import Work
from ._rows import missing


def _make(work: Work) -> Run:
    """The batch is traced beforehand; the directions are those of a sample, the same for all."""
    from jet import jet

    x = work.x
    collapsed = jet(lambda batch: work.batch_fn(work.params, batch), (x,), collapsed=True)
    basis = torch.eye(x[0].numel()).reshape(-1, 1, *x.shape[1:])
    directions, zeros = basis.expand(-1, *x.shape), torch.zeros_like(x)

    def run() -> dict[str, Tensor]:
        _, _, second = collapsed((x, directions, zeros))
        return {"laplacian": second}

    return run


JET = Method("jet-for-pytorch, collapsed", _make, skip=missing("jet"))
