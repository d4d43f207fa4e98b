"""torch-levenberg-marquardt (Di Marco 2024): a module's training step by a dense Jacobian of torch.func."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..methods import Run
from ._rows import missing as absent

if TYPE_CHECKING:
    from ..fits.problems import Problem

missing = absent("torch_levenberg_marquardt")


def trainer(problem: Problem, solve_method: str) -> Any:
    """Its class on a copy of the network, with its own damping and the mean squared error."""
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    return LevenbergMarquardtModule(copy.deepcopy(problem.work.net), solve_method=solve_method)


def step(problem: Problem, solve_method: str) -> Run:
    """A training step, always the first."""
    module = trainer(problem, solve_method)
    start = module.flat_params.clone()

    def run() -> dict[str, Tensor]:
        module.flat_params.copy_(start)
        module.backup_parameters()
        module.damping_strategy.reset()
        _, _, _, logs = module.training_step(*problem.data)
        assert logs["attempts"] == 1
        return {"weights": module.flat_params.clone()}

    return run


def fit(solve_method: str) -> Callable[[Problem, Callable[[Tensor], None]], None]:
    """Training steps on the whole batch until it says that training shall stop."""

    def run(problem: Problem, record: Callable[[Tensor], None]) -> None:
        module, stop = trainer(problem, solve_method), False
        while not stop:
            _, _, stop, _ = module.training_step(*problem.data)
            record(module.flat_params)

    return run
