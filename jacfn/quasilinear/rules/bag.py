"""Bags of embeddings (L2): rows of the table, reduced."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jacfn._exact import ALWAYS
from jacfn.quasilinear.rules._cases import call
from jacfn.quasilinear.rules._registry import expansion

expansion(
    F.embedding_bag,
    cases=lambda rand: [
        call(rand.below(4, 2, 3), rand(4, 2)),
        call(rand.below(4, 2, 3), rand(4, 2), mode="sum", per_sample_weights=rand(2, 3)),
        call(rand.below(4, 2, 3), rand(4, 2), mode="max"),
        call(rand.below(4, 5), rand(4, 2), torch.tensor([0, 2, 2]), mode="mean", padding_idx=1),
        call(rand.below(4, 5), rand(4, 2), torch.tensor([0, 3, 5]), mode="sum", include_last_offset=True),
    ],
)(ALWAYS[F.embedding_bag])  # as for all transforms
