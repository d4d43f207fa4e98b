"""What the tests of operators share: functions, their dense Jacobians by torch alone, what is asked of an operator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import Shared, cnn, mlp
from torch import Tensor, nn
from torch.nn import functional as F

import jacfn
from jacfn import JacobianOperator, jacobian_operator, make_functional

D = torch.float64
METHODS = ("quasilinear", "rev", "fwd", "products")


class Case(NamedTuple):
    """A function of ``(params, sample)``, and samples."""

    fn: Callable[..., Any]
    params: Any
    x: Tensor


class Tagger(nn.Module):
    """Embedding, recurrence, attention: ``(T,)`` token numbers, or ``(N, T)``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.table(tokens)
        y = self.norm(y + self.attention(y, y, y, need_weights=False)[0])
        return self.head(y.mean(-2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def _of(net: nn.Module, *shape: int, tokens: int = 0) -> Callable[[int], Case]:
    fn, params = make_functional(net.to(D))

    def case(n: int) -> Case:
        torch.manual_seed(1)
        x = torch.randint(tokens, (n, *shape)) if tokens else torch.randn(n, *shape, dtype=D)
        return Case(fn, params, x)

    return case


def _without_form(n: int) -> Case:
    """Leaves that enter linearly, linearly and not, only by a square, and not at all."""
    torch.manual_seed(2)
    params = {name: torch.randn(3, 3, dtype=D) for name in ("linear", "both", "squared")}
    params["unused"] = torch.ones(2, dtype=D)

    def fn(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(F.linear(x, p["linear"]).sin(), p["both"]) * p["both"].pow(2).sum() + p["squared"].pow(2) @ x

    return Case(fn, params, torch.randn(n, 3, dtype=D))


def _several_outputs(n: int) -> Case:
    """Nested parameters, outputs of several shapes."""
    torch.manual_seed(3)
    params = {"b": (torch.randn(2, 3, dtype=D), torch.randn(2, dtype=D)), "a": [torch.randn((), dtype=D)]}

    def fn(p: Any, x: Tensor) -> Any:
        y = F.linear(x, *p["b"]).tanh() * p["a"][0]
        return {"scalar": y.sum(), "matrix": (y.outer(x), y.sin())}

    return Case(fn, params, torch.randn(n, 3, dtype=D))


torch.manual_seed(0)
CASES: dict[str, Callable[[int], Case]] = {
    "mlp": _of(mlp(3, 4, 2), 3),
    "cnn": _of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 2, stride=2), nn.Flatten()), 1, 6, 6),
    "pooled cnn": _of(cnn(2, 2), 1, 8, 8),
    "layer norm": _of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), 3),
    "positions": _of(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten()), 4, 2),
    "tied": _of(Shared(3), 3),
    "embedding": _of(nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), nn.Linear(9, 2)), 3, tokens=6),
    "attention": _of(Tagger(), 3, tokens=5),
    "lstm": _of(Recurrent(), 3, 2),
    "without closed form": _without_form,
    "several outputs": _several_outputs,
}


HEAVY = ("attention", "lstm", "pooled cnn")
PAIRS = [(name, method) for name in CASES for method in METHODS if method == "quasilinear" or name not in HEAVY]


