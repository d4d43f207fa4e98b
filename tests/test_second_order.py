"""``hessian``, ``hessian_diag``, ``hvp`` against nested autograd, finite differences and closed forms."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from helpers import Box, Pair, Square, assert_same, leaves_of, ravel, rebuild
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import JacfnError, hessian, hessian_diag, hvp, jac_fwd, jac_rev, make_functional
from jacfn._memory import PeakBytes

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def oracle(fn: Any, x: Tensor) -> Tensor:
    """``(*out, *in, *in)`` by double backward, an output at a time."""
    out = fn(x)
    rows = [
        torch.autograd.functional.hessian(lambda x, i=i: fn(x).reshape(-1)[i], x)  # type: ignore[misc]
        for i in range(out.numel())
    ]
    return torch.stack(rows).reshape((*out.shape, *x.shape, *x.shape))


def differences(fn: Any, x: Tensor, step: float = 1e-4) -> Tensor:
    """The Hessian of a scalar function by central differences of its values alone."""
    flat = x.reshape(-1)
    eye = step * torch.eye(len(flat), dtype=x.dtype)

    def at(h: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = fn((flat + h).reshape(x.shape))
        return value

    rows = [[at(a + b) - at(a - b) - at(b - a) + at(-a - b) for b in eye] for a in eye]
    return torch.tensor(rows, dtype=x.dtype) / (4 * step**2)


# --- what it is -----------------------------------------------------------------------------------


def vector_valued(x: Tensor) -> Tensor:
    return torch.stack([(x**3).sum() * x.prod(), x.sin().sum() ** 2])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("fn", [lambda x: (x**3).sum() * x.prod(), vector_valued, lambda x: x.exp()])
def test_of_one_tensor(fn: Any, shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    wanted = oracle(fn, x)
    out = wanted.ndim - 2 * x.ndim
    v = randn(*shape, seed=1)
    outer = wanted.shape[:out]
    square = wanted.reshape(*outer, x.numel(), x.numel())
    torch.testing.assert_close(hessian(fn)(x), wanted)
    torch.testing.assert_close(hessian_diag(fn)(x), square.diagonal(dim1=-2, dim2=-1).reshape((*outer, *shape)))
    torch.testing.assert_close(hvp(fn, (x,), (v,)), (square @ v.reshape(-1)).reshape((*outer, *shape)))


def quadratic(leaves: list[Tensor], seed: int) -> tuple[Any, Tensor]:
    """``½ xᵀ A x + Σ c x³ / 6`` of all elements of a tree, and its Hessian there."""
    count = sum(leaf.numel() for leaf in leaves)
    a = randn(count, count, seed=seed)
    a, c = a + a.T, randn(count, seed=seed + 1)

    def fn(*trees: Any) -> Tensor:
        x = ravel(trees)
        return 0.5 * x @ a @ x + (c * x**3).sum() / 6

    return fn, a + torch.diag(c * torch.cat([leaf.reshape(-1) for leaf in leaves]))


SHAPES = st.lists(st.integers(0, 2), max_size=2).map(tuple)
TREES = st.sampled_from(
    [lambda a, b: [a, b], lambda a, b: {"z": a, "a": b}, lambda a, b: Pair(a, (b,)), lambda a, b: Box({"b": a}, b)]
)


@given(
    shapes=st.tuples(SHAPES, SHAPES, SHAPES),
    tree=TREES,
    chunk=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_of_trees(shapes: Any, tree: Any, chunk: int | None, seed: int) -> None:
    first, second, third = (randn(*shape, seed=seed + i) for i, shape in enumerate(shapes))
    args = (tree(first, second), third)
    leaves = [first, second, third]
    fn, wanted = quadratic(leaves, seed)
    got = hessian(fn, (0, 1), chunk_size=chunk)(*args)
    blocks = leaves_of(got)
    assert len(blocks) == 9
    sizes = [leaf.numel() for leaf in leaves]
    for block, (i, row) in zip(blocks, ((i, row) for row in wanted.split(sizes) for i in range(3)), strict=True):
        want = row.split(sizes, 1)[i]
        torch.testing.assert_close(block.reshape(want.shape), want)
    assert_same(hessian_diag(fn, (0, 1), chunk_size=chunk)(*args), rebuild(args, _split(wanted.diagonal(), leaves)))
    v = randn(sum(sizes), seed=seed)
    product = hvp(fn, args, rebuild(args, _split(v, leaves)))
    assert_same(product, rebuild(args, _split(wanted @ v, leaves)))


def _split(flat: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    parts = flat.split([leaf.numel() for leaf in leaves])
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def test_drop_in_for_torch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    fn, params = make_functional(net)
    x = randn(3)
    for argnums in (0, 1, (0, 1), (1, 0)):
        assert_same(hessian(fn, argnums)(params, x), torch.func.hessian(fn, argnums)(params, x))


def test_outputs_of_any_structure_and_aux() -> None:
    def fn(x: Tensor, n: int) -> Any:
        return {"a": x.prod(), "b": (x[:2] ** n, Pair(x.sum(), x.outer(x)))}, {"n": n, "x": x + 1}

    x = randn(3)
    want = torch.func.hessian(lambda x: fn(x, 3)[0])(x)
    got, got_aux = hessian(fn, has_aux=True)(x, 3)
    assert_same(got, want)
    assert got_aux["n"] == 3
    torch.testing.assert_close(got_aux["x"], x + 1)
    diagonal, _ = hessian_diag(fn, has_aux=True)(x, 3)
    assert_same(diagonal, rebuild(want, [h.diagonal(dim1=-2, dim2=-1) for h in leaves_of(want)]))
    product, _ = hvp(lambda x: fn(x, 3), (x,), (x,), has_aux=True)
    assert_same(product, rebuild(want, [h @ x for h in leaves_of(want)]))


# --- samples --------------------------------------------------------------------------------------


@given(n=st.integers(1, 4), chunk=st.sampled_from([None, 1, 3]))
@settings(max_examples=10, deadline=None)
def test_samples(n: int, chunk: int | None) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)).double()
    fn, params = make_functional(net)
    x = randn(n, 3, seed=n)
    options: dict[str, Any] = {"in_dims": (None, 0)}
    for argnums in (0, 1):
        want = [hessian(fn, argnums)(params, row) for row in x]
        stacked = rebuild(want[0], [torch.stack(leaves) for leaves in zip(*map(leaves_of, want), strict=True)])
        assert_same(hessian(fn, argnums, chunk_size=chunk, **options)(params, x), stacked)
        diagonals = [hessian_diag(fn, argnums)(params, row) for row in x]
        stacked = rebuild(
            diagonals[0], [torch.stack(leaves) for leaves in zip(*map(leaves_of, diagonals), strict=True)]
        )
        assert_same(hessian_diag(fn, argnums, chunk_size=chunk, **options)(params, x), stacked)
    v = randn(n, 3, seed=9)
    wanted = torch.stack([hvp(lambda x: fn(params, x), (a,), (b,)) for a, b in zip(x, v, strict=True)])
    torch.testing.assert_close(hvp(lambda x: fn(params, x), (x,), (v,), in_dims=0), wanted)
    torch.testing.assert_close(hvp(lambda x: fn(params, x), (x.T,), (v.T,), in_dims=1), wanted)


# --- chosen places --------------------------------------------------------------------------------

PLACES = [1, -1, slice(1, 4), slice(None, None, 2), slice(0, 0), torch.tensor([3, 0, 3])]


@pytest.mark.parametrize("rows", [None, *PLACES], ids=str)
@pytest.mark.parametrize("columns", [None, *PLACES], ids=str)
def test_chosen_places(rows: Any, columns: Any) -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([a, b.reshape(-1)])
        return torch.stack([x.prod() * x.sum(), (x**3).sum()])

    args = (randn(2), randn(1, 3, seed=1))
    whole = oracle(lambda x: fn(x[:2], x[2:]), torch.cat([args[0], args[1][0]]))
    index = [torch.arange(5) if places is None else torch.arange(5)[places].reshape(-1) for places in (rows, columns)]
    wanted = whole[:, index[0]][:, :, index[1]]
    got = leaves_of(hessian(fn, (0, 1), rows=rows, columns=columns)(*args))
    assert len(got) == (2 if rows is None else 1) * (2 if columns is None else 1)
    sides = [[2, 3] if places is None else [len(where)] for places, where in zip((rows, columns), index, strict=True)]
    parts = [part for row in wanted.split(sides[0], 1) for part in row.split(sides[1], 2)]
    for block, part in zip(got, parts, strict=True):
        torch.testing.assert_close(block.reshape(part.shape), part)


def test_chosen_places_of_each_leaf() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    fn, params = make_functional(net)
    x = randn(4, 2)
    whole = hessian(fn, in_dims=(None, 0))(params, x)
    chosen = {name: slice(0, 2) for name in params}
    by_columns = hessian(fn, in_dims=(None, 0), columns=chosen)(params, x)
    by_rows = hessian(fn, in_dims=(None, 0), rows=chosen)(params, x)
    both = hessian(fn, in_dims=(None, 0), rows=chosen, columns=chosen)(params, x)
    for a, row in whole.items():
        for b, block in row.items():
            flat = block.reshape(4, 1, params[a].numel(), params[b].numel())
            columns, rows = by_columns[a][b], by_rows[a][b]
            assert columns.shape == (4, 1, *params[a].shape, min(2, params[b].numel()))
            assert rows.shape == (4, 1, min(2, params[a].numel()), *params[b].shape)
            torch.testing.assert_close(columns.reshape(*flat.shape[:3], -1), flat[..., :2])
            torch.testing.assert_close(rows.reshape(4, 1, -1, flat.shape[3]), flat[:, :, :2])
            torch.testing.assert_close(both[a][b], flat[:, :, :2, :2])


def test_rows_cost_as_few_passes_as_columns() -> None:
    calls = []

    def fn(x: Tensor) -> Tensor:
        calls.append(1)
        return x.prod()

    for options in ({"rows": 0}, {"columns": 0}, {"rows": [0], "columns": [0]}):
        places = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in options.items()}
        calls.clear()
        hessian(fn, chunk_size=1, **places)(randn(6))
        assert len(calls) == 1


# --- what PyTorch gets wrong, or has not ----------------------------------------------------------

SQUARE = randn(3, 3, seed=3)
AWKWARD = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape).pow(3).sum(),
    "layer_norm twice": lambda x: F.layer_norm(F.layer_norm(x, x.shape).sin(), x.shape).pow(3).sum(),
    "batch_norm": lambda x: F.batch_norm(x.reshape(3, 2), None, None, training=True).pow(3).sum(),
    "instance_norm": lambda x: F.instance_norm(x.reshape(1, 2, 3)).pow(3).sum(),
    "group_norm": lambda x: F.group_norm(x.reshape(1, 2, 3), 2).pow(3).sum(),
    "slogdet": lambda x: torch.linalg.slogdet(SQUARE + x[:3].diag() * x[3]).logabsdet,
    "logdet": lambda x: torch.logdet(SQUARE @ SQUARE.T + (x[:3] ** 2).diag()),
    "det": lambda x: torch.linalg.det(SQUARE + x[:3].outer(x[3:])),
    "solve": lambda x: torch.linalg.solve(SQUARE + x[:3].diag(), x[3:]).pow(2).sum(),
    "inv": lambda x: torch.linalg.inv(SQUARE + x[:3].diag()).pow(2).sum(),
    "attention": lambda x: F.scaled_dot_product_attention(*(x.reshape(1, 1, 3, 2) * k for k in (1, 2, 3))).sin().sum(),
    "cdist": lambda x: torch.cdist(x.reshape(3, 2), SQUARE[:, :2]).pow(3).sum(),
    "glu": lambda x: F.glu(x).pow(2).sum(),
    "huber": lambda x: F.huber_loss(x, SQUARE.reshape(-1)[:6], delta=0.5),
    "gelu": lambda x: F.gelu(x).sum(),
    "mish": lambda x: F.mish(x).sum(),
    "logsumexp": lambda x: torch.logsumexp(x, 0),
    "cumprod": lambda x: x.cumprod(0).sin().sum(),
    "conv": lambda x: F.conv1d(x.reshape(1, 2, 3), SQUARE[:2, :2].reshape(1, 2, 2)).pow(3).sum(),
    "max_pool": lambda x: F.max_pool1d(x.reshape(1, 1, 6), 2).pow(3).sum(),
    "var": lambda x: x.var().sqrt(),
    "norm": lambda x: x.norm() ** 3,
    "grid_sample": lambda x: F.grid_sample(
        SQUARE.reshape(1, 1, 3, 3), torch.tanh(x).reshape(1, 1, 3, 2), align_corners=False
    ).pow(2).sum(),
    "custom Function": lambda x: Square.apply(x.cumsum(0)).pow(2).sum(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # huber's backward
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # that of grid_sample
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_operations(name: str) -> None:
    fn, x = AWKWARD[name], randn(6, seed=7)
    wanted = differences(fn, x)
    close = {"rtol": 1e-5, "atol": 1e-5 * float(wanted.abs().max())}
    torch.testing.assert_close(hessian(fn)(x), wanted, **close)
    torch.testing.assert_close(hessian_diag(fn)(x), wanted.diagonal(), **close)
    torch.testing.assert_close(hvp(fn, (x,), (x,)), wanted @ x, **close)
    if name != "grid_sample":  # whose backward cannot be mapped twice
        batch = torch.stack([x, 2 * x])
        torch.testing.assert_close(hessian(fn, in_dims=0)(batch)[0], wanted, **close)


def test_recurrent_and_attention_layers() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 3, batch_first=True).double()
    encoder = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True).double()
    for fn, x in (
        (lambda x: lstm(x.reshape(1, 3, 2))[0].pow(2).sum(), randn(6)),
        (lambda x: encoder(x.reshape(1, 2, 4)).pow(3).sum(), randn(8)),
    ):
        wanted = differences(fn, x)
        torch.testing.assert_close(hessian(fn)(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


# --- where forward mode has no formula ------------------------------------------------------------


def no_forward(x: Tensor) -> Tensor:
    return Square.apply(x.cumsum(-1)).pow(2)[..., :2] * x.sum()


def test_reverse_over_reverse_is_as_good(caplog: pytest.LogCaptureFixture) -> None:
    def fn(x: Tensor) -> Tensor:
        return no_forward(x)

    x, v = randn(3), randn(3, seed=1)
    wanted = oracle(fn, x)
    with caplog.at_level(logging.WARNING, "jacfn"):
        torch.testing.assert_close(hessian(fn)(x), wanted)
    assert "hessian by reverse over reverse" in caplog.text
    caplog.clear()
    torch.testing.assert_close(hessian(fn)(x), wanted)
    assert not caplog.text
    torch.testing.assert_close(hessian(fn, rows=slice(0, 2))(x), wanted[:, :2])
    torch.testing.assert_close(hessian(fn, columns=0)(x), wanted[..., :1])
    torch.testing.assert_close(hessian(fn, chunk_size=1)(x), wanted)
    torch.testing.assert_close(hessian_diag(fn)(x), wanted.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(hvp(fn, (x,), (v,)), wanted @ v)
    batch = torch.stack([x, v])
    wanted = torch.stack([wanted, oracle(fn, v)])
    torch.testing.assert_close(hessian(fn, in_dims=0)(batch), wanted)
    torch.testing.assert_close(hessian_diag(fn, in_dims=0, memory="1MiB")(batch), wanted.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(hvp(fn, (batch,), (batch,), in_dims=0), torch.einsum("noij,nj->noi", wanted, batch))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_strict_refuses_it(batched: bool, again: bool) -> None:
    def fn(x: Tensor) -> Tensor:
        return no_forward(x)

    x = randn(2, 3) if batched else randn(3)
    in_dims = 0 if batched else None
    if again:
        hessian(fn, in_dims=in_dims)(x)
    for call in (
        lambda: hessian(fn, in_dims=in_dims, strict=True)(x),
        lambda: hessian_diag(fn, in_dims=in_dims, strict=True)(x),
        lambda: hvp(fn, (x,), (x,), in_dims=in_dims, strict=True),
    ):
        with pytest.raises(
            JacfnError, match="strict: (there is no forward over reverse|fn is not covered by rules: the custom)"
        ):
            call()
    hessian(torch.sin, strict=True)(x)


def test_other_errors_pass() -> None:
    def fn(x: Tensor) -> Tensor:
        raise NotImplementedError("mine")

    with pytest.raises(NotImplementedError, match="mine"):
        hessian(fn)(randn(2))


# --- composition ----------------------------------------------------------------------------------


def scalar(x: Tensor) -> Tensor:
    return (x**3).sum() * x.prod()


def test_inside_transforms() -> None:
    x, v = randn(3), randn(3, seed=1)
    batch = torch.stack([x, v])
    wanted = torch.stack([oracle(scalar, x), oracle(scalar, v)])
    torch.testing.assert_close(torch.func.vmap(hessian(scalar))(batch), wanted)
    torch.testing.assert_close(torch.func.vmap(lambda t: hvp(scalar, (x,), (t,)))(torch.eye(3, dtype=F64)), wanted[0])
    third = torch.autograd.functional.jacobian(lambda x: oracle_graph(x), x)
    torch.testing.assert_close(jac_rev(hessian(scalar))(x), third)
    torch.testing.assert_close(jac_fwd(hessian(scalar))(x), third)
    torch.testing.assert_close(torch.func.jvp(hessian(scalar), (x,), (v,))[1], third @ v)
    torch.testing.assert_close(torch.func.grad(lambda x: hessian_diag(scalar)(x).sum())(x), third.diagonal().sum(1))


def oracle_graph(x: Tensor) -> Tensor:
    """The Hessian with a graph behind it."""
    (g,) = torch.autograd.grad(scalar(x), x, create_graph=True)
    return torch.stack([torch.autograd.grad(part, x, create_graph=True)[0] for part in g])


@pytest.mark.parametrize("through", [hessian, hessian_diag])
def test_gradients_reach_arguments_and_closures(through: Any) -> None:
    x, w = randn(3), randn(3, seed=1).requires_grad_()

    def loss(result: Tensor) -> Tensor:
        return (result * torch.arange(1.0, result.numel() + 1, dtype=F64).reshape(result.shape)).sum()

    def closed(w: Tensor) -> Tensor:
        return loss(through(lambda x: (w * x**3).sum() * x.prod())(x))

    wanted = torch.func.grad(closed)(w.detach())
    loss(through(lambda x: (w * x**3).sum() * x.prod())(x)).backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, wanted)
    step = 1e-6
    numbers = [(closed(w.detach() + e) - closed(w.detach() - e)) / (2 * step) for e in step * torch.eye(3, dtype=F64)]
    torch.testing.assert_close(wanted, torch.stack(numbers), rtol=1e-7, atol=1e-7)
    detached = through(lambda x: (w * x**3).sum() * x.prod(), differentiable=False)(x)
    assert not detached.requires_grad


def test_products_carry_gradients_of_both_arguments() -> None:
    x, v = randn(3).requires_grad_(), randn(3, seed=1).requires_grad_()
    hvp(scalar, (x,), (v,)).sum().backward()
    torch.testing.assert_close(v.grad, oracle(scalar, x.detach()).sum(0))
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)
    assert not hvp(scalar, (x,), (v,), differentiable=False).requires_grad


def test_compiled() -> None:
    x = randn(3)
    torch.testing.assert_close(torch.compile(hessian(scalar), backend="eager")(x), oracle(scalar, x))


# --- memory ---------------------------------------------------------------------------------------


def test_budgets_without_the_matrix() -> None:
    """8,000 parameters, whose Hessian would take 512 MB."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 120), nn.Tanh(), nn.Linear(120, 36), nn.Tanh(), nn.Linear(36, 1)).double()
    fn, params = make_functional(net)
    x = randn(30)
    assert 8_000 < sum(leaf.numel() for leaf in params.values()) < 8_300

    def energy(p: Any) -> Tensor:
        return fn(p, x).square().sum()

    budget = 32 << 20

    def within_budget(transform: Any) -> Any:
        transform(params)  # plans
        with PeakBytes() as booked:
            result = transform(params)
        assert booked.peak <= budget
        return result

    diagonal = within_budget(hessian_diag(energy, memory=budget))
    block = within_budget(hessian(energy, rows=slice(0, 5), columns=slice(0, 500), memory=budget))
    torch.testing.assert_close(block.diagonal(), diagonal["0.weight"].reshape(-1)[:5])
    v = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    v["0.weight"][0, 0] = 1
    torch.testing.assert_close(hvp(energy, (params,), (v,))["0.weight"].reshape(-1)[:500], block[0])


