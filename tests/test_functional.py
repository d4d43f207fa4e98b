"""make_functional: modules as pure functions of their trainable parameters."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from helpers import Shared, assert_same, mlp, per_sample, reference
from torch import Tensor, nn

import jacfn
from jacfn import jac_fwd, jac_rev, make_functional

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("batched", [False, True])
def test_value(batched: bool) -> None:
    module = mlp(3, 4, 2)
    fn, params = make_functional(module, batched=batched)
    x = torch.randn(5, 3)
    expected = module(x)
    if batched:
        torch.testing.assert_close(fn(params, x), expected)
    else:
        torch.testing.assert_close(fn(params, x[1]), expected[1])
        torch.testing.assert_close(torch.func.vmap(fn, (None, 0))(params, x), expected)


def test_params_are_the_trainable_ones_in_their_order() -> None:
    module = nn.Sequential(collections.OrderedDict(z=nn.Linear(2, 2), a=nn.BatchNorm1d(2), m=nn.Linear(2, 1)))
    module.a.weight.requires_grad_(False)
    _, params = make_functional(module)
    assert list(params) == ["z.weight", "z.bias", "a.bias", "m.weight", "m.bias"]
    assert not any(value.requires_grad for value in params.values())
    module.z.bias.data.fill_(7)  # they share the module's memory
    assert (params["z.bias"] == 7).all()


def test_params_are_not_copied_into_the_module() -> None:
    module = mlp(2, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fn, params = make_functional(module)
    fn({name: value + 1 for name, value in params.items()}, torch.ones(2))
    jac_rev(fn)(params, torch.ones(2))
    assert_same(dict(module.state_dict()), before)


def test_jacobian_columns_follow_the_parameters() -> None:
    module = mlp(3, 4, 2)
    fn, params = make_functional(module)
    jac = jac_rev(fn)(params, torch.randn(3))
    assert list(jac) == [name for name, _ in module.named_parameters()]


class Several(nn.Module):
    """Two positional inputs, one by keyword, a flag, and outputs of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor, double: bool = False) -> Any:
        assert x.ndim == y.ndim == mask.ndim == 2, "every input has a batch axis"
        out = self.layer(x) * y * mask * (2 if double else 1)
        extra = out.sum(1) * self.scale
        kinds = {
            "tensor": lambda: out + extra[:, None],
            "tuple": lambda: (out, extra),
            "dict": lambda: {"out": out, "extra": extra},
            "dataclass": lambda: Prediction(out, [extra]),
        }
        return kinds[self.kind]()


@dataclasses.dataclass
class Prediction:
    """What a module may return."""

    out: Any
    rest: Any


@pytest.mark.parametrize("transform", [jac_rev, jac_fwd])
@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "dataclass"])
def test_inputs_and_outputs_of_any_kind(transform: Any, kind: str) -> None:
    module = Several(kind)
    fn, params = make_functional(module)
    x, y, mask = torch.randn(4, 3), torch.randn(4, 2), torch.ones(2)
    jac, value = transform(fn, in_dims=(None, 0, 0), return_value=True)(params, x, y, mask=mask, double=True)

    def with_mask(params: Any, x: Tensor, y: Tensor) -> Any:
        return fn(params, x, y, mask=mask, double=True)

    assert_same(jac, per_sample(with_mask, params, x, y, argnums=0, mapped=(False, True, True)), **CLOSE)
    assert_same(value, module(x, y, mask=mask.expand(4, 2), double=True))


@pytest.mark.parametrize("transform", [jac_rev, jac_fwd])
def test_shared_parameters_are_one_leaf(transform: Any) -> None:
    module = Shared(3)
    fn, params = make_functional(module)
    assert list(params) == ["again.weight", "again.bias", "encoder.weight"]
    x = torch.randn(3)
    jac = transform(fn)(params, x)
    assert_same(jac, reference(fn, params, x), **CLOSE)
    by_hand = torch.autograd.grad(module(x[None])[0, 1], module.encoder.weight)[0]  # both places count
    torch.testing.assert_close(jac["encoder.weight"][1], by_hand)


