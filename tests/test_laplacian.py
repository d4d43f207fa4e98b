"""laplacian, partial and hessian_diag: results, composition, samples, directions, budgets, what rules cannot follow."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from helpers import Square, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import differences
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import jacfn
from jacfn import JacfnError, JacfnTypeError, JacfnValueError, Probes, hessian_diag, laplacian, partial
from jacfn._memory import PeakBytes


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W, V = randn(5, 3), randn(2, 5, seed=1)


def net(x: Tensor) -> Tensor:
    """``(3,) -> (2,)``."""
    return V @ torch.tanh(W @ x)


def net_laplacian(x: Tensor) -> Tensor:
    """In closed form."""
    y = torch.tanh(W @ x)
    return V @ (-2 * y * (1 - y * y) * W.square().sum(1))


def by_differences(fn, x: Tensor) -> Tensor:
    """Second derivatives by each element, last."""
    units = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    return torch.stack([differences(fn, (x,), (unit,))[1] for unit in units], -1)


# --- values


def test_closed_form() -> None:
    x = randn(3)
    torch.testing.assert_close(laplacian(net, strict=True)(x), net_laplacian(x))
    xs = randn(7, 3)
    expected = torch.stack([net_laplacian(x) for x in xs])
    torch.testing.assert_close(laplacian(net, in_dims=0, strict=True)(xs), expected)
    torch.testing.assert_close(laplacian(net, in_dims=1)(xs.T), expected)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=1, max_size=3),
    samples=st.sampled_from([None, 1, 3]),
    chunk_size=st.sampled_from([None, 1, 2, 5]),
)
def test_pytrees_samples_and_chunks(shapes, samples, chunk_size) -> None:
    lead = () if samples is None else (samples,)
    tree = {f"x{i}": randn(*lead, *shape, seed=i) for i, shape in enumerate(shapes)}
    shift = randn(*lead, 2, seed=9)

    def fn(scale: float, tree: dict[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
        total = sum((leaf.sin() * (i + 1)).sum() for i, leaf in enumerate(tree.values()))
        return {"product": scale * total * total * shift, "first": tree["x0"] ** 3}

    in_dims = None if samples is None else (None, 0, 0)
    options = {"argnums": 1, "in_dims": in_dims, "chunk_size": chunk_size}
    lap, (value, jac) = laplacian(fn, return_value=True, **options)(2.0, tree, shift)
    diagonal = hessian_diag(fn, **options)(2.0, tree, shift)
    for n in range(samples or 1):
        one = {name: leaf if samples is None else leaf[n] for name, leaf in tree.items()}
        at = shift if samples is None else shift[n]
        expected = 2 * at * 0
        for i, (name, leaf) in enumerate(one.items()):
            total = sum((part.sin() * (j + 1)).sum() for j, part in enumerate(one.values()))
            slope = (i + 1) * leaf.cos()
            second = 2 * slope.square() - 2 * total * (i + 1) * leaf.sin()  # of the squared total
            expected = expected + 2.0 * at * second.sum()
            got = diagonal["product"][name] if samples is None else diagonal["product"][name][n]
            torch.testing.assert_close(got, 2.0 * at.reshape(2, *(1,) * leaf.ndim) * second)
            got = jac["product"][name] if samples is None else jac["product"][name][n]
            torch.testing.assert_close(got, 2.0 * at.reshape(2, *(1,) * leaf.ndim) * 2 * total * slope)
        torch.testing.assert_close(lap["product"] if samples is None else lap["product"][n], expected)
        first = lap["first"] if samples is None else lap["first"][n]
        torch.testing.assert_close(first, 6 * one["x0"])
    plain = fn(2.0, tree, shift) if samples is None else vmap(fn, (None, 0, 0))(2.0, tree, shift)
    torch.testing.assert_close(value, plain)


def test_several_arguments() -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        return (a**2 * b.sum()).sum() + b[0] ** 4

    a, b = randn(3), randn(2)
    torch.testing.assert_close(laplacian(fn, argnums=(0, 1))(a, b), 6 * b.sum() + 12 * b[0] ** 2)
    torch.testing.assert_close(laplacian(fn, argnums=1)(a, b), 12 * b[0] ** 2)
    _, (_, jac) = laplacian(fn, argnums=(0, 1), return_value=True)(a, b)
    torch.testing.assert_close(jac, torch.func.jacrev(fn, argnums=(0, 1))(a, b))


def test_parameters_with_samples() -> None:
    module = mlp(3, 4, 1).double()
    fn, params = jacfn.make_functional(module)
    xs = randn(5, 3)
    lap = laplacian(lambda p, x: fn(p, x)[0], in_dims=(None, 0))(params, xs)
    for n, x in enumerate(xs):
        flat = torch.cat([p.reshape(-1) for p in params.values()])

        def of_flat(w: Tensor, x: Tensor = x) -> Tensor:
            parts = torch.split(w, [p.numel() for p in params.values()])
            return fn({k: q.reshape(p.shape) for (k, p), q in zip(params.items(), parts, strict=True)}, x)[0]

        torch.testing.assert_close(lap[n], by_differences(of_flat, flat).sum(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("return_value", [False, True])
def test_aux(return_value: bool) -> None:
    def fn(x: Tensor) -> tuple[Tensor, dict]:
        return x**3, {"double": 2 * x, "name": "cube", "constant": torch.ones(2)}

    x = randn(3)
    result = laplacian(fn, has_aux=True, return_value=return_value)(x)
    lap, aux = (result[0], result[1][2]) if return_value else result
    torch.testing.assert_close(lap, 6 * x)
    assert aux["name"] == "cube"
    torch.testing.assert_close(aux["double"], 2 * x)
    assert type(aux["double"]) is Tensor
    if return_value:
        torch.testing.assert_close(result[1][0], x**3)
        torch.testing.assert_close(result[1][1], torch.diag(3 * x * x))


def test_outputs_that_do_not_depend() -> None:
    x = randn(3)
    lap, (value, jac) = laplacian(lambda x: {"c": torch.ones(2), "x": x}, return_value=True)(x)
    assert torch.equal(lap["c"], torch.zeros(2))
    assert torch.equal(lap["x"], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(jac["c"], torch.zeros(2, 3))
    assert torch.equal(jac["x"], torch.eye(3, dtype=torch.float64))
    assert torch.equal(value["x"], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = randn(3)
    got = laplacian(lambda x: torch.sin(x).prod() * 2.0)(x.to(dtype))
    assert got.dtype == dtype
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), -6 * torch.sin(x).prod(), rtol=tolerance, atol=tolerance)


# --- directions


def test_directions() -> None:
    x = randn(3)
    second = by_differences(net, x)
    close = {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(laplacian(net, directions=1)(x), second[:, 1], **close)
    torch.testing.assert_close(laplacian(net, directions=slice(1, 3))(x), second[:, 1:].sum(1), **close)
    index = torch.tensor([2, 0])
    lap, (_, jac) = laplacian(net, directions=index, return_value=True)(x)
    torch.testing.assert_close(lap, second[:, index].sum(1), **close)
    torch.testing.assert_close(jac, torch.func.jacrev(net)(x)[:, index])
    vectors = randn(4, 3, seed=3)
    along = torch.stack([differences(net, (x,), (v,))[1] for v in vectors])
    torch.testing.assert_close(laplacian(net, directions=vectors)(x), along.sum(0), **close)
    weights = randn(4, seed=4)
    expected = torch.tensordot(weights, along, 1)
    for chunk_size in (None, 1, 3):
        got = laplacian(net, directions=vectors, weights=weights, chunk_size=chunk_size)(x)
        torch.testing.assert_close(got, expected, **close)
    torch.testing.assert_close(laplacian(net, weights=0.5)(x), 0.5 * second.sum(1), **close)
    tree = {"a": x, "b": randn(2)}
    directions = {"a": vectors, "b": torch.zeros(4, 2, dtype=torch.float64)}
    got = laplacian(lambda t: net(t["a"]) + t["b"] ** 2, directions=directions)(tree)
    torch.testing.assert_close(got, along.sum(0), **close)
    by_leaf = laplacian(lambda t: net(t["a"]) + t["b"] ** 2, directions={"a": [0], "b": slice(0)})
    with pytest.raises(JacfnError):
        by_leaf(tree)
    some = {"a": torch.tensor([0]), "b": slice(0, 0)}
    got = laplacian(lambda t: net(t["a"]) + t["b"] ** 2, directions=some)(tree)
    torch.testing.assert_close(got, second[:, 0], **close)
    assert torch.equal(laplacian(net, directions=slice(0, 0))(x), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_probes(distribution: str) -> None:
    torch.manual_seed(0)
    x = randn(3)
    estimates = laplacian(net, in_dims=0, directions=Probes(500, distribution))(x.expand(40, 3))
    assert not torch.equal(estimates[0], estimates[1])  # every sample has its own
    mean, error = estimates.mean(0), estimates.std(0) / math.sqrt(40)
    assert bool(((mean - net_laplacian(x)).abs() < 4 * error).all())
    assert laplacian(net, directions=Probes(2, distribution), weights=3.0)(x).shape == (2,)
    square = laplacian(lambda x: (x * x).sum(), directions=Probes(3))(x)  # without variance for a diagonal Hessian
    torch.testing.assert_close(square, torch.tensor(6.0, dtype=torch.float64))


# --- partial


@pytest.mark.parametrize("in_dims", [None, 0])
def test_partial(in_dims) -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.stack([x[0] ** 3 * x[1] ** 2 * x[2], torch.sin(x).prod()])

    x = randn(3)
    a, b, c = x
    sines = torch.sin(x).prod()
    cot = 1 / torch.tan(x)
    expected = {
        (0,): [3 * a**2 * b**2 * c, sines * cot[0]],
        (0, 0): [6 * a * b**2 * c, -sines],
        (0, 1): [6 * a**2 * b * c, sines * cot[0] * cot[1]],
        (2, -2): [2 * a**3 * b, sines * cot[2] * cot[1]],
        (0, 0, 1): [12 * a * b * c, -sines * cot[1]],
        (1, 0, 0): [12 * a * b * c, -sines * cot[1]],
        (0, 1, 2): [6 * a**2 * b, sines * cot.prod()],
        (0, 0, 0): [6 * b**2 * c, -sines * cot[0]],
    }
    points = x if in_dims is None else torch.stack([x, x])
    for places, wanted in expected.items():
        got = partial(fn, places, in_dims=in_dims)(points)
        torch.testing.assert_close(got if in_dims is None else got[1], torch.stack(wanted))


def test_partial_by_arguments() -> None:
    def heat(t: Tensor, x: Tensor) -> tuple[Tensor, str]:
        return torch.exp(-t) * torch.sin(x[0]) * x[1], "aux"

    t, x = torch.tensor(0.3, dtype=torch.float64), randn(2)
    for places, wanted in {
        (0,): -heat(t, x)[0],
        (1, 1): -heat(t, x)[0],
        (0, 2): -torch.exp(-t) * torch.sin(x[0]),
        (0, 1, 2): -torch.exp(-t) * torch.cos(x[0]),
    }.items():
        got, aux = partial(heat, places, argnums=(0, 1), has_aux=True)(t, x)
        torch.testing.assert_close(got, wanted)
        assert aux == "aux"
    torch.testing.assert_close(partial(lambda t: t**3, 0)(t), 3 * t**2)


def test_errors_of_partial() -> None:
    with pytest.raises(JacfnValueError, match=r"places must name one to 3 derivatives, got 4"):
        partial(net, (0, 0, 0, 0))
    with pytest.raises(JacfnTypeError, match="places must be a sequence of ints"):
        partial(net, "ab")
    with pytest.raises(JacfnTypeError, match="places must be a sequence of ints"):
        partial(net, (0.5,))
    with pytest.raises(JacfnValueError, match=r"places must lie in \[-3, 3\)"):
        partial(net, (0, 3))(randn(3))


# --- derivatives of a Laplacian


class Net(nn.Module):
    """With a normalisation, whose third derivatives PyTorch gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def loss_by_differences(module: Net, params: dict[str, Tensor], xs: Tensor) -> Tensor:
    """The mean squared Laplacian, in second differences alone."""

    def value(x: Tensor) -> Tensor:
        return functional_call(module, params, (x,))

    return torch.stack([by_differences(value, x).sum() for x in xs]).square().mean()


