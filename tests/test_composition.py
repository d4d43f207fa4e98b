"""Transforms of transforms, graphs through results, and the second derivatives that PyTorch gets wrong."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same, finite_differences, mlp, ravel, unravel
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import JacfnError, jac_fwd, jac_rev, make_functional, pullback, pushforward
from jacfn._exact import ALWAYS, MAPPED, NESTED
from jacfn._exact.underived import UNDERIVED
from jacfn._torch import base_tensor, custom_function_call, weight_norm

pytestmark = pytest.mark.usefixtures("float64")

TRANSFORMS = pytest.mark.parametrize("transform", [jac_rev, jac_fwd])
CLOSE = {"rtol": 1e-8, "atol": 1e-10}

Function = Callable[[Tensor], Tensor]  # from a vector to a vector

# --- nesting --------------------------------------------------------------------------------------

WEIGHT = torch.linspace(0.3, 1.7, 100_000, dtype=torch.float64)


def _weighted_sum(fn: Function) -> Function:
    return lambda x: (y := fn(x)) @ WEIGHT[: y.numel()]


def _direction(x: Tensor) -> Tensor:
    return WEIGHT[: x.numel()]


# Every transform as an operator from vector functions to vector functions.
OURS: dict[str, Callable[[Function], Function]] = {
    "jac_rev": lambda fn: lambda x: jac_rev(fn)(x).reshape(-1),
    "jac_rev chunked": lambda fn: lambda x: jac_rev(fn, chunk_size=2)(x).reshape(-1),
    "jac_fwd": lambda fn: lambda x: jac_fwd(fn)(x).reshape(-1),
    "jac_fwd chunked": lambda fn: lambda x: jac_fwd(fn, chunk_size=2)(x).reshape(-1),
    "pullback": lambda fn: lambda x: pullback(fn, (x,), _direction(fn(x).detach())[None])[0].reshape(-1),
    "pushforward": lambda fn: lambda x: pushforward(fn, (x,), (_direction(x)[None],)).reshape(-1),
    "samples": lambda fn: lambda x: jac_rev(fn, in_dims=0)(torch.stack([x, 2 * x])).reshape(-1),
    "samples fwd": lambda fn: lambda x: jac_fwd(fn, in_dims=0)(torch.stack([x, 2 * x])).reshape(-1),
}
THEIRS: dict[str, Callable[[Function], Function]] = {
    "vmap": lambda fn: lambda x: torch.func.vmap(fn)(torch.stack([x, 2 * x])).reshape(-1),
    "grad": lambda fn: torch.func.grad(_weighted_sum(fn)),
    "jvp": lambda fn: lambda x: torch.func.jvp(fn, (x,), (_direction(x),))[1],
    "vjp": lambda fn: lambda x: (r := torch.func.vjp(fn, x))[1](_direction(r[0]))[0],
    "jacrev": lambda fn: lambda x: torch.func.jacrev(fn)(x).reshape(-1),
    "jacfwd": lambda fn: lambda x: torch.func.jacfwd(fn)(x).reshape(-1),
    "hessian": lambda fn: lambda x: torch.func.hessian(_weighted_sum(fn))(x).reshape(-1),
}


def _plain(fn: Function, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(fn, x, create_graph=True)


# The same operators by nested plain backward passes.
_WHOLE = dict.fromkeys(
    ["jac_rev", "jac_rev chunked", "jac_fwd", "jac_fwd chunked", "jacrev", "jacfwd"],
    lambda fn: lambda x: _plain(fn, x).reshape(-1),
)
_ROW = dict.fromkeys(["pullback", "grad", "vjp"], lambda fn: lambda x: (J := _plain(fn, x)).T @ WEIGHT[: len(J)])
_COLUMN = dict.fromkeys(["pushforward", "jvp"], lambda fn: lambda x: _plain(fn, x) @ _direction(x))
_SAMPLES = dict.fromkeys(
    ["samples", "samples fwd"],
    lambda fn: lambda x: torch.stack([_plain(fn, x), _plain(lambda x: fn(2 * x), x) / 2]).reshape(-1),
)
ORACLES: dict[str, Callable[[Function], Function]] = {
    **_WHOLE,
    **_ROW,
    **_COLUMN,
    **_SAMPLES,
    "vmap": lambda fn: lambda x: torch.cat([fn(x), fn(2 * x)]),
    "hessian": lambda fn: lambda x: _plain(ORACLES["grad"](fn), x).reshape(-1),
}


def _base(x: Tensor) -> Tensor:
    return torch.stack([x[0].sin() * x[1].cos(), (x[0] * x[1]).exp()])


def _nest(table: dict[str, Callable[[Function], Function]], names: tuple[str, ...]) -> Function:
    fn = _base
    for name in reversed(names):
        fn = table[name](fn)
    return fn


EVERY = OURS | THEIRS
PAIRS = [pair for pair in itertools.product(EVERY, repeat=2) if set(pair) & set(OURS)]
TRIPLES = [triple for triple in itertools.product(EVERY, repeat=3) if set(triple) & set(OURS)]
FEW = random.Random(0).sample(TRIPLES, 30)


def _check(names: tuple[str, ...]) -> None:
    x = torch.tensor([0.4, -0.7])
    torch.testing.assert_close(_nest(EVERY, names)(x), _nest(ORACLES, names)(x), **CLOSE)


@pytest.mark.parametrize("names", PAIRS, ids=" of ".join)
def test_pairs(names: tuple[str, ...]) -> None:
    _check(names)


@pytest.mark.parametrize("names", FEW, ids=" of ".join)
def test_triples(names: tuple[str, ...]) -> None:
    _check(names)


@pytest.mark.slow
@pytest.mark.parametrize("outer", EVERY)
def test_all_triples(outer: str) -> None:
    for names in TRIPLES:
        if names[0] == outer:
            _check(names)


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_ensembles(transform: Any, chunk_size: int | None) -> None:
    """vmap over parameters outside, samples inside."""
    fn, params = make_functional(mlp(2, 3, 2).double())
    ensemble = {name: torch.stack([value, 2 * value, -value]) for name, value in params.items()}
    x = torch.randn(4, 2)
    call = transform(fn, in_dims=(None, 0), chunk_size=chunk_size)
    expected = torch.func.vmap(torch.func.vmap(torch.func.jacrev(fn), (None, 0)), (0, None))(ensemble, x)
    assert_same(torch.func.vmap(call, (0, None))(ensemble, x), expected, **CLOSE)


@TRANSFORMS
def test_outer_transforms_reach_every_result(transform: Any) -> None:
    """Value and aux are differentiated by an outer transform, too."""

    def results(x: Tensor) -> Tensor:
        jac, (value, aux) = transform(lambda x: (x**3, {"aux": x**2}), has_aux=True, return_value=True, chunk_size=2)(x)
        return jac.sum() + value.sum() + aux["aux"].sum()

    x = torch.randn(3)
    torch.testing.assert_close(torch.func.grad(results)(x), 6 * x + 3 * x**2 + 2 * x)
    torch.testing.assert_close(torch.func.jacfwd(results)(x), 6 * x + 3 * x**2 + 2 * x)


@TRANSFORMS
def test_random_outer_vmap(transform: Any) -> None:
    """The outer vmap decides over its own samples."""
    draw = lambda x: F.dropout(x, 0.5)  # noqa: E731
    x = torch.ones(4, 30)
    inner = transform(draw, randomness="same")
    same = torch.func.vmap(inner, randomness="same")(x)
    different = torch.func.vmap(inner, randomness="different")(x)
    assert (same == same[0]).all()
    assert len({tuple(jac.diagonal().tolist()) for jac in different}) == 4
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(inner)(x)


# --- graphs through results -----------------------------------------------------------------------


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
@pytest.mark.parametrize("in_dims", [None, (None, 0)])
@pytest.mark.parametrize("tracked", ["w", "x", "both"])
def test_backward_through_results(transform: Any, chunk_size: int | None, in_dims: Any, tracked: str) -> None:
    def fn(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(w @ x), (w * x).sum().sin()

    def loss(transform: Any, w: Tensor, x: Tensor) -> Tensor:
        jac = transform(w, x)
        weights = itertools.count(1)
        return sum(((leaf**2).sum() * next(weights) for pair in jac for leaf in pair), torch.zeros(()))

    w, x = torch.randn(3, 2), torch.randn(*([4] if in_dims else []), 2)
    theirs = torch.func.jacrev(fn, (0, 1))
    theirs = torch.func.vmap(theirs, in_dims) if in_dims else theirs
    expected = torch.func.grad(lambda w, x: loss(theirs, w, x), (0, 1))(w, x)
    w.requires_grad_(tracked != "x")
    x.requires_grad_(tracked != "w")
    ours = transform(fn, (0, 1), in_dims=in_dims, chunk_size=chunk_size)
    loss(ours, w, x).backward()
    for tensor, grad in zip((w, x), expected, strict=True):
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, grad)


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 4])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_closed_over_parameters(transform: Any, chunk_size: int | None, in_dims: int | None) -> None:
    w = torch.randn(3, requires_grad=True)
    x = torch.randn(*([4] if in_dims == 0 else []), 3)
    jac = transform(lambda x: w**2 * x.sin(), in_dims=in_dims, chunk_size=chunk_size)(x)
    assert jac.requires_grad
    jac.sum().backward()
    torch.testing.assert_close(w.grad, (2 * w * x.cos().reshape(-1, 3).sum(0)).detach())


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_closed_over_parameter_that_meets_some_leaves(chunk_size: int) -> None:
    """Columns of one leaf are tracked and those of the other are not, also when a chunk holds both."""
    w = torch.tensor(2.0, requires_grad=True)
    a, b = torch.randn(3), torch.randn(3)
    for_a, for_b = jac_fwd(lambda a, b: w * a**2 + b**3, (0, 1), chunk_size=chunk_size)(a, b)
    torch.testing.assert_close(for_a, torch.diag(4 * a))
    torch.testing.assert_close(for_b, torch.diag(3 * b**2))
    for_a.sum().backward()
    torch.testing.assert_close(w.grad, 2 * a.sum())


@TRANSFORMS
@pytest.mark.parametrize("in_dims", [None, 0])
def test_keyword_that_requires_grad(transform: Any, in_dims: int | None) -> None:
    w = torch.randn(3, requires_grad=True)
    x = torch.zeros(3) if in_dims is None else torch.zeros(2, 3)
    transform(lambda x, *, w: w * x.sin(), in_dims=in_dims)(x, w=w).sum().backward()
    torch.testing.assert_close(w.grad, torch.full((3,), 1.0 if in_dims is None else 2.0))


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_detached_results(transform: Any, chunk_size: int | None, in_dims: int | None) -> None:
    """differentiable=False: nothing of the result is tracked, whatever requires grad."""
    w = torch.randn(3, requires_grad=True)
    x = torch.randn(*([4] if in_dims == 0 else []), 3, requires_grad=True)
    options = {"in_dims": in_dims, "chunk_size": chunk_size, "has_aux": True, "return_value": True}
    fn = lambda x: (w * x.sin(), x * w)  # noqa: E731
    jac, (value, aux) = transform(fn, **options, differentiable=False)(x)
    tracked, (tracked_value, _) = transform(fn, **options)(x)
    assert tracked.requires_grad
    assert tracked_value.requires_grad
    assert not any(tensor.requires_grad for tensor in (jac, value, aux))
    torch.testing.assert_close(jac, tracked.detach())


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_detached_results_record_nothing(transform: Any, chunk_size: int | None, in_dims: int | None) -> None:
    """Also the derivatives of custom functions are right where nothing is recorded."""
    w = torch.randn(3, requires_grad=True)
    x = torch.randn(*([4] if in_dims == 0 else []), 3, requires_grad=True)
    recorded = set()

    def fn(x: Tensor) -> Tensor:
        y = w * _Sine.apply(x)
        recorded.add(base_tensor(y).requires_grad)
        return y

    options = {"in_dims": in_dims, "chunk_size": chunk_size}
    jac = transform(fn, **options, differentiable=False)(x)
    assert recorded == {False}
    torch.testing.assert_close(jac, torch.diag_embed(w * x.cos()).detach())
    transform(fn, **options)(x)
    assert recorded == {False, True}


@TRANSFORMS
def test_detached_inside_transforms(transform: Any) -> None:
    inner = transform(lambda x: x**3, differentiable=False, chunk_size=2)
    outer = lambda x: (inner(x).sum() * x).sum()  # noqa: E731
    x = torch.randn(3)
    constant = (3 * x**2).sum()
    torch.testing.assert_close(torch.func.grad(outer)(x), constant.expand(3))
    torch.testing.assert_close(torch.func.jacfwd(outer)(x), constant.expand(3))
    y = x.clone().requires_grad_()
    outer(y).backward()
    torch.testing.assert_close(y.grad, constant.expand(3))


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_no_graph_without_grad_mode(transform: Any, chunk_size: int | None, in_dims: int | None) -> None:
    w = torch.randn(3, requires_grad=True)
    x = torch.randn(*([4] if in_dims == 0 else []), 3, requires_grad=True)
    call = transform(lambda x: w * x.sin(), in_dims=in_dims, chunk_size=chunk_size, return_value=True)
    expected = call(x)[0].detach()
    with torch.no_grad():
        jac, value = call(x)
    assert not jac.requires_grad
    assert not value.requires_grad
    torch.testing.assert_close(jac, expected)
    with torch.inference_mode():
        torch.testing.assert_close(call(x.detach())[0], expected)


@TRANSFORMS
def test_inference_tensors(transform: Any) -> None:
    with torch.inference_mode():
        x = torch.randn(3)
    torch.testing.assert_close(transform(torch.sin)(x), torch.diag(x.cos()))


@TRANSFORMS
def test_no_graph_without_need(transform: Any) -> None:
    jac, value = transform(torch.sin, return_value=True)(torch.randn(3))
    assert not jac.requires_grad
    assert not value.requires_grad


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
def test_compiled(transform: Any, chunk_size: int | None) -> None:
    x = torch.randn(2, 3)
    fn = lambda x: x.sin() * x.sum()  # noqa: E731
    compiled = torch.compile(transform(fn, in_dims=0, chunk_size=chunk_size), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.func.vmap(torch.func.jacrev(fn))(x))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(3, 4, 2), (3,)),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)),
        (1, 6, 6),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)), (3,)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks(net: str) -> None:
    module, shape = NETS[net]
    fn, params = make_functional(module().double())
    call = jac_rev(fn, in_dims=(None, 0))
    x = torch.randn(4, *shape)
    assert_same(torch.compile(call, fullgraph=True, backend="aot_eager")(params, x), call(params, x), **CLOSE)


@TRANSFORMS
@pytest.mark.filterwarnings("ignore")
def test_compiled_replacements(transform: Any) -> None:
    """The tables are looked up while compiling, too: PyTorch alone gets these two wrong here."""
    fn = lambda x: torch.det(x)[None] + torch.lu_solve(x, *torch.linalg.lu_factor(x + SHIFT)).reshape(-1)  # noqa: E731
    call = transform(fn, in_dims=0)
    x = torch.diag(torch.tensor([1.0, 2.0, 0.0])).expand(3, 3, 3) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="eager")(x), call(x))


# --- derivatives that PyTorch gets wrong ----------------------------------------------------------

# The derivative formulas of some operations take what was saved from the forward pass for constants. A second
# derivative then misses terms, silently: of a forward derivative by either mode, or of any by vmap. Other operations
# have a wrong batching rule, or a wrong forward derivative, so that already the first is wrong.
SHIFT = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3).sin()
STATISTICS = (torch.linspace(-1, 1, 3, dtype=torch.float64), torch.linspace(0.5, 2, 3, dtype=torch.float64))
TRAINING = (None, None, None, None, True, 0.1, 1e-5, False)
POINT = torch.tensor([0.5, -1.2, 0.3, 0.9, -0.4, 1.1, 0.2, -0.8, 0.7], dtype=torch.float64)
SAMPLES = torch.stack([POINT, 0.9 * POINT, POINT.flip(0)])  # as many as the matrices have rows: rules may mix them up
UNBATCHED = pytest.mark.filterwarnings(  # of PyTorch itself
    "ignore:There is a performance drop:UserWarning",
    "ignore:torch.(lu_solve|triangular_solve) is deprecated:UserWarning",
)


def _square(x: Tensor) -> Tensor:
    return x.reshape(3, 3) + 3 * torch.eye(3)


def _definite(x: Tensor) -> Tensor:
    return _square(x) @ _square(x).mT


def _lu_solve(x: Tensor, **options: bool) -> Tensor:
    return torch.linalg.lu_solve(*torch.linalg.lu_factor(_square(x)), x.reshape(3, 3), **options)


def _reflections(x: Tensor) -> Tensor:
    return _square(x).tril(-1)


GROUPS = torch.tensor([0, 1, 1, 2, 2, 2, 0, 0, 1])


def _sparse(x: Tensor) -> bool:
    """Not in plain backward passes, the oracles, which cannot take sparse gradients further."""
    return base_tensor(x) is not x


def _with_zeros(x: Tensor) -> Tensor:
    """Two of them at POINT."""
    return (x - POINT[2]) * (x - POINT[3])


class _Sine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * tangent

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * cotangent


# Right where several derivatives are under way, since jacfn replaces them there.
MENDED: dict[Any, Function] = {
    F.layer_norm: lambda x: F.layer_norm(x.reshape(3, 3), (3,), x[:3], x[3:6]),
    torch.layer_norm: lambda x: torch.layer_norm(x.reshape(3, 3), (3, 3)),
    F.instance_norm: lambda x: F.instance_norm(x.reshape(1, 3, 3), weight=x[:3], bias=x[3:6]),
    torch.det: lambda x: torch.det(_square(x)),
    torch.linalg.det: lambda x: torch.linalg.det(_square(x)),
    Tensor.det: lambda x: _square(x).det(),
    torch.logdet: lambda x: torch.logdet(_square(x)),
    Tensor.logdet: lambda x: _square(x).logdet(),
    torch.slogdet: lambda x: torch.slogdet(-_square(x))[1],
    torch.linalg.slogdet: lambda x: torch.linalg.slogdet(_square(x)).logabsdet,
    Tensor.slogdet: lambda x: _square(x).slogdet()[1],
    torch.linalg.solve: lambda x: torch.linalg.solve(_square(x), SHIFT),
    torch.linalg.solve_ex: lambda x: torch.linalg.solve_ex(_square(x), SHIFT)[0],
    torch.linalg.tensorsolve: lambda x: torch.linalg.tensorsolve(_square(x), SHIFT[0]),
    torch.linalg.lu_solve: _lu_solve,
    torch.lu_solve: lambda x: torch.lu_solve(x.reshape(3, 3), *torch.linalg.lu_factor(_square(x))),
    Tensor.lu_solve: lambda x: x.reshape(3, 3).lu_solve(*torch.linalg.lu_factor(_square(x))),
    torch.triangular_solve: lambda x: torch.triangular_solve(SHIFT, _square(x))[0],
    Tensor.triangular_solve: lambda x: x.reshape(3, 3).triangular_solve(_square(x), upper=False).solution,
    torch.linalg.householder_product: lambda x: torch.linalg.householder_product(_reflections(x), x[:3]),
    torch.orgqr: lambda x: torch.orgqr(_reflections(x), x[:3]),
    Tensor.orgqr: lambda x: _reflections(x).orgqr(x[:3]),
    weight_norm: lambda x: weight_norm(x.reshape(3, 3), x[:3].reshape(3, 1), 0),
    F.glu: lambda x: F.glu(x[:8].reshape(2, 4)),
    torch.cumprod: lambda x: torch.cumprod(_with_zeros(x), 0),
    Tensor.cumprod: lambda x: _with_zeros(x).reshape(3, 3).cumprod(-1),
    Tensor.cumprod_: lambda x: _with_zeros(x).cumprod_(0),
    torch.scatter_reduce: lambda x: torch.scatter_reduce(torch.ones(3), 0, GROUPS, _with_zeros(x), "prod"),
    Tensor.scatter_reduce: lambda x: x[:3].sin().scatter_reduce(0, GROUPS, _with_zeros(x), "prod"),
    Tensor.scatter_reduce_: lambda x: x[:3].sin().scatter_reduce_(0, GROUPS, x, "prod", include_self=False),
}
LAYER = (False, 1, 0.0, False, False, False)


def _states(x: Tensor, *layers: int) -> tuple[Tensor, Tensor]:
    state = x[:6].reshape(*layers, -1, 2)[..., : 1 if layers else 3, :]
    return state.sin(), state.cos()


def _gates(rows: int) -> list[Tensor]:
    weight = torch.linspace(-1, 1, 5 * rows, dtype=torch.float64).reshape(5, rows)
    return [weight[:3].mT, weight[3:].mT]


# Wrong in PyTorch, too: right here, or refused.
def _of_special(name: str) -> Function:
    """Of an argument where the function is smooth, of degree three if it is a polynomial."""
    degrees = (3,) if "polynomial" in name else ()
    return lambda x: getattr(torch.special, name)(0.3 + 0.2 * x.sin(), *degrees)


OTHERS: dict[Any, Function] = {
    torch.native_layer_norm: lambda x: torch.native_layer_norm(x.reshape(3, 3), (3,), None, None, 1e-5)[0],
    F.batch_norm: lambda x: F.batch_norm(x.reshape(3, 3), None, None, x[:3], x[3:6], training=True),
    torch.batch_norm: lambda x: torch.batch_norm(x.reshape(3, 3), *TRAINING),
    torch.native_batch_norm: lambda x: torch.native_batch_norm(x.reshape(3, 3), *TRAINING[:-1])[0],
    torch.instance_norm: lambda x: torch.instance_norm(x.reshape(1, 3, 3), *TRAINING),
    torch.cholesky_solve: lambda x: torch.cholesky_solve(SHIFT, torch.linalg.cholesky(_definite(x))),
    Tensor.cholesky_solve: lambda x: SHIFT.cholesky_solve(torch.linalg.cholesky(_definite(x)).mT, upper=True),
    torch.cholesky_inverse: lambda x: torch.cholesky_inverse(torch.linalg.cholesky(_definite(x))),
    Tensor.cholesky_inverse: lambda x: torch.linalg.cholesky(_definite(x)).mT.cholesky_inverse(upper=True),
    torch.cdist: lambda x: torch.cdist(x.reshape(3, 3), SHIFT),
    torch.prelu: lambda x: F.prelu(x.reshape(3, 3), x[:1]),
    custom_function_call: _Sine.apply,
    torch.lstm: lambda x: torch.lstm(x.reshape(3, 1, 3), _states(x, 1), _gates(8), *LAYER)[0],
    torch.gru: lambda x: torch.gru(x.reshape(3, 1, 3), _states(x, 1)[0], _gates(6), *LAYER)[0],
    torch.rnn_tanh: lambda x: torch.rnn_tanh(x.reshape(3, 1, 3), _states(x, 1)[0], _gates(2), *LAYER)[0],
    torch.rnn_relu: lambda x: torch.rnn_relu(x.reshape(3, 1, 3), _states(x, 1)[0], _gates(2), *LAYER)[0],
    torch.lstm_cell: lambda x: torch.lstm_cell(x.reshape(3, 3), _states(x), *_gates(8))[0],
    torch.gru_cell: lambda x: torch.gru_cell(x.reshape(3, 3), SHIFT[:, :2], *_gates(6)),
    torch.rnn_tanh_cell: lambda x: torch.rnn_tanh_cell(x.reshape(3, 3), SHIFT[:, :2], *_gates(2)),
    torch.rnn_relu_cell: lambda x: torch.rnn_relu_cell(x.reshape(3, 3), SHIFT[:, :2], *_gates(2)),
    F.embedding_bag: lambda x: F.embedding_bag(GROUPS[:6].reshape(2, 3), x.reshape(3, 3).sin()),
    F.embedding: lambda x: F.embedding(GROUPS[:3], x.reshape(3, 3).sin(), sparse=_sparse(x)),
    torch.embedding: lambda x: torch.embedding(x.reshape(3, 3).sin(), GROUPS[:3], sparse=_sparse(x)),
    F.hardsigmoid: lambda x: F.hardsigmoid(x.sin()) ** 2,
    torch.linalg.eig: lambda x: torch.linalg.eig(_definite(x)).eigenvalues.real ** 2,
    torch.linalg.eigvals: lambda x: torch.linalg.eigvals(_definite(x)).real ** 2,
    torch.select_scatter: lambda x: torch.select_scatter(x.reshape(3, 3).sin(), x[:3], 1, -1),
    Tensor.select_scatter: lambda x: x.reshape(3, 3).sin().select_scatter(x[:3], 0, 1),
}
# Without derivatives in PyTorch, which takes them for zero.
SPECIAL: dict[Any, Function] = {
    op: _of_special(op.__name__.removeprefix("special_"))
    for op in ALWAYS
    if "bessel" in op.__name__ or op.__name__.removeprefix("special_") in UNDERIVED.split()
}
REPLACED = ALWAYS | MAPPED | NESTED
# Close to what is wrong.
NEIGHBOURS: dict[str, Function] = {
    "batch_norm in eval mode": lambda x: F.batch_norm(x.reshape(3, 3) ** 2, *STATISTICS),
    "group_norm": lambda x: F.group_norm(x.reshape(3, 3), 1),
    "rms_norm": lambda x: F.rms_norm(x.reshape(3, 3), (3,)),
    "local_response_norm": lambda x: F.local_response_norm(x.reshape(1, 3, 3), 2),
    "normalize": lambda x: F.normalize(x.reshape(3, 3)),
    "several determinants": lambda x: torch.stack([_square(x).det(), _square(x * x).logdet()]),
    "solve from the right": lambda x: torch.linalg.solve(_square(x), SHIFT, left=False),
    "solve for a vector": lambda x: torch.linalg.solve(_square(x), SHIFT[0]),
    "solve_ex from the right": lambda x: torch.linalg.solve_ex(_square(x), SHIFT, left=False)[0],
    "tensorsolve with axes": lambda x: torch.linalg.tensorsolve(_square(x).reshape(3, 1, 3), SHIFT[:1], dims=(0,)),
    "lu_solve from the right": lambda x: _lu_solve(x, left=False),
    "lu_solve with the adjoint": lambda x: _lu_solve(x, adjoint=True),
    "lu_solve with the adjoint from the right": lambda x: _lu_solve(x, left=False, adjoint=True),
    "triangular_solve with the transpose": lambda x: torch.triangular_solve(
        SHIFT, _square(x), transpose=True, unitriangular=True
    )[0],
    "tall householder_product": lambda x: torch.linalg.householder_product(_reflections(x)[:, :2], x[:2]),
    "householder_product of one reflection": lambda x: torch.linalg.householder_product(_reflections(x), x[:1]),
    "householder_product of none": lambda x: torch.linalg.householder_product(_reflections(x), (x - POINT)[:3]),
    "several householder_products": lambda x: torch.linalg.householder_product(
        torch.stack([_reflections(x), _reflections(x * x)]), x[:6].reshape(2, 3)
    ),
    "weight_norm along the last axis": lambda x: weight_norm(x.reshape(3, 3), x[:3].reshape(1, 3), 1),
    "weight_norm of a vector": lambda x: weight_norm(x + 3, x.cos(), 0),
    "weight_norm of the whole": lambda x: weight_norm(x.reshape(3, 3), x[0], -1),
    "product of groups": lambda x: (
        x[:4].reshape(2, 2).scatter_reduce(1, GROUPS[:6].reshape(2, 3) % 2, x[3:].reshape(2, 3), "prod")
    ),
    "mean of groups": lambda x: x[:3].sin().scatter_reduce(0, GROUPS, x * x, "mean"),
    "inv": lambda x: torch.linalg.inv(_square(x)),
    "pinv": lambda x: torch.linalg.pinv(_square(x)),
    "lstsq": lambda x: torch.linalg.lstsq(_square(x), SHIFT)[0],
    "cholesky": lambda x: torch.linalg.cholesky(_definite(x)),
    "cholesky_solve": lambda x: torch.cholesky_solve(SHIFT, torch.linalg.cholesky(_definite(x))),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(_square(x) + _square(x).mT),
    "svdvals": lambda x: torch.linalg.svdvals(_square(x)),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x.reshape(3, 3)),
    "softmax": lambda x: x.softmax(0),
    "logsumexp": lambda x: x.logsumexp(0),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(1, 3, 3)] * 3),
    "gelu": F.gelu,
    "prelu": lambda x: F.prelu(x, x[:1]),
}
# Wrong in PyTorch from the first derivative on, by one mode or under vmap: right here, or refused.
WRONG_AT_ONCE: dict[str, Function] = {
    "cdist": lambda x: torch.cdist(x.reshape(3, 3), SHIFT),
    "cdist of order 1": lambda x: torch.cdist(SHIFT, x.reshape(3, 3), p=1),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(_definite(x))),
}


def _scalar(fn: Function) -> Function:
    """A sum with second derivatives of every kind."""
    return lambda x: (y := fn(x).reshape(-1)).mul(WEIGHT[: y.numel()]).sin().sum()


def _gradient(fn: Function, x: Tensor) -> Tensor:
    """By a plain backward pass, which is right."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(fn(leaf), leaf)[0]


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@functools.cache
def _jacobian(fn: Function) -> Tensor:
    return finite_differences(fn, POINT)


