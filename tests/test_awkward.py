"""What real code does inside fn: each is exact in reverse mode, or an error that says what is the matter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import Square, assert_same, cnn, per_sample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import jacfn
from jacfn import jac_fwd, jac_quasilinear, jac_rev, make_functional

pytestmark = pytest.mark.usefixtures("float64")

D = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
generator = torch.Generator().manual_seed(0)
W = torch.randn(3, 3, dtype=D, generator=generator) + 2 * torch.eye(3, dtype=D)
X = torch.randn(4, 3, dtype=D, generator=generator)
Function = Callable[[Tensor, Tensor], Any]

transforms = pytest.mark.parametrize("transform", [jac_rev, jac_quasilinear], ids=["jac_rev", "jac_quasilinear"])
ways = pytest.mark.parametrize("samples", [False, True], ids=["one sample", "samples"])


def jacobian(transform: Any, fn: Function, w: Tensor, x: Tensor, samples: bool, **options: Any) -> Any:
    """Of samples ``x``, or of its first."""
    return transform(fn, in_dims=(None, 0), **options)(w, x) if samples else transform(fn, **options)(w, x[0])


def wanted(fn: Function, w: Tensor, x: Tensor, samples: bool) -> Any:
    """By one plain backward pass a row of each sample, on copies."""
    return per_sample(fn, w.clone(), x.clone() if samples else x[:1].clone(), argnums=0, mapped=(False, True))


def assert_exact(transform: Any, fn: Function, samples: bool, w: Tensor = W, x: Tensor = X, **options: Any) -> None:
    own_w, own_x = w.clone(), x.clone()
    got = jacobian(transform, fn, own_w, own_x, samples, **options)
    expected = wanted(fn, w, x, samples)
    if not samples:
        expected = {k: v[0] for k, v in expected.items()} if isinstance(expected, dict) else expected[0]
    assert_same(got, expected, **CLOSE)
    assert torch.equal(own_w, w)
    assert torch.equal(own_x, x)


# --- exact ----------------------------------------------------------------------------------------


def data_changed_in_place(w: Tensor, x: Tensor) -> Tensor:
    x = x.clone()
    x.mul_(2)
    x[0] = 1.0
    return F.linear(x, w).sin()


def output_changed_in_place(w: Tensor, x: Tensor) -> Tensor:
    y = F.linear(x, w)
    y[0] = x[1]
    y[1:] *= 2
    y.add_(x)
    return F.relu(y, inplace=True)


def output_gathered_in_place(w: Tensor, x: Tensor) -> Tensor:
    y = x.new_zeros(3)
    y += F.linear(x, w)
    y[0] += w[0, 0]
    return y


def copy_of_parameter_changed_in_place(w: Tensor, x: Tensor) -> Tensor:
    v = w.clone()
    v[0] = 1.0
    v[:, 1] *= w[:, 0]
    return F.linear(x, v)


def views(w: Tensor, x: Tensor) -> Tensor:
    a, b, c = w.unbind()
    y = F.linear(x, w[:, :2].T.T.expand(3, 2)[:, :1].expand(3, 3)) * a @ b
    return y + w.view(-1)[2:5] * w.diagonal() + w.narrow(0, 1, 1).sum() + c.sin() + torch.cat(w.T.chunk(3)).sum(0)


def view_used_twice(w: Tensor, x: Tensor) -> Tensor:
    v = w.t()
    return F.linear(F.linear(x, v).sin(), v[:, [2, 0, 1]])


def under_no_grad(w: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.linear(x, w)
    return y * F.linear(x, w)


def all_under_no_grad(w: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        return F.linear(x, w)


def derived_under_no_grad(w: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        norm = w.norm()
    return F.linear(x, w / norm)


def grad_enabled_again(w: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.linear(x, w)
        with torch.enable_grad():
            z = F.linear(x, w)
    return y + z.sin()


def mapped_inside(w: Tensor, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda s: F.linear(s, w).sin())(torch.stack([x, 2 * x])).sum(0)


def network(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w)), w[:1]).sum()


EXACT: dict[str, Function] = {
    "data changed in place": data_changed_in_place,
    "output changed in place": output_changed_in_place,
    "output gathered in place": output_gathered_in_place,
    "copy of the parameter changed in place": copy_of_parameter_changed_in_place,
    "views": views,
    "a view used twice": view_used_twice,
    "contiguous copy": lambda w, x: F.linear(x, w.t().contiguous()) + w.to(torch.float64)[0],
    "no_grad": under_no_grad,
    "no_grad around all": all_under_no_grad,
    "no_grad around a factor": derived_under_no_grad,
    "enable_grad in no_grad": grad_enabled_again,
    "detached in one use": lambda w, x: F.linear(x, w.detach()) * F.linear(x, w),
    "detached result": lambda w, x: F.linear(x, w).detach(),
    "detached data": lambda w, x: F.linear(F.linear(x, w).sin().detach(), w),
    "custom Function of the parameter": lambda w, x: F.linear(x, Square.apply(w)) + F.linear(x, w),
    "custom Function of data": lambda w, x: F.linear(Square.apply(F.linear(x, w)), w),
    "closed over": lambda w, x: F.linear(F.linear(x, w).sin(), W),
    "wrapped in nn.Parameter": lambda w, x: F.linear(x, nn.Parameter(w)) + F.linear(x, w),
    "returned": lambda w, x: w,
    "returned beside a use": lambda w, x: {"w": w, "y": F.linear(x, w).sin(), "view": w.t()},
    "returned twice": lambda w, x: {"a": w, "b": w},
    "unused": lambda w, x: x.sin(),
    "mapped inside": mapped_inside,
    "gradient inside": lambda w, x: torch.func.grad(lambda s: network(w, s))(x),
    "gradient by the parameter inside": lambda w, x: torch.func.grad(network)(w, x)[0] + F.linear(x, w),
    "jvp inside": lambda w, x: torch.func.jvp(lambda s: F.linear(s, w).sin(), (x,), (x.cos(),))[1],
    "vjp inside": lambda w, x: torch.func.vjp(lambda s: F.linear(s, w).sin(), x)[1](x)[0],
    "Hessian inside": lambda w, x: torch.func.hessian(lambda s: network(w, s))(x).diagonal(),
    "Jacobian inside": lambda w, x: jac_rev(lambda s: F.linear(s, w).sin())(x).diagonal(),
    "closed forms inside": lambda w, x: jac_quasilinear(lambda v: F.linear(x, v).sin())(w)[0, 0],
}


@transforms
@ways
@pytest.mark.parametrize("name", EXACT)
def test_exact(transform: Any, name: str, samples: bool) -> None:
    if name == "closed forms inside" and transform is jac_quasilinear:
        pytest.skip("covered by test_nested")
    assert_exact(transform, EXACT[name], samples)


@ways
def test_nested(samples: bool) -> None:
    assert_exact(jac_quasilinear, EXACT["closed forms inside"], samples)


@transforms
@pytest.mark.parametrize("name", EXACT)
def test_exact_under_vmap(transform: Any, name: str) -> None:
    """The samples mapped by the caller, where nothing can be learnt about fn by trying."""
    got = torch.func.vmap(transform(EXACT[name]), (None, 0))(W, X)
    assert_same(got, wanted(EXACT[name], W, X, True), **CLOSE)


@transforms
def test_padding_tokens_have_no_derivative(transform: Any) -> None:
    """Also where the table is mapped, too."""
    tables, ids = torch.stack([W, W.sin()]), torch.tensor([[0, 1, 2], [2, 0, 0]])

    def fn(table: Tensor, ids: Tensor) -> Tensor:
        return F.embedding(ids, table, padding_idx=0).sin() @ table.T

    got = transform(fn, in_dims=(None, 0))(W, ids)
    assert_same(got, per_sample(fn, W, ids, argnums=0, mapped=(False, True)), **CLOSE)
    got = transform(fn, in_dims=(0, 0))(tables, ids)
    assert_same(got, per_sample(fn, tables, ids, argnums=0, mapped=(True, True)), **CLOSE)


@contextlib.contextmanager
def or_an_error_of_the_compiler() -> Iterator[None]:
    """PyTorch compiles some functions inside its transforms, and fails on others, whoever asks."""
    try:
        yield
    except Exception as error:
        if "from user code" not in str(error):
            raise


@transforms
@ways
@pytest.mark.parametrize("kind", ["script", "trace", "compile", "nested function"])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_hidden_from_the_capture(transform: Any, kind: str, samples: bool) -> None:
    hide = {
        "script": torch.jit.script,
        "trace": lambda f: torch.jit.trace(f, (W, X[0])),
        "compile": lambda f: torch.compile(f, backend="eager"),
        "nested function": lambda f: torch.compiler.disable(f),
    }[kind]
    hidden = hide(_hidden)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return hidden(w, x) + F.linear(x, w)

    torch.compiler.reset()
    expected = wanted(lambda w, x: _hidden(w, x) + F.linear(x, w), W, X, samples)
    with or_an_error_of_the_compiler():
        assert_same(jacobian(transform, fn, W, X, samples), expected if samples else expected[0], **CLOSE)


def _hidden(w: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, w * w).sin()


@transforms
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_module(transform: Any) -> None:
    torch.compiler.reset()
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2)))
    inner, params = make_functional(module)
    expected = per_sample(inner, params, X, argnums=0, mapped=(False, True))
    module[1] = torch.compile(module[1], backend="eager")
    fn, compiled = make_functional(module)
    with or_an_error_of_the_compiler():
        got = transform(fn, in_dims=(None, 0))(compiled, X)
        assert_same(list(got.values()), list(expected.values()), **CLOSE)


# --- the same tensor in several places ------------------------------------------------------------


@transforms
@ways
def test_parameter_passed_twice(transform: Any, samples: bool) -> None:
    """Two leaves, each with the derivative of its own uses."""

    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(F.linear(x, params["a"]).sin(), params["b"]) + params["a"].sum()

    got = jacobian(transform, fn, {"a": W, "b": W}, X, samples)  # type: ignore[arg-type]
    first = wanted(lambda w, x: fn({"a": w, "b": W}, x), W, X, samples)
    second = wanted(lambda w, x: fn({"a": W, "b": w}, x), W, X, samples)
    expected = {"a": first, "b": second}
    assert_same(got, expected if samples else {k: v[0] for k, v in expected.items()}, **CLOSE)


@transforms
@pytest.mark.parametrize("tracked", [False, True])
def test_parameter_also_closed_over(transform: Any, tracked: bool) -> None:
    """The derivative is by the argument alone; gradients of the result count both."""
    live = W.clone().requires_grad_(tracked)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, w).sin(), live)

    got = transform(fn, in_dims=(None, 0))(live, X)
    oracle = [torch.autograd.functional.jacobian(lambda w, s=s: fn(w, s), live, create_graph=tracked) for s in X]
    torch.testing.assert_close(got, torch.stack(oracle), **CLOSE)
    assert got.requires_grad == tracked
    if tracked:
        slope = torch.autograd.grad(got.sin().sum(), live)[0]
        torch.testing.assert_close(slope, torch.autograd.grad(torch.stack(oracle).sin().sum(), live)[0], **CLOSE)


@transforms
def test_views_of_one_tensor_as_parameters(transform: Any) -> None:
    flat = W.reshape(-1).clone()
    params = {"a": flat[:3].view(1, 3), "b": flat[3:6], "c": flat[2:4]}  # the last overlaps both

    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, params["a"]) * params["b"] * params["c"].sum()

    got = transform(fn, in_dims=(None, 0))(params, X)
    copies = {name: leaf.clone() for name, leaf in params.items()}
    assert_same(got, per_sample(fn, copies, X, argnums=0, mapped=(False, True)), **CLOSE)


# --- attention ------------------------------------------------------------------------------------

MASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean mask": {"attn_mask": torch.ones(4, 4, dtype=torch.bool).tril()},
    "additive mask": {"attn_mask": torch.randn(4, 4, dtype=D, generator=generator)},
    "no dropout": {"dropout_p": 0.0},
    "scale": {"scale": 0.3},
    "grouped queries": {"enable_gqa": True},
}


@transforms
@ways
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("name", MASKS)
def test_scaled_dot_product_attention(transform: Any, name: str, axes: int, samples: bool) -> None:
    w, x = torch.randn(4, 24), torch.randn(2, 4, 4)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, w.t()).reshape(4, 3, 2, 4).permute(1, 2, 0, 3)  # (heads, places, width) each
        if name == "grouped queries":
            k, v = k[:1], v[:1]
        if axes == 4:
            q, k, v = q[None], k[None], v[None]
        y = F.scaled_dot_product_attention(q, k, v, **MASKS[name])
        return y.sum((-2, -3)).sin().reshape(-1)

    assert_exact(transform, fn, samples, w, x)


@transforms
def test_mask_of_each_sample(transform: Any) -> None:
    w, x, keep = torch.randn(4, 4), torch.randn(3, 4, 4), torch.rand(3, 4) > 0.3
    keep[:, 0] = True

    def fn(w: Tensor, x: Tensor, keep: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(F.linear(x, w)[None], x[None], F.linear(x, w)[None], attn_mask=keep[None])
        return y.sum(1)

    got = transform(fn, in_dims=(None, 0, 0))(w, x, keep)
    assert_same(got, per_sample(fn, w, x, keep, argnums=0, mapped=(False, True, True)), **CLOSE)


# --- precision ------------------------------------------------------------------------------------


@transforms
@ways
@pytest.mark.parametrize("where", ["inside", "outside", "inside, of a part"])
def test_autocast(transform: Any, where: str, samples: bool) -> None:
    """As close as bfloat16 allows, in the dtype of the parameters."""
    w, x = W.float(), X.float()

    def layer(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, w).sin()

    def inside(w: Tensor, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(w, x)

    def part(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(inside(w, x).float(), w) + layer(w, x)

    fn = {"inside": inside, "outside": layer, "inside, of a part": part}[where]
    around = torch.autocast("cpu", torch.bfloat16) if where == "outside" else contextlib.nullcontext()
    with around:
        got = jacobian(transform, fn, w, x, samples)
    twice = where == "inside, of a part"
    expected = wanted(lambda w, x: F.linear(layer(w, x), w) + layer(w, x) if twice else layer(w, x), W, X, samples)
    assert got.dtype == torch.float32
    scale = expected.abs().max()
    difference = (got.double() - (expected if samples else expected[0])).abs().max() / scale
    assert 1e-6 < difference < 3e-2, "of the size of bfloat16's rounding"


@transforms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["convolution", "normalised"])
def test_half_precision(transform: Any, dtype: torch.dtype, kind: str) -> None:
    if kind == "convolution":
        module, x = cnn().double(), torch.randn(3, 1, 8, 8)
    else:
        layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)]
        module, x = nn.Sequential(*layers).double(), torch.randn(3, 3)
    module.to(dtype).double()  # the same rounded weights in both
    x = x.to(dtype).double()
    fn, params = make_functional(module)
    expected = per_sample(fn, params, x, argnums=0, mapped=(False, True))
    low_fn, low = make_functional(copy.deepcopy(module).to(dtype))
    got = transform(low_fn, in_dims=(None, 0))(low, x.to(dtype))
    tolerance = 30 * torch.finfo(dtype).eps
    for name, leaf in got.items():
        assert leaf.dtype == dtype
        scale = expected[name].abs().max()
        torch.testing.assert_close(leaf.double() / scale, expected[name] / scale, rtol=0, atol=tolerance)


@transforms
@ways
def test_cast_inside(transform: Any, samples: bool) -> None:
    """Parameters in half precision, used in double: the result has their dtype."""
    w = W.bfloat16()
    got = jacobian(transform, lambda w, x: F.linear(x, w.double()).sin(), w, X, samples)
    expected = wanted(lambda w, x: F.linear(x, w).sin(), w.double(), X, samples).bfloat16()
    assert_same(got, expected if samples else expected[0])


# --- random functions -----------------------------------------------------------------------------


def dropped(w: Tensor, x: Tensor) -> Tensor:
    return F.dropout(F.linear(x, w), 0.5)


def weights_dropped(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, F.dropout(w, 0.5))


RANDOM = {"dropout": dropped, "weights dropped": weights_dropped}


@transforms
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_dropout(transform: Any, name: str, randomness: str, chunk_size: int | None) -> None:
    """Both functions are linear in w, so J w is the value: of the same draw, whatever was drawn."""
    w, x = torch.randn(8, 3), torch.randn(6, 3)
    options = {"randomness": randomness, "return_value": True, "chunk_size": chunk_size}
    jac, value = transform(RANDOM[name], in_dims=(None, 0), **options)(w, x)
    torch.testing.assert_close((jac * w).sum((-1, -2)), value, **CLOSE)
    drawn = (jac / x[:, None, None]).diagonal(dim1=1, dim2=2)  # (N, 3, 8), 0 or 2: what each sample kept
    torch.testing.assert_close(drawn, 2 * (drawn > 1).to(drawn), **CLOSE)
    assert bool((drawn == drawn[0]).all()) == (randomness == "same")


@transforms
@pytest.mark.parametrize("name", RANDOM)
def test_dropout_must_be_allowed(transform: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match="randomness"):
        transform(RANDOM[name], in_dims=(None, 0))(W, X)


# --- gradient modes of the caller -----------------------------------------------------------------


@transforms
@ways
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("tracked", [False, True])
def test_modes_of_the_caller(transform: Any, mode: Any, tracked: bool, samples: bool) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, w).sin(), w) * w[0]

    w = W.clone().requires_grad_(tracked)
    with mode():
        got, value = jacobian(transform, fn, w, X, samples, return_value=True)
        expected_value = fn(w, X) if samples else fn(w, X[0])
    assert not got.requires_grad
    assert not value.requires_grad
    expected = wanted(fn, W, X, samples)
    with torch.inference_mode():
        torch.testing.assert_close(got, expected if samples else expected[0], **CLOSE)
        torch.testing.assert_close(value, expected_value, **CLOSE)


@transforms
@ways
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_inference_tensors(transform: Any, samples: bool, inside: bool) -> None:
    with torch.inference_mode():
        w, x = W.clone(), X.clone()
    with torch.inference_mode(inside):
        got = jacobian(transform, lambda w, x: F.linear(x, w).sin(), w, x, samples)
    expected = wanted(lambda w, x: F.linear(x, w).sin(), W, X, samples)
    with torch.inference_mode():
        torch.testing.assert_close(got, expected if samples else expected[0], **CLOSE)


# --- errors ---------------------------------------------------------------------------------------

IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda w: w.mul_(2),
    "setitem": lambda w: w.__setitem__(0, 1.0),
    "augmented": lambda w: w.__iadd__(1),
    "view": lambda w: w[0].mul_(2),
    "flat view": lambda w: w.view(-1).add_(1),
    "setitem of a view": lambda w: w[0].__setitem__(1, 3.0),
    "transposed": lambda w: w.t().add_(1),
    "activation": lambda w: F.relu(w, inplace=True),
    "threshold": lambda w: F.threshold(w, 0.0, 0.0, inplace=True),
    "out": lambda w: torch.mul(w, 2, out=w),
}
REASON = r"in place|in-place|leaf Variable|out=\.\.\. arguments|allowed only on views|aten::mul\.out"


@transforms
@ways
@pytest.mark.parametrize("name", IN_PLACE)
def test_parameter_changed_in_place(transform: Any, name: str, samples: bool) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        IN_PLACE[name](w)
        return F.linear(x, w)

    w = W.clone()
    with pytest.raises(RuntimeError, match=REASON):
        jacobian(transform, fn, w, X, samples)
    assert torch.equal(w, W)


@ways
@pytest.mark.parametrize("change", [lambda w: w.mul_(2), nn.init.ones_], ids=["mul_", "init"])
def test_parameter_changed_in_place_under_no_grad(change: Any, samples: bool) -> None:
    """Nothing stops this in plain PyTorch; captured inputs and closed forms would be of different values."""

    def fn(w: Tensor, x: Tensor) -> Tensor:
        y = F.linear(x, w)
        with torch.no_grad():
            change(w)
        return y * F.linear(x, w)

    w = W.clone()
    with pytest.raises(jacfn.JacfnError, match="changes a differentiated argument in place.*clone it first"):
        jacobian(jac_quasilinear, fn, w, X, samples)
    assert torch.equal(w, W)


@transforms
@ways
def test_data_of_the_caller_changed_in_place(transform: Any, samples: bool) -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        x.mul_(2)
        return F.linear(x, w)

    x = X.clone()
    with pytest.raises(RuntimeError, match="in-place operation"):
        jacobian(transform, fn, W, x, samples)
    assert torch.equal(x, X)


def checkpointed(reentrant: bool) -> Function:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return checkpoint(lambda w, x: F.linear(x, w).sin(), w, x, use_reentrant=reentrant)

    return fn


def backward_inside(w: Tensor, x: Tensor) -> Tensor:
    F.linear(x, w).sum().backward()
    return F.linear(x, w)


def hooks_inside(w: Tensor, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return F.linear(x, w).sin()


def made_to_require_grad(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w.requires_grad_())


def data_made_to_require_grad(w: Tensor, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.linear(x, w).sin().sum(), x, create_graph=True)[0]


REFUSED: dict[str, tuple[Function, str]] = {
    "checkpoint": (checkpointed(False), "saved tensor hooks|checkpoint"),
    "reentrant checkpoint": (checkpointed(True), "setup_context|checkpoint"),
    "saved tensor hooks": (hooks_inside, "saved tensor hooks"),
    "backward": (backward_inside, r"backward\(\)|calls torch.autograd"),
    "requires_grad_": (made_to_require_grad, r"requires_grad_"),
    "requires_grad_ of data": (data_made_to_require_grad, r"requires_grad_"),
    "numpy": (lambda w, x: F.linear(x, w) * float(w.detach().numpy()[0, 0]), "data pointer|numpy"),
}


@transforms
@ways
@pytest.mark.parametrize("name", REFUSED)
def test_refused(transform: Any, name: str, samples: bool) -> None:
    fn, message = REFUSED[name]
    with pytest.raises(RuntimeError, match=message):
        jacobian(transform, fn, W, X, samples)


# --- never wrong ----------------------------------------------------------------------------------


def in_inference_mode(w: Tensor, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = F.linear(x, w)
    return y + F.linear(x, w)


def hooked(w: Tensor, x: Tensor) -> Tensor:
    y = F.linear(x, w)
    y.register_hook(lambda grad: 2 * grad)
    return y


def differentiated_by_autograd(w: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(F.linear(x, w).sin().sum(), w, create_graph=True)[0][0]


def decided_by_the_parameter(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w) if w[0, 0] > 0 else F.linear(x, w).sin()


def decided_by_data(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w) if x[0] > 0 else F.linear(x, w).sin()


def written_into_a_buffer(w: Tensor, x: Tensor) -> Tensor:
    y = torch.zeros(3)
    y[:] = F.linear(x, w)
    return y


def dual_numbers(w: Tensor, x: Tensor) -> Tensor:
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        return forward_ad.unpack_dual(F.linear(dual, w).sin()).tangent


DOUBTFUL: dict[str, Function] = {
    "inference_mode": in_inference_mode,
    "hook": hooked,
    "autograd.grad": differentiated_by_autograd,
    "item of the parameter": lambda w, x: F.linear(x, w) * w[0, 0].item(),
    "branch on the parameter": decided_by_the_parameter,
    "branch on data": decided_by_data,
    "tolist": lambda w, x: F.linear(x, torch.tensor(w.tolist())) + F.linear(x, w),
    ".data": lambda w, x: F.linear(x, w.data) * F.linear(x, w),
    "as_strided": lambda w, x: w.as_strided((3,), (4,)) * x,
    "as_strided and linear": lambda w, x: F.linear(x, w.as_strided((3, 3), (1, 3))),
    "buffer of its own": written_into_a_buffer,
    "deepcopy": lambda w, x: F.linear(x, copy.deepcopy(w)),
    "dual numbers": dual_numbers,
}


@contextlib.contextmanager
def or_an_error() -> Iterator[None]:
    with contextlib.suppress(RuntimeError):
        yield


@transforms
@ways
@pytest.mark.parametrize("name", DOUBTFUL)
def test_exact_or_an_error(transform: Any, name: str, samples: bool) -> None:
    """What depends on the mode, or on how the samples are mapped; a wrong result fails here, an error does not."""
    with or_an_error():
        assert_exact(transform, DOUBTFUL[name], samples)


@transforms
@pytest.mark.parametrize("way", ["plain", "vmap", "grad"])
def test_autograd_by_an_argument_inside(transform: Any, way: str) -> None:
    """Where the argument is differentiated as well, PyTorch has no objection to this in reverse mode."""

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(F.linear(x, w).sin().sum(), x, create_graph=True)[0]

    def of(fn: Function, argnums: tuple[int, ...]) -> Any:
        both = transform(fn, argnums) if fn is not slope else torch.func.jacrev(slope, argnums)
        return {
            "plain": lambda: both(W, X[0])[0],
            "vmap": lambda: torch.func.vmap(both, (None, 0))(W, X)[0],
            "grad": lambda: torch.func.grad(lambda w: both(w, X[0])[0].sin().sum())(W),
        }[way]()

    def slope(w: Tensor, x: Tensor) -> Tensor:  # the same, written for torch.func
        return torch.func.grad(lambda x: F.linear(x, w).sin().sum())(x)

    with or_an_error():
        assert_same(of(fn, (0, 1)), of(slope, (0, 1)), **CLOSE)


# --- functions of nothing -------------------------------------------------------------------------


@transforms
@ways
def test_no_leaves(transform: Any, samples: bool) -> None:
    got = jacobian(transform, lambda params, x: x.sin(), {}, X, samples)  # type: ignore[arg-type, dict-item]
    assert got == {}


# --- padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 2, -1])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("transform", [jac_rev, jac_fwd, jac_quasilinear])
@pytest.mark.parametrize("in_dims", [None, (None, 0), (0, 0), (0, None)])
def test_padding_has_no_derivative(transform: Any, in_dims: Any, raw: bool, padding: int) -> None:
    """PyTorch's forward mode gives it one, and its batching rule of reverse mode is wrong for mapped tables."""
    tables, indices = torch.randn(2, 3, 2, dtype=torch.float64), torch.tensor([[0, 1, 2, 2], [2, 0, 1, 0]])

    def fn(w: Tensor, i: Tensor) -> Tensor:
        rows = torch.embedding(w, i, padding % 3) if raw else F.embedding(i, w, padding_idx=padding)
        return rows.sin()

    def closed_form(w: Tensor, i: Tensor) -> Tensor:
        jac = torch.zeros(4, 2, 3, 2, dtype=torch.float64)
        for place, row in enumerate(i.tolist()):
            if row != padding % 3:
                jac[place, :, row] = w[row].cos().diag()
        return jac

    if in_dims is None:
        torch.testing.assert_close(transform(fn)(tables[0], indices[0]), closed_form(tables[0], indices[0]))
        return
    w, i = (x if dim == 0 else x[0] for x, dim in zip((tables, indices), in_dims, strict=True))
    pairs = [(w[n] if in_dims[0] == 0 else w, i[n] if in_dims[1] == 0 else i) for n in range(2)]
    wanted = torch.stack([closed_form(*pair) for pair in pairs])
    torch.testing.assert_close(transform(fn, in_dims=in_dims)(w, i), wanted)
    mapped = torch.func.vmap(fn, in_dims)
    stacked = torch.stack([fn(*pair) for pair in pairs])
    torch.testing.assert_close(mapped(w, i), stacked)

    def whole(w: Tensor) -> Tensor:  # mapped inside
        return mapped(w, i)

    got = transform(whole)(w)
    for n in range(2):
        torch.testing.assert_close(got[n][:, :, n] if in_dims[0] == 0 else got[n], wanted[n])