def test_gradient_by_parameters() -> None:
    module, xs = Net(), randn(4, 3)
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return laplacian(lambda x: functional_call(module, params, (x,)), in_dims=0)(xs).square().mean()

    wanted = {}
    for name, p in params.items():
        direction = randn(*p.shape, seed=len(name))

        def along(t: Tensor, name: str = name, p: Tensor = p, direction: Tensor = direction) -> Tensor:
            return loss_by_differences(module, {**params, name: p + t * direction}, xs)

        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        wanted[name] = (direction, differences(along, (zero,), (one,))[0])
    by_grad = grad(loss)(params)
    laplacian(module, in_dims=0)(xs).square().mean().backward()
    passed = grad(
        lambda p: laplacian(lambda p, x: functional_call(module, p, (x,)), 1, in_dims=(None, 0))(p, xs).square().mean()
    )(params)
    by_jvp = {
        name: jvp(lambda q, n=name: loss({**params, n: q}), (params[name],), (wanted[name][0],))[1] for name in params
    }
    for name, (direction, slope) in wanted.items():
        recorded = module.get_parameter(name).grad
        for got in (by_grad[name], torch.zeros_like(slope) if recorded is None else recorded, passed[name]):
            torch.testing.assert_close((got * direction).sum(), slope, rtol=1e-6, atol=1e-8)
        _, by_jvp = jvp(lambda q, name=name: loss({**params, name: q}), (params[name],), (direction,))
        torch.testing.assert_close(by_jvp, slope, rtol=1e-6, atol=1e-8)


