"""Cases that pick, move and sum up elements."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import programs
from .case import Case, D, group, values

CASES: list[Case] = []


def index(*numbers: int) -> Tensor:
    """Constant places."""
    return torch.tensor(numbers)


table = values(3, 4, low=-1.5, high=1.5)
places = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
CASES += group(
    "Indexing",
    table,
    {
        "torch.gather": lambda x: torch.gather(x, 0, places),
        "Tensor.__getitem__": lambda x: x[1:, ::2] * x[:1, 1],
        "Tensor.__getitem__ (tensors)": lambda x: x[index(0, 2, 2), index(1, 3, 3)],
        "Tensor.__setitem__": programs.written,
        "torch.index_put": lambda x: x.index_put((index(0, 2, 2), index(1, 3, 3)), x[0, :3] ** 2, accumulate=True),
        "torch.index_select": lambda x: torch.index_select(x, 1, index(0, 3, 3)),
        "torch.index_add": lambda x: torch.index_add(x, 0, index(0, 2, 2), x.sin()),
        "torch.index_copy": lambda x: torch.index_copy(x, 0, index(2, 0), x[:2].sin()),
        "torch.index_fill": lambda x: torch.index_fill(x, 0, index(1), 0.5),
        "torch.scatter": lambda x: torch.scatter(x, 0, index(2, 0, 1, 1)[None], x[1:2].sin()),
        "torch.scatter_add": lambda x: torch.scatter_add(x, 0, places, x[:2].sin()),
        "torch.scatter_reduce (prod)": lambda x: torch.scatter_reduce(x, 0, places, x[:2] + 2, "prod"),
        "torch.scatter_reduce (amax)": lambda x: torch.scatter_reduce(x, 0, places, x[:2] ** 2, "amax"),
        "torch.scatter_reduce (mean)": lambda x: torch.scatter_reduce(x, 0, places, x[:2] ** 2, "mean"),
        "torch.masked_fill": lambda x: x.masked_fill(x > 0.2, 0.5),
        "torch.masked_select": lambda x: torch.masked_select(x, places[:1] > 0),
        "torch.take": lambda x: torch.take(x, index(0, 7, 7)),
        "torch.take_along_dim": lambda x: torch.take_along_dim(x, places, 0),
        "torch.sort": lambda x: torch.sort(x, -1)[0],
        "torch.topk": lambda x: torch.topk(x, 2)[0],
        "torch.kthvalue": lambda x: torch.kthvalue(x, 2)[0],
        "torch.median": lambda x: torch.median(x, -1)[0],
        "torch.quantile": lambda x: torch.quantile(x, 0.3, dim=-1),
        "torch.max": lambda x: torch.max(x, -1)[0],
        "torch.amin": lambda x: torch.amin(x, -1),
        "torch.cummax": lambda x: torch.cummax(x, -1)[0],
        "torch.roll": lambda x: x * torch.roll(x, 1, 0),
        "torch.diag_embed": lambda x: torch.diag_embed(x) @ x.mT[None, :, :2],
        "torch.tril": lambda x: torch.tril(x) @ x.mT,
        "torch.cat, torch.stack": lambda x: torch.cat([x, torch.stack([x[0], x[1] * x[2]])]),
        "torch.repeat_interleave": lambda x: torch.repeat_interleave(x, 2, 0).sin(),
        "Tensor.unfold": lambda x: x.unfold(1, 2, 1) ** 2,
        "F.embedding": lambda x: F.embedding(places, x) ** 2,
        "F.embedding (padding_idx)": lambda x: F.embedding(index(0, 2), x, padding_idx=1) ** 2,
        "F.embedding_bag": lambda x: F.embedding_bag(places, x.sin()),
        "F.embedding_bag (max)": lambda x: F.embedding_bag(places, x.sin(), mode="max"),
    },
)
CASES += group(
    "Reductions",
    values(2, 4, low=0.4, high=1.8),
    {
        "torch.sum": lambda x: x.sum(-1),
        "torch.mean": lambda x: x.mean(-1),
        "torch.prod": lambda x: x.prod(-1),
        "torch.cumsum": lambda x: x.cumsum(-1),
        "torch.cumprod": lambda x: x.cumprod(-1),
        "torch.logcumsumexp": lambda x: x.logcumsumexp(-1),
        "torch.logsumexp": lambda x: x.logsumexp(-1),
        "torch.var": lambda x: x.var(-1),
        "torch.std": lambda x: x.std(-1),
        "torch.var_mean": lambda x: torch.var_mean(x, -1),
        "torch.norm (p=2)": lambda x: x.norm(dim=-1),
        "torch.norm (p=0.5)": lambda x: x.norm(p=0.5, dim=-1),
        "torch.dist": lambda x: torch.dist(x[0], x[1].sin(), 3),
        "torch.cov": lambda x: torch.cov(x),
        "torch.corrcoef": lambda x: torch.corrcoef(x),
        "torch.trapezoid": lambda x: torch.trapezoid(x[0], x[1]),
    },
)
one_zero, two_zeros = torch.tensor([0.6, 0.0, 1.2, -0.8], dtype=D), torch.tensor([0.6, 0.0, 0.0, -0.8], dtype=D)
CASES += group("Reductions", one_zero, {"torch.prod (one zero)": lambda x: x.prod(0)})
CASES += group("Reductions", two_zeros, {"torch.prod (two zeros)": lambda x: x.prod(0)})
CASES += group("Reductions", one_zero, {"torch.cumprod (one zero)": lambda x: x.cumprod(0)})
CASES += group(
    "Distances",
    values(5, 3, low=-1, high=2),
    {
        "torch.cdist": lambda x: torch.cdist(x[:3], x[3:]),
        "torch.cdist (p=1)": lambda x: torch.cdist(x[:3], x[3:], p=1.0),
        "torch.cdist (p=3)": lambda x: torch.cdist(x[:3], x[3:], p=3.0),
        "torch.pdist": torch.pdist,
        "F.pairwise_distance": lambda x: F.pairwise_distance(x[:2], x[2:4]),
        "F.cosine_similarity": lambda x: F.cosine_similarity(x[:2], x[2:4]),
    },
)
