"""PyPose's LevenbergMarquardt (Wang et al. 2023): a dense Jacobian of the whole batch, row by row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils import parameters_to_vector

if TYPE_CHECKING:
    from ..fits.problems import Problem

#: Bytes that the vectorized pass may take for one activation; beyond, rows are taken one at a time.
LARGEST = 1 << 30


def fit(problem: Problem, record: Callable[[Tensor], None]) -> None:
    """Steps with its own damping (a trust region) and solver (Cholesky)."""
    from pypose.optim import LM

    net = copy.deepcopy(problem.work.net)
    widest = max(leaf.shape[0] for leaf in problem.work.params.values())
    vectorize = 4 * problem.work.rows * len(problem.work.x) * widest <= LARGEST
    optimizer = LM(net, vectorize=vectorize)
    while True:
        optimizer.step(*problem.data)
        record(parameters_to_vector(net.parameters()))