@functools.cache
def _hessian(fn: Function) -> Tensor:
    return finite_differences(lambda x: _gradient(_scalar(fn), x), POINT)


def _jvps(fn: Function) -> Function:
    return lambda x: torch.stack([torch.func.jvp(fn, (x,), (v,))[1] for v in torch.eye(len(x))])


def _pushed(fn: Function) -> Function:
    return lambda x: pushforward(fn, (x,), (torch.eye(len(x)),))


def _backward(fn: Function) -> Function:
    def rows(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.stack([torch.autograd.grad(row, leaf, retain_graph=True)[0] for row in fn(leaf)])

    return rows


def _gradients(fn: Function) -> Function:
    return lambda x: torch.stack([torch.func.grad(lambda x, i=i: fn(x)[i])(x) for i in range(len(x))])


HESSIANS: dict[str, Callable[[Function], Function]] = {
    "jac_fwd of jac_fwd": lambda fn: jac_fwd(jac_fwd(fn)),
    "jac_fwd of jac_fwd in chunks": lambda fn: jac_fwd(jac_fwd(fn, chunk_size=4), chunk_size=5),
    "jac_fwd of jac_rev": lambda fn: jac_fwd(jac_rev(fn)),
    "jac_rev of jac_fwd": lambda fn: jac_rev(jac_fwd(fn)),
    "jac_rev of jac_rev": lambda fn: jac_rev(jac_rev(fn)),
    "jac_fwd of jvp": lambda fn: jac_fwd(_jvps(fn)),
    "jvp of jac_fwd": lambda fn: _jvps(jac_fwd(fn)),
    "jacfwd of jac_fwd": lambda fn: torch.func.jacfwd(jac_fwd(fn)),
    "jacrev of jac_fwd": lambda fn: torch.func.jacrev(jac_fwd(fn)),
    "jac_rev of jacfwd": lambda fn: jac_rev(torch.func.jacfwd(fn)),
    "jac_fwd of grad": lambda fn: jac_fwd(torch.func.grad(fn)),
    "jac_fwd of pushforward": lambda fn: jac_fwd(_pushed(fn)),
    "grad of jac_fwd": lambda fn: _gradients(jac_fwd(fn)),
    "backward through jac_fwd": lambda fn: _backward(jac_fwd(fn)),
    "backward through jac_rev": lambda fn: _backward(jac_rev(fn)),
    "backward through pushforward": lambda fn: _backward(_pushed(fn)),
}
SOME = ["jac_fwd of jac_fwd", "jac_rev of jac_fwd", "jac_rev of jac_rev"]


def _name(op: Any) -> str:
    owner = "Tensor" if getattr(Tensor, op.__name__, None) is op else op.__module__ or "torch"
    return f"{owner}.{op.__name__}".removeprefix("torch.")


def test_every_entry_has_an_example() -> None:
    assert set(MENDED) <= set(REPLACED) <= set(MENDED) | set(OTHERS) | set(SPECIAL)


@UNBATCHED
@pytest.mark.parametrize("op", [op for op in REPLACED if op not in SPECIAL], ids=_name)
def test_pytorch_fails_there(op: Any) -> None:
    """If this fails, PyTorch was mended: take the operation out of the table."""
    fn, both = (MENDED | OTHERS)[op], [torch.func.jacfwd, torch.func.jacrev]
    scalar = _scalar(fn)
    hessians = [outer(inner(scalar)) for outer, inner in itertools.product(both, repeat=2)]
    of_samples = [torch.func.vmap(transform(fn)) for transform in both]

    def of_batch(samples: Tensor) -> Tensor:
        """The columns mapped outside the samples, as jac_fwd does it."""
        jac = torch.func.jacfwd(torch.func.vmap(fn))(samples)
        return torch.stack([block[..., i, :] for i, block in enumerate(jac)])

    def of_batch_backwards(samples: Tensor) -> Tensor:
        """All samples mapped inside one reverse pass, as jac_quasilinear does it."""
        jac = torch.func.jacrev(torch.func.vmap(fn))(samples)
        return torch.stack([block[..., i, :] for i, block in enumerate(jac)])

    def fails(derivative: Function, x: Tensor, expected: Tensor) -> bool:
        try:
            return _error(derivative(x), expected) > 1e-3
        except RuntimeError:
            return True

    assert (
        any(fails(hessian, POINT, _hessian(fn)) for hessian in hessians)
        or any(fails(jacobian, SAMPLES, _of_samples(fn)) for jacobian in (*of_samples, of_batch, of_batch_backwards))
        or any(fails(torch.func.vmap(hessian), SAMPLES, _hessians(fn)) for hessian in hessians)
    )


@pytest.mark.parametrize("op", SPECIAL, ids=_name)
def test_pytorch_takes_their_derivatives_for_zero(op: Any) -> None:
    """If this fails, PyTorch was mended: take the function out of the table."""
    fn = SPECIAL[op]
    assert not torch.func.jacrev(fn)(POINT).any()
    for transform in (jac_rev, jac_fwd):
        if "bessel" in op.__name__:
            assert _error(transform(fn)(POINT), _jacobian(fn)) < 1e-7
        else:
            with pytest.raises(JacfnError, match="has no derivatives in PyTorch"):
                transform(fn)(POINT)


@functools.cache
def _of_samples(fn: Function) -> Tensor:
    return torch.stack([finite_differences(fn, sample) for sample in SAMPLES])


@functools.cache
def _hessians(fn: Function) -> Tensor:
    return torch.stack([finite_differences(lambda x: _gradient(_scalar(fn), x), sample) for sample in SAMPLES])


@UNBATCHED
@pytest.mark.parametrize("way", SOME)
@pytest.mark.parametrize("op", MENDED, ids=_name)
def test_second_derivatives_are_right(op: Any, way: str) -> None:
    fn = MENDED[op]
    assert _error(HESSIANS[way](_scalar(fn))(POINT), _hessian(fn)) < 1e-7


@pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS)
@pytest.mark.parametrize("op", [F.layer_norm, torch.linalg.slogdet], ids=_name)
def test_every_way_to_second_derivatives(op: Any, hessian: Callable[[Function], Function]) -> None:
    fn = MENDED[op]
    assert _error(hessian(_scalar(fn))(POINT), _hessian(fn)) < 1e-7