def test_frozen_parameters_and_buffers_are_read_at_each_call() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)).eval()
    module[2].weight.requires_grad_(False)
    fn, params = make_functional(module)
    x = torch.randn(2)
    first = jac_rev(fn)(params, x)
    assert set(first) == {"0.weight", "0.bias", "2.bias"}
    assert_same(first, reference(fn, params, x), **CLOSE)
    module[2].weight.data.mul_(2)
    assert_same(jac_rev(fn)(params, x)["0.weight"], 2 * first["0.weight"], **CLOSE)
    module[1].running_var.mul_(4)
    module[1].eps = 0.0
    assert jac_rev(fn)(params, x)["0.weight"].abs().sum() < 1.01 * first["0.weight"].abs().sum()


def test_train_and_eval_show() -> None:
    module = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5))
    fn, params = make_functional(module)
    x = torch.randn(4)
    assert (fn(params, x) == 0).any()
    module.eval()
    assert not (fn(params, x) == 0).any()
    torch.testing.assert_close(jac_rev(fn)(params, x)["1.weight" if "1.weight" in params else "0.bias"], torch.eye(50))


def test_no_trainable_parameter() -> None:
    fn, params = make_functional(nn.Linear(2, 1).requires_grad_(False))
    assert params == {}
    assert fn(params, torch.ones(2)).shape == (1,)


def test_inputs_that_are_no_tensors_are_handed_through() -> None:
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: dict[str, Any], names: list[str]) -> Tensor:
            assert names == ["x"]
            return (self.w * x["x"]) ** x["power"]

    fn, params = make_functional(Power())
    jac = jac_rev(fn)(params, {"x": torch.tensor(3.0), "power": 2}, ["x"])
    torch.testing.assert_close(jac["w"], torch.tensor(36.0))


