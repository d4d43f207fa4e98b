"""Cases of losses: predictions and, where they may be differentiated, targets depend on the point."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .case import Case, group, values

CASES: list[Case] = []

signs = torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
classes = torch.tensor([2, 0])


def ctc(x: Tensor) -> Tensor:
    """Of four steps with four symbols."""
    steps = torch.stack([x, x.flip(0)]).log_softmax(-1)  # (steps, samples, symbols)
    return F.ctc_loss(steps, classes[:1].expand(2, 1), torch.tensor([2, 2]), torch.tensor([1, 1]), blank=1)


CASES += group(
    "Losses",
    values(2, 4, low=-1.2, high=1.2),
    {
        "F.mse_loss": lambda x: F.mse_loss(x[0], x[1].sin()),
        "F.l1_loss": lambda x: F.l1_loss(x[0] ** 2, x[1] - 2),
        "F.smooth_l1_loss": lambda x: F.smooth_l1_loss(2 * x[0], x[1].sin()),
        "F.huber_loss": lambda x: F.huber_loss(2 * x[0], x[1].sin()),
        "F.cross_entropy": lambda x: F.cross_entropy(x, classes),
        "F.cross_entropy (probabilities)": lambda x: F.cross_entropy(x, x.flip(0).softmax(-1)),
        "F.cross_entropy (label_smoothing)": lambda x: F.cross_entropy(x, classes, label_smoothing=0.1),
        "F.nll_loss": lambda x: F.nll_loss(x.sin(), classes),
        "F.binary_cross_entropy": lambda x: F.binary_cross_entropy(x[0].sigmoid(), signs[0].clamp(0.2, 0.7)),
        "F.binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x.flip(0).sigmoid()),
        "F.kl_div": lambda x: F.kl_div(x[0].log_softmax(-1), x[1].softmax(-1), reduction="sum"),
        "F.poisson_nll_loss": lambda x: F.poisson_nll_loss(x[0], x[1].exp()),
        "F.gaussian_nll_loss": lambda x: F.gaussian_nll_loss(x[0], x[1], x[1].exp()),
        "F.cosine_embedding_loss": lambda x: F.cosine_embedding_loss(x, x.flip(1), signs[:, 0]),
        "F.margin_ranking_loss": lambda x: F.margin_ranking_loss(x[0] ** 2, x[1], signs[0], margin=1.05),
        "F.hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x**2, signs),
        "F.soft_margin_loss": lambda x: F.soft_margin_loss(x, signs),
        "F.triplet_margin_loss": lambda x: F.triplet_margin_loss(x, x.sin() - 0.3, x.flip(1), margin=5.0),
        "F.multi_margin_loss": lambda x: F.multi_margin_loss(x.sin(), classes),
        "F.multilabel_margin_loss": lambda x: F.multilabel_margin_loss(
            x.sin(), torch.tensor([[1, 2, -1, 0], [0, -1, 2, 1]])
        ),
        "F.multilabel_soft_margin_loss": lambda x: F.multilabel_soft_margin_loss(x, (signs + 1) / 2),
        "F.ctc_loss": ctc,
    },
)
