"""Rules for reductions and running reductions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jets import by_jets, check

from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

vector_norm = torch.linalg.vector_norm

# No two elements are so close that differences would change their order; none is zero.
X = (torch.randperm(24, generator=torch.Generator().manual_seed(1)).double().reshape(2, 3, 4) - 11.3) / 3

CASES = {
    "sum": lambda x: x.sum((0, -1)) ** 2,
    "mean": lambda x: x.mean(1, keepdim=True) ** 2,
    "amax": lambda x: x.amax(1, keepdim=True) * x.amax((0, -1), keepdim=True) * x.amax(),
    "amin": lambda x: x.amin(-1) * x.amin((0, 1)).sum(),
    "aminmax": lambda x: torch.aminmax(x, dim=1).min * torch.aminmax(x).max,
    "max": lambda x: x.max() * x.max(1).values * x.max(-2, keepdim=True).values,
    "min": lambda x: x.min() * x.min(1).values * x.min(-2, keepdim=True).values,
    "argmax": lambda x: x.argmax(1) * x.sum(1),
    "sort": lambda x: x.sort(1).values * x.sort(descending=True).values,
    "sort, stable": lambda x: x.sort(stable=True, dim=0).values * x,
    "msort": lambda x: torch.msort(x) * x,
    "argsort": lambda x: x.argsort(1) * x,
    "topk": lambda x: x.topk(2, 1).values * x.topk(2, -2, largest=False).values,
    "kthvalue": lambda x: x.kthvalue(2).values * x.kthvalue(2, -1, keepdim=True).values.sum(-1),
    "kthvalue along the first": lambda x: x.kthvalue(1, 0).values * x.sum(0),
    "median": lambda x: x.median() * x.median(1).values * x.median(-2, keepdim=True).values.sum(-2),
    "nanmedian": lambda x: x.nanmedian() * x.nanmedian(1).values,
    "mode": lambda x: x.mode(1).values * x.sum(1),
    "cummax": lambda x: x.cummax(1).values * x.cummax(-1).values,
    "cummin": lambda x: x.cummin(1).values * x.cummin(-1).values,
    "cumsum": lambda x: x.cumsum(1) * x.cumsum(-1),
    "prod": lambda x: (x / 3).prod(),
    "prod along one": lambda x: x.prod(1) + x.prod(-2, keepdim=True),
    "prod along the last": lambda x: x.prod(-1),
    "prod of a cube": lambda x: torch.cat([x, x, x], 1)[:, :7].prod(1),
    "cumprod": lambda x: x.cumprod(1) + x.cumprod(-2),
    "cumprod along the last": lambda x: (x / 2).cumprod(-1),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True) * x.logsumexp((0, -1), keepdim=True),
    "logsumexp of all": lambda x: x.logsumexp((0, 1, 2)),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "logcumsumexp along the last": lambda x: torch.cat([x, x + 1], -1).logcumsumexp(-1),
    "var": lambda x: x.var() * x.var(1).sum() * x.var((0, -1), correction=2, keepdim=True),
    "var, biased": lambda x: x.var(-1, unbiased=False),
    "var_mean": lambda x: torch.prod(torch.stack(torch.var_mean(x, (0, 1), correction=0)), 0),
    "std": lambda x: x.std() * x.std(1).sum() * x.std((0, -1), correction=2, keepdim=True),
    "std_mean": lambda x: torch.prod(torch.stack(torch.std_mean(x, -1, keepdim=True)), 0),
    "cov": lambda x: torch.cov(x[0]) + x[0].cov(correction=0),
    "cov of one": lambda x: torch.cov(x[0, 0]),
    "corrcoef": lambda x: torch.corrcoef(x[1]),
    "norm": lambda x: x.norm() * x.norm(dim=1) * torch.linalg.norm(x, dim=(0, 1)).sum(),
    "norm, p=1": lambda x: vector_norm(x, 1, -1) ** 2 * x.norm(p=1),
    "norm, p=3": lambda x: vector_norm(x, 3, 1, keepdim=True) * vector_norm(x, 3.0),
    "norm, p=1.5": lambda x: vector_norm(x - 9, 1.5, (0, -1)),
    "norm, p=½": lambda x: vector_norm(x - 9, 0.5, (1, 2)),
    "norm, p=-2": lambda x: vector_norm(x + 9, -2, 1),
    "norm, p=0": lambda x: vector_norm(x, 0, 1) * x.sum(1),
    "norm, p=∞": lambda x: vector_norm(x, math.inf, 1) ** 2,
    "norm, p=-∞": lambda x: vector_norm(x, -math.inf, -1, keepdim=True) ** 2,
    "norm of a matrix": lambda x: torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(x, 1),
    "dist": lambda x: (
        torch.dist(x, x.sin()) * torch.dist(x, x.square(), p=3) * torch.dist(x[0], torch.ones(4).double())
    ),
    "renorm": lambda x: torch.renorm(x, 2, 0, 1.5),
    "nansum": lambda x: x.nansum(1) * x.nansum(),
    "nanmean": lambda x: x.nanmean(1) * x.nanmean(),
    "count_nonzero": lambda x: x.count_nonzero(1) * x.sum(1),
    "quantile": lambda x: x.quantile(0.3, 1) * x.quantile(0.8),
    "quantiles": lambda x: x.quantile(torch.tensor([0.3, 0.6], dtype=x.dtype), -1),
    "trapezoid": lambda x: torch.trapezoid(x, dim=1) ** 2,
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x, dim=1) ** 2,
    "diff": lambda x: torch.diff(x, dim=1) ** 2,
    "any": lambda x: (x > 0).any(1) * x.sum(1),
}


@pytest.mark.parametrize("name", CASES)
def test_reduction(name):
    check(CASES[name], X)


def test_a_histogram_has_no_derivatives():
    first, second = _at(lambda x: torch.histc(x, 3) * x.sum(), X)
    assert first.tolist() == [24 * 8] * 3
    assert second.tolist() == [0, 0, 0]


WITHOUT_AXES = {
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(-1),
    "amax": lambda x: x.amax(),
    "max": lambda x: x.max(),
    "max along one": lambda x: x.max(0).values,
    "sort": lambda x: x.sort().values,
    "topk": lambda x: x.topk(1, 0).values,
    "kthvalue": lambda x: x.kthvalue(1).values,
    "median": lambda x: x.median(-1, keepdim=True).values,
    "cummax": lambda x: x.cummax(0).values,
    "prod": lambda x: x.prod(),
    "prod along one": lambda x: x.prod(0, keepdim=True),
    "cumprod": lambda x: x.cumprod(0),
    "logsumexp": lambda x: x.logsumexp(0),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "var": lambda x: x.var(correction=0),
    "norm": lambda x: x.norm(),
    "norm, p=3": lambda x: vector_norm(x, 3),
}


@pytest.mark.parametrize("name", WITHOUT_AXES)
def test_reduction_of_a_tensor_without_axes(name):
    function = WITHOUT_AXES[name]
    check(lambda x: function(x) * x, torch.tensor(1.3, dtype=torch.float64))


@pytest.mark.parametrize("zeros", [[], [3], [0, 5], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", ["prod", "cumprod"])
def test_products_with_zeros(name, zeros):
    x = torch.linspace(-1.2, 1.7, 7, dtype=torch.float64)
    x[zeros] = 0
    function = {"prod": torch.prod, "cumprod": lambda x: x.cumprod(0)}[name]
    check(function, x)

    def second(x):
        stack = torch.ones_like(x)[None]
        return by_jets(function, (x,), (stack,), Sum(), Engine(recording=True, depth=0))[2].sum()

    gradient, step = torch.func.grad(second)(x), 1e-4 * torch.eye(7, dtype=x.dtype)
    wanted = [(second(x + e) - second(x - e)) / 2e-4 for e in step]
    torch.testing.assert_close(gradient, torch.stack(wanted), rtol=1e-6, atol=1e-6)


def _at(function, x):
    """First and second derivatives along ones."""
    engine = Engine(recording=True, depth=0)
    _, first, second = by_jets(function, (x,), (torch.ones_like(x)[None],), Sum(), engine)
    return first[0], second


@pytest.mark.parametrize(
    "function",
    [torch.linalg.vector_norm, lambda x: vector_norm(x, 3), lambda x: vector_norm(x, 1), lambda x: x.std()],
)
def test_zeros_have_the_derivatives_that_pytorch_gives_them(function):
    x = torch.zeros(4, dtype=torch.float64)
    first, second = _at(function, x)
    assert first == torch.func.grad(function)(x).sum() == 0
    assert second == 0
    assert torch.func.grad(lambda x: _at(function, x)[1])(x).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "function", [torch.amax, torch.amin, torch.max, torch.median, lambda x: vector_norm(x, math.inf)]
)
def test_equal_elements_share_as_pytorch_has_it(function):
    x, v = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64), torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    _, first, second = by_jets(function, (x,), (v,), Sum(), Engine(recording=False, depth=0))
    assert first[0] == pytest.approx((torch.func.grad(function)(x) * v[0]).sum().item())
    assert second == 0


def test_logsumexp_far_out():
    x = torch.tensor([[-math.inf, 1.0], [-math.inf, -math.inf], [800.0, -800.0]], dtype=torch.float64)
    first, second = _at(lambda x: x.logsumexp(1), x)
    assert first.tolist() == [1, 0, 1]
    assert second.tolist() == [0, 0, 0]
    first, second = _at(lambda x: x.logcumsumexp(1), x)
    assert first[:, 1].tolist() == [1, 1, 1]
    assert (second == 0).all()


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), axis=st.integers(-3, 2), keepdim=st.booleans())
def test_any_axis(shape, axis, keepdim):
    axis = axis % (2 * len(shape)) - len(shape)
    x = torch.randperm(math.prod(shape)).reshape(shape).double() / 5 - 1.1

    def function(x):
        parts = [x.amax(axis, keepdim), x.prod(axis, keepdim), x.logsumexp(axis, keepdim), x.norm(3, axis, keepdim)]
        return torch.stack([*parts, x.max(axis, keepdim).values, x.var(axis, correction=0, keepdim=keepdim)]).square()

    check(function, x, count=1)