def test_batch_functions_have_joint_jacobians() -> None:
    """batched=True: rows are those of the whole batch, also where samples meet."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    fn, params = make_functional(module, batched=True)
    x = torch.randn(4, 2)
    jac = jac_rev(fn)(params, x)
    assert jac["0.weight"].shape == (4, 3, 3, 2)
    assert_same(jac, reference(fn, params, x), **CLOSE)


class Widest(nn.Module):
    """An output without a batch axis."""

    def __init__(self, reduce: Any) -> None:
        super().__init__()
        self.layer, self.reduce = nn.Linear(2, 3), reduce

    def forward(self, x: Tensor) -> Any:
        return self.reduce(self.layer(x))


@pytest.mark.parametrize(
    ("reduce", "shape"),
    [
        (lambda y: y.sum(), r"\(\)"),
        (lambda y: y.t(), r"\(3, 1\)"),
        (lambda y: (y, y.sum()), r"\(\)"),
        (lambda y: torch.cat([y, y]), r"\(2, 3\)"),
    ],
    ids=["scalar", "batch last", "one of two", "grown"],
)
def test_output_without_batch_axis(reduce: Any, shape: str) -> None:
    fn, params = make_functional(Widest(reduce))
    with pytest.raises(jacfn.JacfnValueError, match=f"{shape} carries no batch axis.*batched=True"):
        jac_rev(fn)(params, torch.randn(2))


@pytest.mark.parametrize(
    "module",
    [nn.LazyLinear(2), nn.Sequential(nn.Linear(2, 2), nn.LazyConv1d(2, 1)), nn.LazyBatchNorm1d(affine=False)],
    ids=["parameter", "nested", "buffer"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_modules(module: nn.Module) -> None:
    with pytest.raises(jacfn.JacfnValueError, match=r"module: the lazy .* has no shape yet; call the module once"):
        make_functional(module)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_module_after_its_first_call() -> None:
    module = nn.LazyLinear(2)
    module(torch.ones(1, 3))
    fn, params = make_functional(module)
    assert jac_rev(fn)(params, torch.ones(3))["weight"].shape == (2, 2, 3)


@pytest.mark.parametrize("module", [torch.tanh, mlp, None], ids=["function", "factory", "None"])
def test_what_is_no_module(module: Any) -> None:
    with pytest.raises(jacfn.JacfnTypeError, match=r"module must be a torch.nn.Module, got \w+"):
        make_functional(module)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2))])
def test_scripted_modules(make: Any) -> None:
    with pytest.raises(jacfn.JacfnTypeError, match="scripted or traced .* pass the module that it was made"):
        make_functional(make(mlp(2, 2)))


BATCH_NORM = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3)))
TRAINING_NORMS: dict[str, tuple[nn.Module, str]] = {  # what a single sample must not meet, and the name in the message
    "nested": (BATCH_NORM, r"the layer '1\.1', BatchNorm1d in training mode, .* mixes samples"),
    "alone": (nn.BatchNorm2d(3), r"the module itself, BatchNorm2d in training mode, .* mixes samples"),
    "3d": (nn.Sequential(nn.BatchNorm3d(3)), r"the layer '0', BatchNorm3d in training mode, .* mixes samples"),
    "synchronised": (
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3))),
        r"the layer '0', SyncBatchNorm in training mode, .* mixes samples",
    ),
    "instance norm": (
        nn.Sequential(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)),
        r"the layer '0', InstanceNorm1d in training mode, changes its running statistics",
    ),
}


@pytest.mark.parametrize(("module", "message"), TRAINING_NORMS.values(), ids=TRAINING_NORMS.keys())
@pytest.mark.parametrize("call", ["fn", "jac_rev", "jac_fwd", "jac_quasilinear"])
def test_training_mode_is_refused(module: nn.Module, message: str, call: str) -> None:
    fn, params = make_functional(module)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    x = torch.randn(4, 2)
    with pytest.raises(jacfn.JacfnValueError, match=rf"{message}.*call module\.eval\(\) first, or use a GroupNorm"):
        fn(params, x[0]) if call == "fn" else getattr(jacfn, call)(fn, in_dims=(None, 0))(params, x)
    assert_same(dict(module.named_buffers()), before)


def test_train_and_eval_count_at_the_call() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    fn, params = make_functional(module)
    with pytest.raises(jacfn.JacfnValueError, match="training mode"):
        fn(params, torch.ones(2))
    module.eval()
    torch.testing.assert_close(fn(params, torch.ones(2)), module(torch.ones(1, 2))[0])
    module[1].train()  # the layer's own mode, not that of the whole
    with pytest.raises(jacfn.JacfnValueError, match="the layer '1'"):
        fn(params, torch.ones(2))


@pytest.mark.parametrize("mode", ["training", "eval"])
def test_without_running_statistics_only_batches_have_a_function(mode: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)).train(mode == "training")
    x = torch.randn(4, 2)
    fn, params = make_functional(module)
    with pytest.raises(jacfn.JacfnValueError, match=rf"'1', BatchNorm1d in {mode} mode, .*batched=True"):
        jac_rev(fn, in_dims=(None, 0))(params, x)
    fn, params = make_functional(module, batched=True)
    assert_same(jac_rev(fn)(params, x), reference(fn, params, x), **CLOSE)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda width: nn.InstanceNorm1d(width, track_running_stats=True)])
def test_batches_must_not_change_running_statistics(kind: Any) -> None:
    fn, params = make_functional(nn.Sequential(nn.Linear(5, 5), kind(3)), batched=True)
    with pytest.raises(jacfn.JacfnValueError, match=r"'1', .* in training mode, changes its running statistics"):
        jac_rev(fn)(params, torch.randn(4, 3, 5))


def test_norms_of_single_samples_train() -> None:
    """Those whose statistics are of one sample are functions of it in either mode."""
    layers = [nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.LayerNorm(5)]
    fn, params = make_functional(nn.Sequential(*layers))
    x = torch.randn(3, 2, 5)
    got = jac_rev(fn, in_dims=(None, 0))(params, x)
    assert_same(got, per_sample(fn, params, x, argnums=0, mapped=(False, True)), **CLOSE)


def test_results_of_the_module_may_be_trained_through() -> None:
    """Parameters that require grad give tracked results, as with torch.func."""
    module = mlp(2, 3, 1)
    fn, params = make_functional(module)
    live = {name: value.requires_grad_() for name, value in params.items()}
    x = torch.randn(5, 2)
    slope = jac_rev(fn, 1, in_dims=(None, 0))(live, x)  # (5, 1, 2)
    slope.pow(2).sum().backward()

    def loss(params: dict[str, Tensor]) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(fn, 1), (None, 0))(params, x).pow(2).sum()

    expected = torch.func.grad(loss)({name: value.detach() for name, value in live.items()})
    for name, value in live.items():
        torch.testing.assert_close(value.grad if value.grad is not None else torch.zeros_like(value), expected[name])
