"""What fn changes in place under torch.compile, where nobody counts versions, and what only looks like a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import jac_quasilinear, make_functional

torch.manual_seed(0)
D = torch.float64
W = torch.randn(3, 3, dtype=D)
X = torch.randn(4, 3, dtype=D)
Function = Callable[[Tensor, Tensor], Tensor]
ways = pytest.mark.parametrize(
    "samples", [pytest.param(False, id="batch", marks=pytest.mark.slow), pytest.param(True, id="samples")]
)


def oracle(fn: Function) -> Tensor:
    """By a plain backward pass a row, on copies."""
    return torch.stack([torch.autograd.functional.jacobian(lambda w, s=s: fn(w, s.clone()), W) for s in X])


def jacobian(fn: Function, samples: bool) -> Callable[..., Any]:
    if samples:
        return jac_quasilinear(fn, in_dims=(None, 0))
    return jac_quasilinear(lambda w, x: torch.stack([fn(w, s) for s in x]))


def compiled(transform: Callable[..., Any], *args: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(transform, fullgraph=True, backend="aot_eager", dynamic=False)(*args)


def by(change: Callable[[Tensor], Any]) -> Function:
    """A linear map by twice the parameter, changed in place."""

    def fn(w: Tensor, x: Tensor) -> Tensor:
        v = w * 2
        change(v)
        return F.linear(x, v).sin() + F.linear(x, w)

    return fn


COPIES: dict[str, Function] = {
    "method": lambda w, x: F.linear(x, w.clone().mul_(2)).sin(),
    "augmented": by(lambda v: v.__iadd__(1)),
    "setitem": by(lambda v: v.__setitem__(0, 0.0)),
    "row": by(lambda v: v[0].mul_(3)),
    "transposed": by(lambda v: v.t().mul_(0.5)),
    "option": by(lambda v: F.relu(v, inplace=True)),
    "function": by(torch.relu_),
    "threshold": by(lambda v: F.threshold(v, 0.0, 0.0, inplace=True)),
    "detached": by(lambda v: v.detach().mul_(2)),
}


@ways
@pytest.mark.parametrize("name", COPIES)
def test_copy_of_a_parameter(name: str, samples: bool) -> None:
    transform, wanted = jacobian(COPIES[name], samples), oracle(COPIES[name])
    torch.testing.assert_close(transform(W, X), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(compiled(transform, W, X), wanted, rtol=1e-10, atol=1e-12)


def data_later(w: Tensor, x: Tensor) -> Tensor:
    h = x.clone()
    y = F.linear(h, w)
    h.mul_(2)
    return y.sin() + h


def view_of_data_later(w: Tensor, x: Tensor) -> Tensor:
    h = x.clone()
    y = F.linear(h[:3], w)
    h[0] = 7.0
    return y.sin() + h


def activation_later(w: Tensor, x: Tensor) -> Tensor:
    h = F.linear(x, w).sin()
    y = F.linear(h, w)
    h.mul_(2)
    return y + h


def activation_copied(w: Tensor, x: Tensor) -> Tensor:
    h = F.linear(x, w).sin()
    return F.linear(h, w) + 2 * h


LATER: dict[str, tuple[Function, Function]] = {  # and the same without a change in place
    "data": (data_later, lambda w, x: F.linear(x, w).sin()),
    "view of data": (view_of_data_later, lambda w, x: F.linear(x, w).sin()),
    "activation": (activation_later, activation_copied),
}


@ways
@pytest.mark.parametrize("name", LATER)
def test_captured_input(name: str, samples: bool) -> None:
    fn, same = LATER[name]
    got = compiled(jacobian(fn, samples), W, X)
    torch.testing.assert_close(got, oracle(same), rtol=1e-10, atol=1e-12)


@ways
@pytest.mark.parametrize(
    "change", [lambda w: w.mul_(2), lambda w: w[0].mul_(2), torch.relu_], ids=["w", "row", "relu_"]
)
def test_parameter_itself(change: Callable[[Tensor], Any], samples: bool) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        change(w)
        return F.linear(x, w)

    w = W.clone()
    with pytest.raises(RuntimeError):
        compiled(jacobian(fn, samples), w, X)
    assert torch.equal(w, W)


def test_networks_with_inplace_activations_compile() -> None:
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(3, 2, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(inplace=True), nn.Linear(2, 2)]
    fn, params = make_functional(nn.Sequential(*layers).double().eval())
    x = torch.randn(3, 2, 4, 4, dtype=D)
    transform = jac_quasilinear(fn, in_dims=(None, 0))
    torch.testing.assert_close(compiled(transform, params, x), transform(params, x), rtol=1e-10, atol=1e-12)


# --- operations that return their argument ---------------------------------------------------------

SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout in evaluation": lambda w: F.dropout(w, 0.5, training=False),
    "in-place dropout in evaluation": lambda w: F.dropout(w, 0.5, training=False, inplace=True),
    "alpha_dropout": lambda w: F.alpha_dropout(w, 0.5, training=False),
    "cpu": lambda w: w.cpu(),
    "conj": lambda w: w.conj(),
    "real": torch.real,
    "type": lambda w: w.type(D),
    "resolve_conj": lambda w: w.resolve_conj(),
}


@ways
@pytest.mark.parametrize("name", SAME)
def test_argument_given_back(name: str, samples: bool) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, SAME[name](w)).sin()

    wanted = oracle(lambda w, x: F.linear(x, w).sin())
    torch.testing.assert_close(jacobian(fn, samples)(W, X), wanted, rtol=1e-10, atol=1e-12)
    got = jac_quasilinear(fn, in_dims=(None, 0), strict=True)(W, X)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_network_that_begins_with_dropout() -> None:
    net = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)).double().eval()
    wanted = net[1].weight.detach().expand(4, 2, 3)
    torch.testing.assert_close(jac_quasilinear(lambda x: net(x).detach() + net(x) * 1, in_dims=0)(X), wanted)
    torch.testing.assert_close(compiled(jac_quasilinear(net, in_dims=0), X).detach(), wanted)