def _right_or_refused(call: Callable[[], Tensor], expected: Tensor) -> None:
    """Refused: by jacfn, which says why, or by PyTorch, where it has no derivative at all."""
    try:
        result = call()
    except RuntimeError as error:
        if not re.search("wrong in PyTorch|forward AD|derivative for", str(error)):
            raise
    else:
        assert _error(result, expected) < 1e-7


def _named(table: dict[Any, Function]) -> dict[str, Function]:
    return {_name(op): fn for op, fn in table.items()}


ANY: dict[str, Function] = _named(OTHERS) | NEIGHBOURS | WRONG_AT_ONCE


@UNBATCHED
@pytest.mark.parametrize("way", SOME)
@pytest.mark.parametrize("fn", ANY.values(), ids=ANY)
def test_second_derivatives_are_right_or_refused(fn: Function, way: str) -> None:
    _right_or_refused(lambda: HESSIANS[way](_scalar(fn))(POINT), _hessian(fn))


FIRST = {name: fn for name, fn in (_named(MENDED) | ANY).items() if "native" not in name and "Tensor" not in name}


@UNBATCHED
@TRANSFORMS
@pytest.mark.parametrize("fn", FIRST.values(), ids=FIRST)
def test_first_derivatives_are_right_or_refused(transform: Any, fn: Function) -> None:
    _right_or_refused(lambda: transform(fn)(POINT), _jacobian(fn))
    _right_or_refused(lambda: transform(fn)(POINT.clone().requires_grad_()).detach(), _jacobian(fn))
    _right_or_refused(lambda: transform(fn, in_dims=0)(SAMPLES), _of_samples(fn))
    _right_or_refused(lambda: transform(fn, in_dims=0, chunk_size=2)(SAMPLES), _of_samples(fn))


