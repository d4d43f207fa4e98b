"""Bags of embeddings (L2): rows of the table, reduced."""

from __future__ import annotations

from torch.nn import functional as F

from jacfn._bag import embedding_bag
from jacfn.quasilinear.rules._registry import expansion

expansion(F.embedding_bag)(embedding_bag)
