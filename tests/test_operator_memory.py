"""The peak of everything that an operator is asked keeps to its budget, beyond inputs and result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import cnn, leaves_of, mlp
from operator_cases import METHODS, smallest_budget
from torch import Tensor

from jacfn import JacobianOperator, jacobian_operator, make_functional
from jacfn._memory import PeakBytes

NETS: dict[str, Callable[[], tuple[Any, Any, Tensor]]] = {
    "mlp": lambda: (*make_functional(mlp(16, 32, 8, 3)), torch.randn(6, 16)),
    "cnn": lambda: (*make_functional(cnn(4, 3)), torch.randn(6, 1, 8, 8)),
}
QUESTIONS: dict[str, Callable[[JacobianOperator], Any]] = {
    "materialize": lambda J: J.materialize(),
    "gram": lambda J: J.gram(),
    "mv": lambda J: J @ torch.ones(J.shape[1]),
    "rmv": lambda J: J.T @ torch.ones(J.shape[0]),
    "row_norms": lambda J: J.row_norms(),
    "normal": lambda J: J.normal(),
}


@pytest.mark.parametrize(
    ("method", "net"),
    [
        pytest.param(method, net, marks=() if method == "quasilinear" else pytest.mark.slow)
        for method in METHODS
        for net in NETS
    ],
)
def test_peaks(method: str, net: str) -> None:
    fn, params, x = NETS[net]()

    def make(budget: int) -> JacobianOperator:
        return jacobian_operator(fn, params, x, in_dims=(None, 0), method=method, memory=budget)

    smallest = smallest_budget(make)
    over = []
    for factor in (1.5, 6):
        budget = int(factor * smallest)
        make(budget)  # plans, and learns the structure
        with PeakBytes() as counter:
            J = make(budget)
        assert counter.peak <= budget
        for name, ask in QUESTIONS.items():
            with PeakBytes() as counter:
                result = ask(J)
            beyond = J.source.held + counter.peak_beyond(leaves_of(result))
            if beyond > budget:
                over.append(f"{name}: {beyond / budget:.2f} of {budget}")
    assert not over, over