def test_transforms_around() -> None:
    xs = randn(4, 3)
    expected = torch.stack([net_laplacian(x) for x in xs])
    torch.testing.assert_close(vmap(laplacian(net))(xs), expected)
    torch.testing.assert_close(vmap(laplacian(net, in_dims=0))(xs[None]), expected[None])
    scaled = vmap(lambda s: laplacian(lambda x: s * net(x))(xs[0]))(randn(3))  # closed over, and mapped
    torch.testing.assert_close(scaled, randn(3)[:, None] * expected[0])
    jacobian = torch.func.jacrev(net_laplacian)(xs[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd, jacfn.jac_rev, jacfn.jac_fwd):
        torch.testing.assert_close(transform(laplacian(net))(xs[0]), jacobian)
    torch.testing.assert_close(torch.func.hessian(laplacian(net))(xs[0]), torch.func.hessian(net_laplacian)(xs[0]))
    got = vmap(torch.func.jacrev(laplacian(net)))(xs)
    torch.testing.assert_close(got, vmap(torch.func.jacrev(net_laplacian))(xs))


def test_laplacian_of_a_laplacian() -> None:
    x = randn(3)
    expected = laplacian(net_laplacian, strict=True)(x)
    torch.testing.assert_close(laplacian(laplacian(net, strict=True), strict=True)(x), expected)
    torch.testing.assert_close(vmap(laplacian(laplacian(net)))(x[None])[0], expected)
    torch.testing.assert_close(laplacian(laplacian(net), in_dims=0)(x[None])[0], expected)
    module = Net()
    wanted = by_differences(lambda x: by_differences(module, x).sum(), x).sum()
    torch.testing.assert_close(laplacian(laplacian(module))(x), wanted.detach(), rtol=1e-4, atol=1e-4)


def test_detached() -> None:
    module, x = Net(), randn(3).requires_grad_()
    assert laplacian(module)(x).requires_grad
    assert not laplacian(module, differentiable=False)(x).requires_grad
    with torch.no_grad():
        assert not laplacian(module)(x).requires_grad
    for result in laplacian(module, return_value=True, differentiable=False)(x)[1]:
        assert not result.requires_grad


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled(fullgraph: bool) -> None:
    """By the gradient. (PyTorch cannot trace the forward derivative of a constant matrix times a vector.)"""

    def rows(x: Tensor) -> Tensor:
        return torch.tanh(x @ W.T) @ V.T

    xs = randn(4, 3)
    compiled = torch.compile(lambda xs: laplacian(rows, in_dims=0)(xs) * 2, backend="aot_eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(xs), 2 * torch.stack([net_laplacian(x) for x in xs]))


# --- what fn may do


def test_branches_on_values() -> None:
    def fn(x: Tensor) -> Tensor:
        return x.square().sum() if x.sum() > 0 else (x**3).sum()

    x = randn(3).abs()
    assert laplacian(fn, strict=True)(x) == 6
    torch.testing.assert_close(laplacian(fn, strict=True)(-x), -6 * x.sum())


def test_changes_in_place() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x.sin()
        y += x * x
        y.mul_(2).relu_()
        y[0] = x[1] * x[1]
        return y.sum()

    def through_a_view(x: Tensor) -> Tensor:
        y = x.sin()
        y[:2].mul_(2)
        z = y.view(3, 1)
        y *= x
        return z.square().sum()

    def into_a_constant(x: Tensor) -> Tensor:
        y = torch.zeros(3, dtype=x.dtype)
        y[1:] = x[:2].sin()
        return y.square().sum()

    x = randn(3).abs()
    close = {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(laplacian(fn, strict=True)(x), by_differences(fn, x).sum(), **close)
    torch.testing.assert_close(laplacian(through_a_view)(x), by_differences(through_a_view, x).sum(), **close)
    torch.testing.assert_close(laplacian(into_a_constant)(x), by_differences(into_a_constant, x).sum(), **close)


def test_changes_of_constants_in_place() -> None:
    """First derivatives are made when they are asked for, by when a constant may have another value."""

    def late(x: Tensor) -> Tensor:
        scale = torch.ones(3, dtype=x.dtype)
        y = x * scale
        scale.mul_(2)
        return (y.sin() * scale).sum()

    def weight(x: Tensor) -> Tensor:
        w = W.clone()
        y = torch.nn.functional.linear(x, w)
        w.zero_()
        return y.sin().sum()

    def integrate(x: Tensor) -> Tensor:
        t = torch.zeros((), dtype=x.dtype)
        for _ in range(5):
            x = x + 0.1 * torch.sin(x * t)
            t += 0.1
        return x.sum()

    x = randn(3)
    for fn in (late, weight, integrate):
        wanted = by_differences(fn, x).sum()
        torch.testing.assert_close(laplacian(fn, strict=True)(x), wanted, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(laplacian(fn, in_dims=0, strict=True)(x[None])[0], wanted, rtol=1e-7, atol=1e-8)


def test_autocast() -> None:
    module, x = mlp(3, 8, 1), torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = laplacian(module, strict=True)(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), laplacian(module)(x), rtol=0.1, atol=0.02)


def test_constants() -> None:
    def without_grad(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = (x * x).sum()
        return (scale * x * x).sum()

    x = randn(3)
    for fn in (
        without_grad,
        lambda x: ((x * x).detach().sum() * x * x).sum(),
        lambda x: ((x * x).sum().item() * x * x).sum(),
    ):
        torch.testing.assert_close(laplacian(fn, strict=True)(x), 6 * (x * x).sum())


def test_transforms_inside(caplog: pytest.LogCaptureFixture) -> None:
    """What is differentiated may come into them by closure, where they would take it for a constant."""
    x, w = randn(3), randn(3, seed=2)

    def by_vmap(x: Tensor) -> Tensor:
        return vmap(lambda t: t * x.sin())(w).sum()

    def by_hessian(w: Tensor) -> Tensor:
        return torch.func.hessian(lambda x: (w * x**3).sum().sin())(x).trace()

    def by_grad(w: Tensor) -> Tensor:
        return grad(lambda x: (w * w * x**3).sum())(x).sum()

    for fn in (by_vmap, by_hessian, by_grad):
        with caplog.at_level(logging.WARNING, "jacfn"):
            got = laplacian(fn)(x)
        torch.testing.assert_close(got, by_differences(fn, x).sum(), rtol=1e-6, atol=1e-7)
        assert "by the gradient of fn" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jacfn"):
            laplacian(fn)(x)  # said once
        assert caplog.text == ""
        with pytest.raises(JacfnError, match="strict: fn is not covered by rules: "):
            laplacian(fn, strict=True)(x)


def test_laplacian_inside() -> None:
    """Of a network by its input, then by its weights."""
    xs = randn(4, 3)

    def fn(w: Tensor) -> Tensor:
        return torch.stack([laplacian(lambda x: torch.tanh(w @ x).sum(), strict=True)(x) for x in xs]).square().sum()

    def mapped(w: Tensor) -> Tensor:
        return laplacian(lambda x: torch.tanh(w @ x).sum(), in_dims=0)(xs).square().sum()

    wanted = by_differences(lambda w: fn(w).detach(), W).sum()
    torch.testing.assert_close(laplacian(fn, strict=True)(W), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(laplacian(mapped)(W), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("in_dims", [None, (None, 0)])
def test_inside_a_jacobian(in_dims) -> None:
    """The residuals of a differential equation: a Laplacian by the input, differentiated by the weights."""
    fn, params = jacfn.make_functional(mlp(2, 8, 1).double())

    def residual(params, x: Tensor) -> Tensor:
        return laplacian(lambda x: fn(params, x)[0], strict=True)(x) + fn(params, x)[0]

    x = randn(5, 2) if in_dims else randn(2)
    wanted = jacfn.jac_rev(residual, in_dims=in_dims)(params, x)
    for transform in (jacfn.jac_fwd, jacfn.jac_quasilinear):
        for name, leaf in transform(residual, in_dims=in_dims)(params, x).items():
            torch.testing.assert_close(leaf, wanted[name])


def test_custom_function() -> None:
    x = randn(3)
    torch.testing.assert_close(laplacian(lambda x: Square.apply(x.sin()).sum())(x), 2 * (2 * x).cos().sum())
    with pytest.raises(JacfnError, match="the custom autograd.Function Square"):
        laplacian(lambda x: Square.apply(x).sum(), strict=True)(x)


def test_random_functions() -> None:
    def fn(x: Tensor) -> Tensor:
        return (torch.rand_like(x) * x * x).sum()

    with pytest.raises(RuntimeError, match="randomness"):
        laplacian(fn, in_dims=0)(randn(4, 3))
    different = laplacian(fn, in_dims=0, randomness="different")(randn(4, 3))
    assert len(set(different.tolist())) == 4
    same = laplacian(fn, in_dims=0, randomness="same")(randn(4, 3))
    assert len(set(same.tolist())) == 1


# --- memory


def wide() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return mlp(20, 256, 256, 1), torch.randn(512, 20)


@pytest.mark.parametrize("budget", [2 << 20, 8 << 20])
def test_budgets(budget: int) -> None:
    module, xs = wide()
    expected = laplacian(module, in_dims=0, differentiable=False)(xs)
    within = laplacian(module, in_dims=0, memory=budget, differentiable=False)
    within(xs)  # plans, on tensors without memory
    with PeakBytes() as tracker:
        got = within(xs)
    torch.testing.assert_close(got, expected)
    assert tracker.peak <= budget + got.nbytes


def test_default_blocks_are_small() -> None:
    module, xs = wide()
    with PeakBytes() as tracker:
        laplacian(module, in_dims=0, differentiable=False)(xs)
    assert tracker.peak < 16 << 20  # one stack of all samples' derivatives has 10 MiB, and several are alive


def test_default_blocks_draw_no_numbers() -> None:
    module, xs = wide()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    laplacian(nn.Sequential(module, nn.Dropout(0.5).eval()), in_dims=0)(xs)
    assert torch.equal(before, torch.get_rng_state())


# --- errors


def test_errors() -> None:
    x = randn(3)
    with pytest.raises(JacfnValueError, match=r"weights must have the shape \(3,\)"):
        laplacian(net, weights=torch.ones(2))(x)
    with pytest.raises(JacfnTypeError, match="weights must be a number or a floating-point tensor"):
        laplacian(net, weights=torch.ones(3, dtype=torch.int64))(x)
    with pytest.raises(JacfnValueError, match=r"directions .*must be a stack of shape \(S, 3\), got \(2, 4\)"):
        laplacian(net, directions=torch.ones(2, 4, dtype=torch.float64))(x)
    with pytest.raises(JacfnTypeError, match="directions .*must have dtype"):
        laplacian(net, directions=torch.ones(2, 3))(x)
    with pytest.raises(JacfnValueError, match=r"directions must lie in \[-3, 3\)"):
        laplacian(net, directions=5)(x)
    with pytest.raises(JacfnValueError, match="Probes: count must be a positive int"):
        Probes(0)
    with pytest.raises(JacfnValueError, match="Probes: distribution must be"):
        Probes(3, "uniform")  # type: ignore[arg-type]
    with pytest.raises(JacfnTypeError, match="only floating-point tensors"):
        laplacian(net)(torch.ones(3, dtype=torch.int64))
    with pytest.raises(JacfnTypeError, match="complex"):
        laplacian(lambda x: torch.complex(x, x))(x)
    with pytest.raises(RuntimeError, match="mat1|size mismatch|shape"):
        laplacian(net)(randn(4))
