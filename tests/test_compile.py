"""jac_quasilinear under torch.compile(fullgraph=True): compiled equals eager, which the other tests hold to oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import jac_quasilinear, make_functional


class Attention(nn.Module):
    """One block with causal attention by hand, pre-norm, an embedding and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.packed, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions
        q, k, v = self.packed(self.norm(x)).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head((x + self.out(mixed.transpose(1, 2).reshape(x.shape))).mean(1))


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)


def cnn() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 2)), torch.randn(4, 3, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randint(0, 7, (4, 5))


def encoder() -> tuple[nn.Module, Tensor]:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), torch.randn(3, 4, 4)


def batch_norm() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 2)).eval(), torch.randn(
        3, 2, 5
    )


network = pytest.mark.parametrize("make", [mlp, cnn, transformer, encoder, batch_norm])


def check(transform: Callable[..., Any], *args: Any, backend: str = "aot_eager") -> None:
    torch._dynamo.reset()
    compiled = torch.compile(transform, fullgraph=True, backend=backend, dynamic=False)
    torch.testing.assert_close(compiled(*args), transform(*args), rtol=1e-4, atol=1e-5)


@network
def test_traced(make) -> None:
    module, x = make()
    fn, params = make_functional(module)
    check(jac_quasilinear(fn, in_dims=(None, 0)), params, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@network
def test_compiled_by_inductor(make) -> None:
    module, x = make()
    fn, params = make_functional(module)
    check(jac_quasilinear(fn, in_dims=(None, 0)), params, x, backend="inductor")


def test_chunks_and_value() -> None:
    fn, params = make_functional(mlp()[0])
    x = torch.randn(5, 3)
    transform = jac_quasilinear(fn, in_dims=(None, 0), chunk_size=2, return_value=True)
    check(transform, params, x)


def test_an_ensemble_of_parameters() -> None:
    fn, params = make_functional(mlp()[0])
    stacked = {name: torch.stack([leaf, leaf.cos()]) for name, leaf in params.items()}
    check(torch.func.vmap(jac_quasilinear(fn, in_dims=(None, 0)), (0, None)), stacked, torch.randn(5, 3))


def test_a_gradient_of_the_jacobian() -> None:
    fn, params = make_functional(mlp()[0])

    def penalty(params: dict[str, Tensor], x: Tensor) -> Tensor:
        jac = jac_quasilinear(fn, in_dims=(None, 0))(params, x)
        return sum(leaf.square().sum() for leaf in jac.values())

    check(torch.func.grad(penalty), params, torch.randn(5, 3))
