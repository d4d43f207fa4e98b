"""jac_quasilinear against oracles that know nothing of factors: exact on every use of a weight, or an error."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from helpers import Square
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import jacfn
from jacfn import jac_quasilinear, make_functional

torch.manual_seed(0)
D = torch.float64
X = torch.randn(4, 3, dtype=D)
W = torch.randn(3, 3, dtype=D) + 2 * torch.eye(3, dtype=D)


def in_place_bias(w: Tensor, x: Tensor) -> Tensor:
    y = F.linear(x, w)
    y += w[0]
    return y


def under_no_grad(w: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.linear(x, w)
    return y + F.linear(x, w).sin()


def changed_under_no_grad(w: Tensor, x: Tensor) -> Tensor:
    w = w.clone()
    y = F.linear(x, w)
    w.mul_(2)
    return y + F.linear(x, w)


def derived(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w * w.norm()) + F.linear(x, w)


# one sample: w (3, 3), x (3,)
CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda w, x: F.linear(x, w).sin(),
    "used twice": lambda w, x: F.linear(F.linear(x, w).tanh(), w),
    "linearly and not": lambda w, x: F.linear(x, w) * w.pow(2).sum(),
    "through t": lambda w, x: F.linear(x.sin(), w.t()).sin() + F.linear(x, w),
    "matmul": lambda w, x: (w @ x).sin(),
    "custom Function": lambda w, x: F.linear(x, Square.apply(w)),
    "custom Function and linear": lambda w, x: F.linear(x, w) + Square.apply(w).sum(),
    "closed over": lambda w, x: F.linear(x, w) * F.linear(x, W),
    "detached": lambda w, x: F.linear(x, w) + F.linear(x, w.detach()).sin(),
    "all detached": lambda w, x: F.linear(x, w.detach()),
    "under no_grad": under_no_grad,
    "returned": lambda w, x: w,
    "times itself": lambda w, x: F.linear(w, w).sin() @ x,
    "as its own bias": lambda w, x: F.linear(x, w, w[1]),
    "copy changed in place": changed_under_no_grad,
    "in-place bias": in_place_bias,
    "derived": derived,
    "squared layer": lambda w, x: w.pow(2) @ x,
    "unused": lambda w, x: x.sin(),
    "a view as input": lambda w, x: F.linear(w[0], w) + x,
    "output mutated": lambda w, x: F.linear(x, w).mul_(2).sin_(),
    "weight of ones": lambda w, x: F.linear(x, w, torch.ones(3, dtype=D)),
    "keyword": lambda w, x: F.linear(input=x, weight=w, bias=None),
    "one-dimensional weight": lambda w, x: F.linear(x, w[0]).exp() + F.linear(x, w).sum(),
    "slogdet": lambda w, x: torch.linalg.slogdet(w)[1] * F.linear(x, w),
    "layer norm": lambda w, x: F.layer_norm(F.linear(x, w), (3,), w[0], w[1]),
}
case = pytest.mark.parametrize("fn", CASES.values(), ids=CASES.keys())


def oracle(fn: Callable[..., Tensor], w: Tensor, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda w, s=s: fn(w, s), w) for s in x])


@case
def test_exact_mapped_over_samples(fn) -> None:
    got = jac_quasilinear(fn, in_dims=(None, 0))(W, X)
    torch.testing.assert_close(got, oracle(fn, W, X), rtol=1e-10, atol=1e-12)


@case
def test_exact_on_a_batch(fn) -> None:
    def batched(w: Tensor) -> Tensor:
        return torch.stack([fn(w, s) for s in X])

    torch.testing.assert_close(jac_quasilinear(batched)(W), oracle(fn, W, X), rtol=1e-10, atol=1e-12)


@case
def test_exact_under_vmap(fn) -> None:
    got = torch.func.vmap(jac_quasilinear(fn), (None, 0))(W, X)
    torch.testing.assert_close(got, oracle(fn, W, X), rtol=1e-10, atol=1e-12)


@case
def test_exact_under_vmap_over_weights(fn) -> None:
    weights = torch.stack([W, W.cos(), W.exp()])
    got = torch.func.vmap(jac_quasilinear(fn, in_dims=(None, 0)), (0, None))(weights, X)
    wanted = torch.stack([oracle(fn, w, X) for w in weights])
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("in_dims", [None, (None, 0)], ids=["batch", "samples"])
def test_exact_under_grad(name, in_dims) -> None:
    """The derivative of a function of the Jacobian, against central differences of the oracle."""
    fn = CASES[name]
    mix = torch.randn(oracle(fn, W, X).shape, dtype=D)
    direction = torch.randn_like(W)

    def loss(w: Tensor) -> Tensor:
        if in_dims is not None:
            return (jac_quasilinear(fn, in_dims=in_dims)(w, X).sin() * mix).sum()
        return (torch.stack([jac_quasilinear(fn)(w, s) for s in X]).sin() * mix).sum()

    def reference(w: Tensor) -> Tensor:
        return (oracle(fn, w, X).sin() * mix).sum()

    step = 1e-6
    wanted = (reference(W + step * direction) - reference(W - step * direction)) / (2 * step)
    reverse = (torch.func.grad(loss)(W) * direction).sum()
    torch.testing.assert_close(reverse, wanted, rtol=1e-6, atol=1e-6)
    if "custom Function" not in name:  # Square has no jvp
        forward = torch.func.jvp(loss, (W,), (direction,))[1]
        torch.testing.assert_close(forward, wanted, rtol=1e-6, atol=1e-6)
    leaf = W.clone().requires_grad_()
    value = loss(leaf)
    if value.requires_grad:
        value.backward()
        assert leaf.grad is not None
        torch.testing.assert_close((leaf.grad * direction).sum(), wanted, rtol=1e-6, atol=1e-6)


def test_passed_as_two_arguments() -> None:
    def fn(v: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, v).sin(), w)

    got = jac_quasilinear(fn, (0, 1), in_dims=(None, None, 0))(W, W, X)
    wanted = torch.func.vmap(torch.func.jacrev(fn, (0, 1)), (None, None, 0))(W, W, X)
    torch.testing.assert_close(got, wanted)


def test_scripted_code_is_exact() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(_scripted)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return scripted(w, x) + F.linear(x, w)

    wanted = torch.stack([torch.autograd.functional.jacobian(lambda w, s=s: fn(w, s), W) for s in X])
    torch.testing.assert_close(jac_quasilinear(fn, in_dims=(None, 0))(W, X), wanted)


def _scripted(w: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, w * w)


def test_leaf_changed_in_place_raises_as_jacrev_does() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        w.mul_(2)
        return F.linear(x, w)

    before = W.clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        torch.func.jacrev(fn)(W, X[0])
    with pytest.raises(jacfn.JacfnError, match=r"changes a differentiated argument in place, by torch\.Tensor\.mul_"):
        jac_quasilinear(fn)(W, X[0])
    assert torch.equal(W, before)


@pytest.mark.parametrize("wrap", ["plain", "vmap", "samples", "grad"])
def test_captured_input_changed_in_place_raises(wrap) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        x = x.clone()
        y = F.linear(x, w)
        x.add_(1)
        return y + x

    calls = {
        "plain": lambda: jac_quasilinear(fn)(W, X[0]),
        "vmap": lambda: torch.func.vmap(jac_quasilinear(fn), (None, 0))(W, X),
        "samples": lambda: jac_quasilinear(fn, in_dims=(None, 0))(W, X),
        "grad": lambda: torch.func.grad(lambda w: jac_quasilinear(fn)(w, X[0]).sum())(W),
    }
    with pytest.raises(jacfn.JacfnError, match="input of linear was changed in place"):
        calls[wrap]()


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "linear with positions": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (3, 2, 4)),
    "conv1d": (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), (2, 6)),
    "conv1d groups": (nn.Sequential(nn.Conv1d(4, 6, 2, groups=2, stride=2), nn.Tanh()), (4, 5)),
    "depthwise": (
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Tanh(), nn.Flatten()),
        (3, 4, 4),
    ),
    "conv2d all options": (
        nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2),
            nn.Tanh(),
            nn.Flatten(),
        ),
        (2, 5, 5),
    ),
    "same, even kernel": (nn.Sequential(nn.Conv2d(1, 2, (2, 4), padding="same", dilation=(3, 1))), (1, 5, 4)),
    "valid": (nn.Sequential(nn.Conv2d(1, 2, 2, padding="valid")), (1, 3, 3)),
    "reflect": (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), (1, 3, 3)),
    "conv3d": (
        nn.Sequential(nn.Conv3d(1, 2, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 2)),
        (1, 3, 3, 3),
    ),
    "convolution of a single place": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), (2, 3, 3)),
}


def _shared() -> nn.Module:
    combine = nn.Linear(4, 4)
    return nn.Sequential(combine, nn.Tanh(), nn.Sequential(combine, nn.Sequential(nn.Tanh(), combine)))


NETWORKS["one module three times, nested"] = (_shared(), (4,))
even_kernel = "ignore:Using padding='same' with even kernel lengths:UserWarning"
network = pytest.mark.parametrize(("module", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def per_sample_oracle(fn, params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    names, values = list(params), tuple(params.values())

    def one(sample: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.functional.jacobian(
            lambda *values: fn(dict(zip(names, values, strict=True)), sample), values
        )

    return dict(zip(names, map(torch.stack, zip(*map(one, x), strict=True)), strict=True))


@pytest.mark.filterwarnings(even_kernel)
@network
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 1000])
def test_networks(module, shape, chunk_size) -> None:
    fn, params = make_functional(module.double())
    x = torch.randn(3, *shape, dtype=D)
    jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True, chunk_size=chunk_size)(params, x)
    assert list(jac) == list(params)
    torch.testing.assert_close(jac, per_sample_oracle(fn, params, x), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings(even_kernel)
@network
def test_networks_on_batches_and_rows(module, shape) -> None:
    fn, params = make_functional(module.double(), batched=True)
    x = torch.randn(2, *shape, dtype=D)
    total = fn(params, x).numel()
    rows = torch.tensor([total - 1, 0, -2])
    jac = jac_quasilinear(fn, strict=True, rows=rows)(params, x)
    whole = torch.autograd.functional.jacobian(
        lambda *values: fn(dict(zip(params, values, strict=True)), x), tuple(params.values())
    )
    for name, leaf in zip(params, whole, strict=True):
        torch.testing.assert_close(jac[name], leaf.reshape(total, *params[name].shape)[rows])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fn, params = make_functional(module.double())
    x = torch.randn(3, 4, dtype=D)
    wanted = per_sample_oracle(fn, params, x)
    low = {name: leaf.to(dtype) for name, leaf in params.items()}
    jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(low, x.to(dtype))
    tolerance = 20 * torch.finfo(dtype).eps
    for name, leaf in jac.items():
        assert leaf.dtype == dtype
        torch.testing.assert_close(leaf.double(), wanted[name], rtol=tolerance, atol=tolerance)


def test_ensemble_of_parameters_as_samples() -> None:
    fn, params = make_functional(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    stacked = {name: torch.stack([leaf, leaf.sin(), leaf.cos()]) for name, leaf in params.items()}
    x = torch.randn(4, dtype=D)
    jac = jac_quasilinear(fn, in_dims=(0, None), strict=True)(stacked, x)
    for i in range(3):
        member = {name: leaf[i] for name, leaf in stacked.items()}
        wanted = per_sample_oracle(fn, member, x[None])
        for name in params:
            torch.testing.assert_close(jac[name][i], wanted[name][0])


def test_inputs_are_differentiated_too() -> None:
    fn, params = make_functional(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double())
    x = torch.randn(6, 4, dtype=D)
    got = jac_quasilinear(fn, (0, 1), in_dims=(None, 0))(params, x)
    wanted = torch.func.vmap(torch.func.jacrev(fn, (0, 1)), (None, 0))(params, x)
    torch.testing.assert_close(got, wanted)


def test_any_shape_from_call_to_call() -> None:
    fn, params = make_functional(nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double())
    jacobian = jac_quasilinear(fn, in_dims=(None, 0), strict=True)
    for length, samples in [(5, 2), (9, 4), (3, 1), (5, 2)]:
        x = torch.randn(samples, 1, length, dtype=D)
        torch.testing.assert_close(jacobian(params, x), per_sample_oracle(fn, params, x))


def test_strict_names_leaf_operation_and_call_site() -> None:
    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, params["w"]) + params["gain"].lgamma()

    params = {"w": W, "gain": W[0]}
    with pytest.raises(
        jacfn.JacfnError, match=r"(?s)argument 0\['gain'\]: torch.Tensor.lgamma at .*test_quasilinear.py:\d+"
    ):
        jac_quasilinear(fn, in_dims=(None, 0), strict=True)(params, X)
    with pytest.raises(jacfn.JacfnError, match="Square at"):
        jac_quasilinear(CASES["custom Function"], in_dims=(None, 0), strict=True)(W, X)
    with pytest.raises(jacfn.JacfnError, match=r"torch\.Tensor\.lgamma"):
        torch.func.vmap(jac_quasilinear(fn, strict=True), (None, 0))(params, X)


def test_structure_is_learnt_once_and_again_when_it_changes() -> None:
    calls = 0
    hidden = False

    def fn(w: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.linear(x, w) + (Square.apply(w).sum() if hidden else 0)

    jacobian = jac_quasilinear(fn, in_dims=(None, 0))
    jacobian(W, X)
    learning = calls
    jacobian(W, X)
    assert calls == learning + 1
    hidden = True  # nothing that the signature shows, nothing that a function mode sees
    torch.testing.assert_close(jacobian(W, X), oracle(fn, W, X))
    hidden = False
    torch.testing.assert_close(jacobian(W, X), oracle(fn, W, X))


def test_structure_is_learnt_of_functions_that_cannot_be_hashed() -> None:
    @dataclasses.dataclass
    class Model:
        scale: dict[str, float]
        calls: int = 0

        def __call__(self, w: Tensor, x: Tensor) -> Tensor:
            self.calls += 1
            return self.scale["a"] * F.linear(x, w)

        def method(self, w: Tensor, x: Tensor) -> Tensor:
            return self(w, x)

    for fn in (lambda model: model, lambda model: model.method):
        model = Model({"a": 2.0})
        jac_quasilinear(fn(model), in_dims=(None, 0))(W, X)
        learning = model.calls
        jac_quasilinear(fn(model), in_dims=(None, 0))(W, X)
        assert model.calls == learning + 1


def test_claims_that_change_are_learnt_again() -> None:
    depth = 3

    def fn(w: Tensor, x: Tensor) -> Tensor:
        for _ in range(depth):
            x = F.linear(x, w).sin()
        return x

    jacobian = jac_quasilinear(fn, in_dims=(None, 0))
    for depth in (3, 2, 1):  # noqa: B007 (fn reads it)
        torch.testing.assert_close(jacobian(W, X), oracle(fn, W, X))


def test_a_wrong_rule_is_caught(monkeypatch) -> None:
    from jacfn.quasilinear import factors

    lay = factors.Matmul.lay
    monkeypatch.setattr(factors.Matmul, "lay", lambda *args: 1.01 * lay(*args))
    fn = CASES["linear"]

    def fresh(w: Tensor, x: Tensor) -> Tensor:
        return fn(w, x)

    with pytest.raises(jacfn.JacfnError, match=r"argument 0: the closed form differs .* wrong rule"):
        jac_quasilinear(fresh, in_dims=(None, 0))(W, X)


def test_self_check_lets_nan_and_inf_pass() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, w).log()

    got = jac_quasilinear(fn, in_dims=(None, 0))(W, X.clone().fill_(0.0))
    wanted = oracle(fn, W, X.clone().fill_(0.0))
    torch.testing.assert_close(got, wanted, equal_nan=True)


def test_random_function_keeps_its_draw_and_generator() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return F.dropout(F.linear(x, w), 0.5)

    torch.manual_seed(3)
    got, value = jac_quasilinear(fn, in_dims=(None, 0), randomness="different", return_value=True)(W, X)
    after = torch.rand(1)
    torch.manual_seed(3)
    wanted_value = torch.func.vmap(fn, (None, 0), randomness="different")(W, X)
    assert torch.equal(after, torch.rand(1))  # learning has not shifted the generator
    torch.testing.assert_close(value, wanted_value)
    mask = value != 0  # (N, K): a kept output has the derivative of the scaled linear map
    torch.testing.assert_close(
        got, 2 * mask[..., None, None] * torch.eye(3, dtype=D)[None, :, :, None] * X[:, None, None]
    )


def test_return_value_aux_and_empty() -> None:
    def fn(w: Tensor, x: Tensor) -> tuple[Tensor, dict[str, object]]:
        y = F.linear(x, w)
        return y.sin(), {"pre": y, "name": "aux"}

    jac, (value, aux) = jac_quasilinear(fn, in_dims=(None, 0), has_aux=True, return_value=True, chunk_size=2)(W, X)
    torch.testing.assert_close(value, (X @ W.T).sin())
    torch.testing.assert_close(aux["pre"], X @ W.T)
    assert aux["name"] == "aux"
    torch.testing.assert_close(jac, oracle(lambda w, x: fn(w, x)[0], W, X))
    assert jac_quasilinear(CASES["linear"], in_dims=(None, 0))(W, X[:0]).shape == (0, 3, 3, 3)
    assert jac_quasilinear(CASES["linear"], in_dims=(None, 0), rows=slice(0))(W, X).shape == (4, 0, 3, 3)


def test_rows_outside_the_selection_are_not_pulled() -> None:
    pulled = []

    class Count(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            pass

        @staticmethod
        def vmap(info, in_dims, x: Tensor):
            return Count.apply(x), in_dims[0]

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            pulled.append(1)
            return grad

    wide = torch.randn(50, 3, dtype=D)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return Count.apply(F.linear(x, w).sin())

    jacobian = jac_quasilinear(fn, in_dims=(None, 0), rows=torch.tensor([7, 40]), chunk_size=4)
    jacobian(wide, X)
    pulled.clear()
    jacobian(wide, X)
    assert len(pulled) == 2  # one backward a row, for all four samples


@given(
    data=st.data(),
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    samples=st.integers(1, 4),
    shared=st.booleans(),
    bias=st.booleans(),
    chunk=st.none() | st.integers(1, 9),
)
def test_random_networks(data, widths, samples, shared, bias, chunk) -> None:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.Tanh()]
        if shared:
            again = nn.Linear(b, b, bias=bias)
            layers += [again, nn.Softplus(), again]
    fn, params = make_functional(nn.Sequential(*layers).double())
    shape = data.draw(st.sampled_from([(widths[0],), (2, widths[0])]))
    x = torch.randn(samples, *shape, dtype=D)
    jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True, chunk_size=chunk)(params, x)
    torch.testing.assert_close(jac, per_sample_oracle(fn, params, x), rtol=1e-9, atol=1e-11)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_random_convolutions(kernel, stride, padding, dilation, groups, per_group) -> None:
    layer = nn.Conv2d(groups * per_group[0], groups * per_group[1], kernel, stride, padding, dilation, groups, dtype=D)
    fn, params = make_functional(nn.Sequential(layer, nn.Tanh()))
    x = torch.randn(2, groups * per_group[0], 5, 6, dtype=D)
    jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(params, x)
    torch.testing.assert_close(jac, per_sample_oracle(fn, params, x), rtol=1e-9, atol=1e-11)


# --- calls in odd shapes and old ways ---------------------------------------------------------------

B = torch.randn(2, 3, dtype=D)
ODD: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {  # the function, and the shape of the parameter
    "tensordot, parameter broadcast": (lambda w, x: torch.tensordot(x, w, dims=[[0], [0]]).sin(), (1, 3)),
    "tensordot, data broadcast": (lambda w, x: torch.tensordot(w, x[:1], dims=[[0], [0]]).sin(), (3, 3)),
    "tensordot, a tensor of dims": (lambda w, x: torch.tensordot(x, w, dims=torch.tensor(1)).sin(), (3, 3)),
    "tensordot, a tensor of axes": (lambda w, x: torch.tensordot(x, w, dims=torch.tensor([[0], [1]])).sin(), (3, 3)),
    "cat with truth values": (lambda w, x: torch.cat([w, x > 0]).sin(), (3,)),
    "stack with truth values": (lambda w, x: torch.stack([w, x > 0]).sin(), (3,)),
    "twelve axes": (lambda w, x: (x @ w).sin(), (1, 2, *(1,) * 8, 3, 2)),
}
OLD: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {  # PyTorch's old orders of arguments
    "addmm, beta first": (lambda w, x: torch.addmm(0.5, w[:1], x[None], w).sin(), (3, 3)),
    "addmm, beta and alpha": (lambda w, x: torch.addmm(0.5, B[:1], 2.0, x[None], w).sin(), (3, 3)),
    "addmm, method": (lambda w, x: w[:1].addmm(0.5, 2.0, x[None], w).sin(), (3, 3)),
    "baddbmm": (lambda w, x: torch.baddbmm(0.5, w[None], 2.0, x.expand(1, 3, 3), w[None]).sin(), (3, 3)),
    "add": (lambda w, x: torch.add(x, 2.0, w).sin(), (3,)),
    "sub": (lambda w, x: torch.sub(w, 2.0, x).sin(), (3,)),
    "addcmul": (lambda w, x: torch.addcmul(x, 0.5, w, x).sin(), (3,)),
}


@pytest.mark.filterwarnings("ignore:(?s).*overload of .* is deprecated:UserWarning")
@pytest.mark.parametrize("name", [*ODD, *OLD])
def test_odd_calls(name) -> None:
    fn, shape = (ODD | OLD)[name]
    w = torch.randn(shape, dtype=D)
    got = jac_quasilinear(fn, in_dims=(None, 0), strict=name in ODD)(w, X)
    torch.testing.assert_close(got, oracle(fn, w, X), rtol=1e-10, atol=1e-12)


def test_inputs_with_twelve_axes() -> None:
    x = torch.randn(2, *(1,) * 8, 2, 1, 3, dtype=D)
    got = jac_quasilinear(lambda x: F.linear(x, W), in_dims=0, strict=True)(x)
    wanted = torch.func.vmap(torch.func.jacrev(lambda x: F.linear(x, W)))(x)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("transform", [jac_quasilinear, jacfn.jac_rev, jacfn.jac_fwd, jacfn.jacobian])
@pytest.mark.parametrize("samples", [False, True])
def test_embedding_with_sparse_gradients(transform, samples) -> None:
    table = nn.Embedding(5, 3, padding_idx=2, sparse=True).double()
    ids = torch.tensor([[0, 1], [2, 2], [4, 0]])
    plain = nn.Embedding(5, 3, padding_idx=2, _weight=table.weight.detach().clone())
    got, wanted = (
        transform(make_functional(module, batched=not samples)[0], in_dims=(None, 0) if samples else None)(params, ids)
        for module, params in ((table, make_functional(table)[1]), (plain, make_functional(plain)[1]))
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert not got["weight"].is_sparse


@pytest.mark.parametrize("transform", [jac_quasilinear, jacfn.jac_rev, jacfn.jac_fwd])
def test_prelu_of_a_number(transform) -> None:
    x, w = torch.tensor([1.5, -2.0], dtype=D), torch.tensor([0.3], dtype=D)
    jac, value = transform(lambda w, x: F.prelu(x, w), in_dims=(None, 0), return_value=True)(w, x)
    torch.testing.assert_close(value, torch.tensor([1.5, -0.6], dtype=D))
    torch.testing.assert_close(jac, torch.tensor([[0.0], [-2.0]], dtype=D))


# --- learning ---------------------------------------------------------------------------------------


def test_function_that_changes_at_every_call_is_refused() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        fn.calls += 1  # type: ignore[attr-defined]
        return F.linear(x, w) if fn.calls % 2 else F.linear(x, w.T).sin()  # type: ignore[attr-defined]

    calls = {
        "jac_quasilinear": lambda: jac_quasilinear(fn, in_dims=(None, 0))(W, X),
        "jacobian": lambda: jacfn.jacobian(fn, in_dims=(None, 0))(W, X),
        "jacobian_operator": lambda: jacfn.jacobian_operator(fn, W, X, in_dims=(None, 0)),
        "ntk": lambda: jacfn.ntk(fn, W, X),
    }
    for call in calls.values():
        fn.calls = 0  # type: ignore[attr-defined]
        with pytest.raises(jacfn.JacfnError, match="fn does something else at every call: it must be a pure function"):
            call()


def test_first_call_may_differ() -> None:
    """What fn keeps for later, it computes once."""
    calls = 0

    def fn(w: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            F.linear(x, w)
        return F.linear(x, w).sin()

    torch.testing.assert_close(jac_quasilinear(fn, in_dims=(None, 0))(W, X), oracle(CASES["linear"], W, X))


def test_self_check_sees_the_last_sample(monkeypatch) -> None:
    from jacfn.quasilinear import factors

    write = factors.Matmul.prepare
    monkeypatch.setattr(factors.Matmul, "prepare", lambda *args: 1.01 * write(*args))
    x = X.clone()
    x[0] = 0  # where a wrong factor of the input does not show

    def fresh(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, w)

    with pytest.raises(jacfn.JacfnError, match="argument 0: the closed form differs"):
        jac_quasilinear(fresh, in_dims=(None, 0))(W, x)


# --- the Jacobian of a Jacobian, other devices ------------------------------------------------------


@pytest.mark.parametrize("outer", [jacfn.jac_rev, jacfn.jac_fwd, jac_quasilinear])
@pytest.mark.parametrize("name", ["used twice", "through t", "linearly and not", "layer norm"])
def test_jacobian_of_the_jacobian(outer, name) -> None:
    fn = CASES[name]
    got = outer(lambda w: jac_quasilinear(fn, in_dims=(None, 0))(w, X))(W)

    def plain(w: Tensor) -> Tensor:
        rows = [torch.autograd.functional.jacobian(lambda w, s=s: fn(w, s), w, create_graph=True) for s in X]
        return torch.stack(rows)

    wanted = torch.autograd.functional.jacobian(plain, W)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [*CASES, "divided"])
def test_cuda(name) -> None:
    fn = CASES[name] if name in CASES else lambda w, x: w[0] * (x / 3) + F.linear(x, w / 7)
    if name == "closed over":
        fn = lambda w, x: F.linear(x, w) * F.linear(x, W.to(x.device))  # noqa: E731
    if name == "weight of ones":
        fn = lambda w, x: F.linear(x, w, torch.ones_like(x))  # noqa: E731
    got = jac_quasilinear(fn, (0, 1), in_dims=(None, 0))(W.cuda(), X.cuda())
    wanted = torch.func.vmap(torch.func.jacrev(fn, (0, 1)), (None, 0))(W, X)
    torch.testing.assert_close(tuple(part.cpu() for part in got), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@network
@pytest.mark.filterwarnings(even_kernel)
def test_networks_on_cuda(module, shape) -> None:
    fn, params = make_functional(module.double())
    x = torch.randn(3, *shape, dtype=D)
    on_gpu = {name: leaf.cuda() for name, leaf in params.items()}
    jac = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(on_gpu, x.cuda())
    wanted = per_sample_oracle(fn, params, x)
    torch.testing.assert_close({name: leaf.cpu() for name, leaf in jac.items()}, wanted, rtol=1e-9, atol=1e-10)
