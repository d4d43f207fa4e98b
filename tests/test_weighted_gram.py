"""Inner products with weights on the columns, against dense rows in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jacfn import jacobian_operator, make_functional
from jacfn.operator.weighted import weighted_gram

F64 = torch.float64


def swapped(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["W"]) @ p["V"] + p["b"]


def twice(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return p["W"] @ torch.tanh(p["W"] @ x)


def works() -> dict[str, tuple[Any, Any, Tensor]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)).double()
    table = nn.Sequential(nn.Embedding(6, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3)).double()
    square = {"W": torch.randn(4, 4, dtype=F64)}
    plain = {"W": torch.randn(5, 7, dtype=F64), "V": torch.randn(7, 3, dtype=F64), "b": torch.randn(3, dtype=F64)}
    return {
        "mlp": (*make_functional(mlp), torch.randn(6, 5, dtype=F64)),
        "cnn": (*make_functional(cnn), torch.randn(4, 2, 6, 6, dtype=F64)),
        "table": (*make_functional(table), torch.randint(6, (5, 3))),
        "weights on the right": (swapped, plain, torch.randn(6, 5, dtype=F64)),
        "one weight twice": (twice, square, torch.randn(6, 4, dtype=F64)),
    }


@pytest.mark.parametrize("work", works())
@pytest.mark.parametrize("method", ["quasilinear", "rev", "products"])
@pytest.mark.parametrize("chunk_size", [None, 2, 7])
def test_as_of_dense_rows(work: str, method: Any, chunk_size: int | None) -> None:
    fn, params, x = works()[work]
    J = jacobian_operator(fn, params, x, in_dims=(None, 0), method=method, chunk_size=chunk_size, differentiable=False)
    w = torch.rand(J.shape[1], dtype=F64)
    dense = J.materialize()
    pieces = [stack[0] for stack in J.columns.stacks(w.unsqueeze(0))]
    torch.testing.assert_close(weighted_gram(J.source, pieces), dense * w @ dense.T, rtol=1e-10, atol=1e-12)
    chosen = J.restrict(rows=torch.tensor([4, 0, 3]))
    rows = dense[[4, 0, 3]]
    torch.testing.assert_close(weighted_gram(chosen.source, pieces), rows * w @ rows.T, rtol=1e-10, atol=1e-12)
