"""PyTorch's own optimizers on the mean of the squared residuals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

if TYPE_CHECKING:
    from ..fits.problems import Problem

Record = Callable[[Tensor], None]

#: Steps of Adam from one record to the next.
EVERY = 10


def lbfgs(problem: Problem, record: Record) -> None:
    """LBFGS with strong Wolfe line searches, 100 pairs of vectors."""
    net, loss = _network(problem)
    options = {"max_iter": 10**6, "max_eval": 10**6, "history_size": 100, "tolerance_grad": 0, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        record(parameters_to_vector(net.parameters()))
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def adam(problem: Problem, record: Record) -> None:
    """Adam on the whole batch, with the learning rate of torch-levenberg-marquardt's README."""
    net, loss = _network(problem)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    while True:
        for _ in range(EVERY):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        record(parameters_to_vector(net.parameters()))


def _network(problem: Problem) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    net = copy.deepcopy(problem.work.net)
    x, y = problem.data
    return net, lambda: (net(x) - y).square().mean()