def test_budget_of_vector_valued_functions() -> None:
    x = randn(40, 6)
    fn = lambda x: torch.outer(x.sin(), x.cos()).reshape(-1)  # noqa: E731
    torch.testing.assert_close(hessian(fn, in_dims=0, memory="2MiB")(x), hessian(fn, in_dims=0)(x))
    with pytest.raises(JacfnError, match="memory=.* is too small"):
        hessian(fn, in_dims=0, memory=10)(x)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hvp(scalar, x, (x,)), r"primals must be a non-empty tuple, got Tensor: hvp\(fn, \(x,\), \(v,\)\)"),
        (lambda x: hvp(scalar, (x,), x), r"tangents must be a non-empty tuple, got Tensor"),
        (lambda x: hvp(scalar, (x,), (x[:2],)), r"tangents\[0\] must have the shape \(3,\) of its primal, got \(2,\)"),
        (lambda x: hvp(scalar, (x,), (x.float(),)), r"tangents\[0\] must have the dtype torch.float64 of its primal"),
        (lambda x: hvp(scalar, (x,), (x, x)), r"tangents must have the structure"),
        (lambda x: hvp(scalar, (x,), (1.0,)), r"tangents\[0\] must have the shape \(3,\) of its primal, got float"),
        (lambda x: hessian(scalar, rows=7)(x), r"rows must lie in \[-3, 3\)"),
        (lambda x: hessian(scalar, columns="a")(x), r"columns must be an int, a slice"),
        (lambda x: hessian(scalar, chunk_size=0)(x), r"chunk_size must be a positive int"),
        (lambda x: hessian(scalar, argnums=1)(x), r"argnums=1 is out of range"),
        (lambda x: hessian(scalar)(x.long()), r"argument 0: only floating-point tensors can be differentiated"),
        (lambda x: hessian_diag(scalar, memory="x")(x), r"memory must be bytes or a string"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        call(randn(3))