@UNBATCHED
@pytest.mark.parametrize("op", MENDED, ids=_name)
def test_values_are_those_of_pytorch(op: Any) -> None:
    """Also where a replacement computes them: parameters that require grad, inside another derivative."""
    fn = MENDED[op]
    _, value = jac_rev(fn, return_value=True)(POINT.clone().requires_grad_())
    torch.testing.assert_close(value.detach(), fn(POINT))
    inner = lambda x: jac_rev(fn, return_value=True)(x)[1]  # noqa: E731
    torch.testing.assert_close(jac_fwd(inner, return_value=True)(POINT)[1], fn(POINT))


@TRANSFORMS
@pytest.mark.parametrize("norm", [nn.LayerNorm, lambda width: nn.GroupNorm(2, width)], ids=["layer", "group"])
def test_gradients_of_slopes_of_networks(transform: Any, norm: Any) -> None:
    """The loss of a network that is trained on its derivative with respect to its input."""
    fn, params = make_functional(nn.Sequential(nn.Linear(3, 4), norm(4), nn.Tanh(), nn.Linear(4, 1)))
    x = torch.randn(5, 3)

    def loss(vector: Tensor) -> Tensor:
        return transform(fn, 1, in_dims=(None, 0))(unravel(params, vector), x).pow(2).sum()

    point = ravel(params)
    expected = finite_differences(loss, point, step=1e-6)
    assert _error(_gradient(loss, point), expected) < 1e-6
    assert _error(torch.func.grad(loss)(point), expected) < 1e-6