def flat_leaves(tree: Any) -> list[Tensor]:
    """Leaves in the order of insertion."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in flat_leaves(part)]


def ravel(tree: Any, samples: int | None = None) -> Tensor:
    """A vector; samples are outermost."""
    leaves = flat_leaves(tree)
    if samples is None:
        return torch.cat([leaf.reshape(-1) for leaf in leaves])
    rows = [leaf.reshape(samples, leaf[0].numel() if samples else 0) for leaf in leaves]
    return torch.cat(rows, 1).reshape(-1)


def dense(case: Case) -> Tensor:
    """``(M, P)``, sample by sample by plain reverse mode."""
    leaves = flat_leaves(case.params)

    def fn(vector: Tensor, sample: Tensor) -> Tensor:
        parts = torch.split(vector, [leaf.numel() for leaf in leaves])
        new = iter([part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])
        return ravel(case.fn(_rebuilt(case.params, new), sample))

    vector = ravel(case.params)
    rows = [torch.autograd.functional.jacobian(lambda v, s=s: fn(v, s), vector) for s in case.x]
    return torch.cat(rows) if rows else vector.new_zeros(0, vector.numel())


def _rebuilt(tree: Any, leaves: Any) -> Any:
    if isinstance(tree, Tensor):
        return next(leaves)
    if isinstance(tree, dict):
        return {key: _rebuilt(part, leaves) for key, part in tree.items()}
    return type(tree)(_rebuilt(part, leaves) for part in tree)


def operator(case: Case, method: str = "auto", **options: Any) -> JacobianOperator:
    """Over the samples."""
    return jacobian_operator(case.fn, case.params, case.x, in_dims=(None, 0), method=method, **options)


def smallest_budget(make: Callable[[int], Any]) -> int:
    """The least bytes (to a few percent) that ``make`` gets along with."""
    try:
        make(1)
    except jacfn.JacfnValueError as error:
        found = re.search(r"needs ([\d.e+-]+) MiB", str(error))
    assert found is not None
    budget = int(float(found[1]) * 2**20 * 4 / 3) + 64  # a quarter is for what is done with the rows
    while True:
        try:
            make(budget)
        except jacfn.JacfnValueError:
            budget = int(budget * 1.1)
        else:
            return budget


def close(actual: Tensor, expected: Tensor, what: str = "", scale: float = 1.0) -> None:
    """To rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-9 * scale, atol=1e-10 * scale, msg=lambda m: f"{what}: {m}")


class Question(NamedTuple):
    """What an operator is asked, and the same of the dense matrix."""

    ask: Callable[[JacobianOperator], Tensor]
    answer: Callable[[Tensor], Tensor]


def some(*shape: int, seed: int = 7) -> Tensor:
    """The same numbers every time."""
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).standard_normal(shape)))  # also inside vmap


def _weights(m: int) -> Tensor:
    return some(m, seed=8)


QUESTIONS: dict[str, Question] = {
    "materialize": Question(lambda J: J.materialize(), lambda A: A),
    "gram": Question(lambda J: J.gram(), lambda A: A @ A.T),
    "gram of two": Question(lambda J: J.gram(J), lambda A: A @ A.T),
    "normal": Question(lambda J: J.normal(), lambda A: A.T @ A),
    "weighted normal": Question(lambda J: J.normal(_weights(J.shape[0])), lambda A: (A.T * _weights(len(A))) @ A),
    "row_norms": Question(lambda J: J.row_norms(), lambda A: A.norm(dim=1)),
    "column_norms": Question(lambda J: J.column_norms(), lambda A: A.norm(dim=0)),
    "J @ v": Question(lambda J: J @ some(J.shape[1]), lambda A: A @ some(A.shape[1])),
    "J @ V": Question(lambda J: J @ some(J.shape[1], 3), lambda A: A @ some(A.shape[1], 3)),
    "J.T @ u": Question(lambda J: J.T @ some(J.shape[0]), lambda A: A.T @ some(len(A))),
    "J.T @ U": Question(lambda J: J.T @ some(J.shape[0], 3), lambda A: A.T @ some(len(A), 3)),
    "ggn_mv": Question(
        lambda J: J.ggn_mv(some(J.shape[1]), _weights(J.shape[0])),
        lambda A: A.T @ (_weights(len(A)) * (A @ some(A.shape[1]))),
    ),
    "ggn_diagonal": Question(
        lambda J: J.ggn_diagonal(_weights(J.shape[0])), lambda A: (A.T * _weights(len(A)) @ A).diagonal()
    ),
    "leaves": Question(
        lambda J: torch.cat([leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for _, leaf in J.leaves()], 1),
        lambda A: A,
    ),
}


def check_all(J: JacobianOperator, A: Tensor, what: str = "", names: tuple[str, ...] = tuple(QUESTIONS)) -> None:
    """Every question has the dense matrix's answer."""
    assert J.shape == tuple(A.shape), what
    for name in names:
        ask, answer = QUESTIONS[name]
        close(ask(J), answer(A), f"{what} {name}", scale=1 + A.abs().max().item() if A.numel() else 1)


def from_blocks(J: JacobianOperator, **options: Any) -> Tensor:
    """Put together from :meth:`blocks`, each row once."""
    out = torch.full(J.shape, torch.nan, dtype=J.dtype)
    seen = torch.zeros(J.shape[0], dtype=torch.long)
    for rows, block in J.blocks(**options):
        seen[rows] += 1
        out[rows] = block
    assert (seen == 1).all()
    return out
