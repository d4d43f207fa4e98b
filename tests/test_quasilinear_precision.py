"""jac_quasilinear where dtypes meet: leaves of several, casts inside fn, autocast, normalisation kept in float32."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import jac_fwd, jac_quasilinear, jac_rev, make_functional

torch.manual_seed(0)
D = torch.float64
W = torch.randn(3, 3, dtype=D)
X = torch.randn(4, 3, dtype=D)
ways = pytest.mark.parametrize("samples", [False, True], ids=["batch", "samples"])


def check(fn: Callable[..., Any], w: Any, x: Tensor, samples: bool) -> None:
    """Against reverse mode of one sample at a time, in the dtypes of the leaves."""
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(w, x)
    if samples:
        got = jac_quasilinear(fn, in_dims=(None, 0))(w, x)
    else:
        got = jac_quasilinear(lambda w, x: torch.stack([fn(w, one) for one in x]))(w, x)
    torch.testing.assert_close(got, wanted)


def cast(w: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, w.double()))


def two_leaves(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x, p["W"].T)) + p["a"].double()


def scalars(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return p["s"] * p["t"] * x.float()


def quotient(w: Tensor, x: Tensor) -> Tensor:
    return w * (x / 3)


SCALARS = {"W": W, "s": torch.tensor(2.0), "t": torch.tensor(3.0)}
MIXED: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "cast parameter": (cast, W.float()),
    "derived, behind a leaf of less precision": (two_leaves, {"a": torch.ones(3), "W": W}),
    "leaves without axes, behind one of more precision": (scalars, SCALARS),
}


@ways
@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes(name: str, samples: bool) -> None:
    check(*MIXED[name], X, samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_less_precise_part(dtype: torch.dtype) -> None:
    """As close as the rounding inside fn allows, which is no wrong rule."""
    w, x = torch.randn(16, 16, dtype=D), torch.randn(4, 16, dtype=D)

    def fn(w: Tensor, x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
        low = w.to(dtype)
        h = F.linear(x.to(dtype), low).tanh()
        return F.linear(F.linear(h, low).tanh(), low).to(D)

    got = jac_quasilinear(fn, in_dims=(None, 0))(w, x)
    wanted = jac_rev(lambda w, x: fn(w, x, D), in_dims=(None, 0))(w, x)
    assert (got - wanted).norm() < 5 * torch.finfo(dtype).eps * wanted.norm()


def test_quotient_by_a_number_keeps_the_dtype() -> None:
    got = jac_quasilinear(quotient, (0, 1), in_dims=(None, 0), strict=True)(W[0], X)
    torch.testing.assert_close(got[1], (torch.eye(3, dtype=D) * W[0] / 3).expand(4, 3, 3))
    with_zero = jac_quasilinear(lambda w, x: w * (x / 0), (0, 1), in_dims=(None, 0))(W[0], X)
    assert bool(with_zero[1].diagonal(dim1=1, dim2=2).isinf().all())


# --- autocast -------------------------------------------------------------------------------------


def embedded() -> nn.Module:
    layers = [nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Flatten(), nn.Linear(24, 2)]
    return nn.Sequential(*layers)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).eval()


def parametrized() -> nn.Module:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    nn.utils.parametrizations.weight_norm(first)
    nn.utils.parametrizations.orthogonal(second)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(8, 2))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP": lambda: (nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)), torch.randn(3, 8)),
    "CNN": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 4)),
        torch.randn(3, 3, 8, 8),
    ),
    "embedding and layer norm": lambda: (embedded(), torch.randint(0, 5, (3, 3))),
    "batch norm": lambda: (normalised(), torch.randn(3, 2, 5, 5)),
    "LSTM": lambda: (nn.LSTM(8, 4, batch_first=True), torch.randn(3, 4, 8)),
    "encoder layer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 4, 8)),
    "parametrizations": lambda: (parametrized(), torch.randn(3, 8)),
}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_under_autocast(name: str, inside: bool) -> None:
    torch.manual_seed(0)
    module, x = NETWORKS[name]()
    net, params = make_functional(module)
    autocast = torch.autocast("cpu", torch.bfloat16)

    def exact(params: dict[str, Tensor], x: Tensor) -> Tensor:
        y = net(params, x)
        return y[0] if isinstance(y, tuple) else y

    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        with autocast if inside else contextlib.nullcontext():
            y = exact(params, x)
        return y.float() if inside else y

    jacobian = jac_quasilinear(fn, in_dims=(None, 0))
    plain = jacobian(params, x) if not inside else None  # what is learnt here is not taken for what follows
    with contextlib.nullcontext() if inside else autocast:
        got = jacobian(params, x)
        rounded = None if inside and name == "encoder layer" else jac_rev(fn, in_dims=(None, 0))(params, x)
    wanted = jac_rev(exact, in_dims=(None, 0))(params, x)
    for leaf in params:
        scale = wanted[leaf].norm().clamp(min=0.1)
        assert got[leaf].dtype == torch.float32
        assert (got[leaf] - wanted[leaf]).norm() < 0.05 * scale
        if rounded is not None:  # else PyTorch's own backward pass fails
            assert (got[leaf] - rounded[leaf]).norm() < 0.05 * scale
        if plain is not None:
            assert (plain[leaf] - wanted[leaf]).norm() < 1e-5 * scale


def test_derived_values_under_autocast() -> None:
    """A product of parameters is rounded as fn has it, also when it is computed again to be differentiated."""
    params = {"w": torch.randn(8, 8), "a": torch.randn(8, 2), "b": torch.randn(2, 8)}
    x = torch.randn(4, 8)

    def fn(p: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(F.linear(x, p["w"]).tanh(), p["a"] @ p["b"])

    got, wanted = (t(fn, in_dims=(None, 0))(params, x) for t in (jac_quasilinear, jac_rev))
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)


def test_autocast_leaves_the_algebra_alone() -> None:
    """What fn keeps out of autocast is not rounded behind its back."""
    w, x = torch.randn(5, 6), torch.randn(3, 4, 6)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x, w).sin().sum(0)

    with torch.autocast("cpu", torch.bfloat16):
        got = jac_quasilinear(fn, in_dims=(None, 0))(w, x)
    torch.testing.assert_close(got, jac_rev(fn, in_dims=(None, 0))(w, x))


@pytest.mark.parametrize("transform", [jac_quasilinear, jac_rev, jac_fwd])
def test_batch_norm_in_float32_between_layers_in_bfloat16(transform: Any) -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Linear(3, 3).bfloat16(), norm, nn.Linear(3, 2).bfloat16()).eval()
    fn, params = make_functional(net)
    got, value = transform(fn, in_dims=(None, 0), return_value=True)(params, X.bfloat16())
    assert value.dtype == net(X.bfloat16()).dtype == torch.bfloat16
    exact, doubles = make_functional(copy.deepcopy(net).double())
    wanted = jac_rev(exact, in_dims=(None, 0))(doubles, X.bfloat16().double())
    for leaf in params:
        assert (got[leaf].double() - wanted[leaf]).norm() < 0.02 * wanted[leaf].norm()