@TRANSFORMS
def test_products_of_groups_of_a_part(transform: Any) -> None:
    """The index may be smaller than what it chooses from; PyTorch's backward then raises."""
    fn = lambda x: torch.ones(2).scatter_reduce(0, GROUPS[:3], x, "prod")  # noqa: E731
    assert _error(transform(fn)(POINT), _jacobian(fn)) < 1e-7


# The exact derivatives of a determinant, by minors.
def _without(matrix: Tensor, row: int, column: int) -> Tensor:
    kept = [[i for i in range(len(matrix)) if i != place] for place in (row, column)]
    return matrix[kept[0]][:, kept[1]]


def _cofactors(matrix: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    """Row by row, from what ``derivative`` makes of the minors: its axes have a place for each of their elements."""
    size = len(matrix)
    parts = []
    for i, j in itertools.product(range(size), repeat=2):
        part = derivative(_without(matrix, i, j)) * (-1) ** (i + j)
        for axis in range(part.ndim):  # alternating rows and columns of the minor
            place = (i, j)[axis % 2]
            before, after = part.narrow(axis, 0, place), part.narrow(axis, place, part.shape[axis] - place)
            part = torch.cat([before, torch.zeros_like(part.narrow(axis, 0, 1)), after], axis)
        parts.append(part)
    return torch.stack(parts).unflatten(0, (size, size))


def _first(matrix: Tensor) -> Tensor:
    return _cofactors(matrix, torch.linalg.det)


def _second(matrix: Tensor) -> Tensor:
    return _cofactors(matrix, _first)


def _of_rank(rank: int) -> Tensor:
    """A 5 x 5 matrix of small integers, hence exactly of this rank."""
    left = torch.tensor(
        [[1, 0, 2, -1, 1], [0, 1, 1, 0, -2], [1, 1, 0, 2, 0], [0, -1, 1, 1, 1], [2, 0, 0, 1, 0]]
    ).double()
    return left[:, :rank] @ left.flip(0)[:rank]


@pytest.mark.parametrize("matrix", [*map(_of_rank, range(6)), torch.diag(torch.tensor([1.0, 2, 3, 0, 4]).double())])
def test_determinants_of_singular_matrices(matrix: Tensor) -> None:
    first, second, close = _first(matrix), _second(matrix), {"rtol": 1e-10, "atol": 1e-10}
    several = torch.stack([matrix, matrix + torch.eye(5)])
    for transform in (jac_rev, jac_fwd):
        torch.testing.assert_close(transform(torch.linalg.det)(matrix), first, **close)
        torch.testing.assert_close(transform(torch.det, in_dims=0)(several)[0], first, **close)
    for outer, inner in itertools.product((jac_rev, jac_fwd), repeat=2):
        torch.testing.assert_close(outer(inner(Tensor.det))(matrix), second, **close)
        torch.testing.assert_close(outer(inner(torch.det), in_dims=0)(several)[0], second, **close)


def test_third_derivative_of_a_determinant() -> None:
    matrix = _of_rank(3)
    third = jac_fwd(jac_rev(jac_fwd(torch.det)))(matrix)
    torch.testing.assert_close(third, _cofactors(matrix, _second), rtol=1e-10, atol=1e-10)


def test_determinant_without_jacfn() -> None:
    """If this fails, PyTorch was mended."""
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    assert not torch.func.jacfwd(torch.det)(singular).allclose(torch.diag(torch.tensor([0.0, 0.0, 2.0])))
    _, pull = torch.func.vjp(torch.det, singular)
    with torch.no_grad():
        assert not pull(torch.tensor(1.0))[0].any()


@TRANSFORMS
@pytest.mark.parametrize("size", [0, 1, 2, 4, 7])
def test_determinants_of_every_size(transform: Any, size: int) -> None:
    matrix = torch.randn(size, size)
    jac, value = transform(torch.det, return_value=True)(matrix)
    torch.testing.assert_close(value, torch.det(matrix))
    torch.testing.assert_close(jac, value * torch.linalg.inv(matrix).mT)


@TRANSFORMS
def test_determinants_that_are_badly_scaled(transform: Any) -> None:
    matrix, rows, columns = torch.randn(30, 30), 10 ** torch.linspace(-9, 9, 30), 10 ** torch.linspace(6, -6, 30)
    jac = transform(torch.det)(rows[:, None] * matrix * columns)
    expected = torch.linalg.inv(matrix).mT * torch.det(matrix)
    assert _error(jac * rows[:, None] * columns / (rows.prod() * columns.prod()), expected) < 1e-9


@TRANSFORMS
def test_determinant_that_is_not_finite(transform: Any) -> None:
    jac, value = transform(torch.det, return_value=True)(torch.full((5, 5), torch.nan))
    assert value.isnan()
    assert jac.isnan().all()


@TRANSFORMS
@pytest.mark.parametrize(
    "of", [torch.det, torch.logdet, lambda z: torch.linalg.slogdet(z)[0]], ids=["det", "log", "sign"]
)
def test_complex_determinants(transform: Any, of: Any) -> None:
    def fn(x: Tensor) -> Tensor:
        value = of(torch.complex(x, x.mT.sin()))
        return torch.stack([value.real, value.imag])

    samples = torch.randn(2, 4, 4)
    expected = torch.stack([finite_differences(fn, x) for x in samples])
    assert _error(transform(fn, in_dims=0)(samples), expected) < 1e-7


@UNBATCHED
@TRANSFORMS
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 3)])
@pytest.mark.parametrize("parametrise", ["orthogonal", "weight_norm", "old weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_parametrised_weights(transform: Any, shape: tuple[int, int], parametrise: str) -> None:
    module = nn.Linear(*shape)
    if parametrise == "orthogonal":
        nn.utils.parametrizations.orthogonal(module, orthogonal_map=None if shape[0] != shape[1] else "householder")
    elif parametrise == "weight_norm":
        nn.utils.parametrizations.weight_norm(module)
    else:
        nn.utils.weight_norm(module, dim=1)
    fn, params = make_functional(module)
    x = torch.randn(4, shape[0])
    expected = [torch.func.jacrev(fn)(params, sample) for sample in x]
    for name, jac in transform(fn, in_dims=(None, 0))(params, x).items():
        torch.testing.assert_close(jac, torch.stack([part[name] for part in expected]))
    point = ravel(params)
    point = torch.where(point.abs() == 1, 1.5 * point, point)  # signs that orthogonal() keeps, and cuts to integers
    loss = lambda vector: transform(fn, 1)(unravel(params, vector), x[0]).sin().sum()  # noqa: E731
    assert _error(torch.func.grad(loss)(point), finite_differences(loss, point)) < 1e-6


def test_custom_function_under_two_forward_modes() -> None:
    fn = lambda x: _Sine.apply(x).sum()  # noqa: E731
    x = torch.randn(3)
    expected = -torch.diag(x.sin())
    for outer, inner in [(jac_rev, jac_rev), (jac_rev, jac_fwd), (jac_fwd, jac_rev)]:
        torch.testing.assert_close(outer(inner(fn))(x), expected)
    for outer, inner in [(jac_fwd, jac_fwd), (jac_fwd, torch.func.jacfwd), (torch.func.jacfwd, jac_fwd)]:
        with pytest.raises(RuntimeError, match="_Sine is a torch.autograd.Function.*use jac_rev for one of the two"):
            outer(inner(fn))(x)


@pytest.mark.slow
@UNBATCHED
@pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS)
@pytest.mark.parametrize("fn", FIRST.values(), ids=FIRST)
def test_every_way_through_everything(fn: Function, hessian: Callable[[Function], Function]) -> None:
    _right_or_refused(lambda: hessian(_scalar(fn))(POINT), _hessian(fn))


@pytest.mark.slow
@UNBATCHED
@pytest.mark.parametrize("outer", [jac_fwd, jac_rev, torch.func.jacfwd])
@pytest.mark.parametrize("op", MENDED, ids=_name)
def test_third_derivatives_are_right(op: Any, outer: Any) -> None:
    second = jac_fwd(jac_rev(_scalar(MENDED[op])))  # right by the tests above
    assert _error(outer(second)(POINT), finite_differences(second, POINT)) < 1e-7
