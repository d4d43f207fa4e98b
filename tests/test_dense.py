"""jac_rev and jac_fwd against independent oracles: values, structures, dtypes, samples, randomness."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from helpers import (
    Box,
    Pair,
    Shared,
    as_tree,
    assert_same,
    chosen_jacobian,
    chunk_sizes,
    cnn,
    finite_differences,
    leaves_of,
    map_tree,
    mlp,
    per_sample,
    rebuild,
    reference,
    tensors,
    trees,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from jacfn import jac_fwd, jac_rev, make_functional

pytestmark = pytest.mark.usefixtures("float64")

TRANSFORMS = pytest.mark.parametrize("transform", [jac_rev, jac_fwd])
MODES = pytest.mark.parametrize(
    ("transform", "torch_transform"),
    [(jac_rev, torch.func.jacrev), (jac_fwd, torch.func.jacfwd)],
    ids=["jac_rev", "jac_fwd"],
)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


# --- values and structures ------------------------------------------------------------------------


@TRANSFORMS
@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes())
def test_jacobian_chosen_first(transform: Any, inputs: Any, outputs: Any, chunk_size: int | None) -> None:
    fn, matrix, _ = chosen_jacobian(inputs, outputs)
    expected = as_tree(matrix(inputs), outputs, inputs)
    actual = transform(fn, chunk_size=chunk_size)(inputs)
    assert_same(actual, expected, **CLOSE)
    assert_same(reference(fn, inputs), expected, **CLOSE)


@TRANSFORMS
@given(
    args=st.lists(trees(), min_size=1, max_size=3),
    outputs=trees(),
    chunk_size=chunk_sizes(),
    data=st.data(),
)
def test_argnums(transform: Any, args: list[Any], outputs: Any, chunk_size: int | None, data: st.DataObject) -> None:
    count = len(args)
    wanted = data.draw(st.permutations(range(count)).map(lambda order: tuple(order[: 1 + count // 2])))
    signed = tuple(data.draw(st.sampled_from([i, i - count])) for i in wanted)
    argnums, plain = (signed, wanted) if data.draw(st.booleans()) else (signed[0], wanted[0])
    chosen = chosen_jacobian(args, outputs).fn

    def fn(*args: Any) -> Any:
        return chosen(list(args))

    actual = transform(fn, argnums, chunk_size=chunk_size)(*args)
    assert_same(actual, reference(fn, *args, argnums=plain), **CLOSE)


@TRANSFORMS
@given(inputs=trees(), outputs=trees(), chunk_size=chunk_sizes())
def test_value_and_aux_stand_beside(transform: Any, inputs: Any, outputs: Any, chunk_size: int | None) -> None:
    fn = chosen_jacobian(inputs, outputs).fn

    def with_aux(tree: Any) -> Any:
        return fn(tree), {"leaf": leaves_of(tree)[0] + 1, "text": "kept", "nothing": None}

    jac, value, aux = reference(fn, inputs), fn(inputs), with_aux(inputs)[1]
    call = partial(transform, chunk_size=chunk_size)
    assert_same(call(fn, return_value=True)(inputs), (jac, value), **CLOSE)
    assert_same(call(with_aux, has_aux=True)(inputs), (jac, aux), **CLOSE)
    assert_same(call(with_aux, has_aux=True, return_value=True)(inputs), (jac, (value, aux)), **CLOSE)


@TRANSFORMS
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    activation=st.sampled_from([nn.Tanh, nn.GELU, nn.Softplus, nn.SiLU]),
    samples=st.integers(1, 4),
    chunk_size=chunk_sizes(),
)
def test_random_mlps(
    transform: Any, widths: list[int], activation: type[nn.Module], samples: int, chunk_size: int | None
) -> None:
    torch.manual_seed(sum(widths))
    fn, params = make_functional(mlp(*widths, activation=activation))
    x = torch.randn(samples, widths[0])
    actual = transform(fn, (0, 1), in_dims=(None, 0), chunk_size=chunk_size)(params, x)
    assert_same(actual, per_sample(fn, params, x, argnums=(0, 1), mapped=(False, True)), **CLOSE)


@TRANSFORMS
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Shared(3), (3,)),
        (cnn(), (1, 8, 8)),
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)), (4,)),
        (nn.Sequential(nn.Embedding(5, 3), nn.Flatten(0), nn.Linear(6, 2)), None),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval(), (3, 4)),
    ],
    ids=["shared", "cnn", "layer_norm", "embedding", "transformer"],
)
def test_networks(transform: Any, module: nn.Module, shape: tuple[int, ...] | None) -> None:
    fn, params = make_functional(module.double(), batched=shape is None)
    x = torch.tensor([1, 4]) if shape is None else torch.randn(shape)
    assert_same(transform(fn)(params, x), reference(fn, params, x), **CLOSE)


@TRANSFORMS
def test_finite_differences(transform: Any) -> None:
    def fn(x: Tensor) -> Tensor:
        return torch.stack([x.norm(), x.prod(), x[0, 1].exp(), x.logsumexp(0).max()])

    x = torch.randn(2, 3)
    torch.testing.assert_close(transform(fn)(x), finite_differences(fn, x), rtol=1e-7, atol=1e-8)


# --- in the place of torch.func -------------------------------------------------------------------


class Case(NamedTuple):
    """A call that has to agree with torch.func in everything."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[0] = x[1] ** 2
    y += 1
    return y


def _through_complex(x: Tensor) -> Tensor:
    return torch.fft.rfft(x).abs()


VECTOR = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
MATRIX = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) / 7
CONSTANT = torch.tensor([1.0, 2.0], dtype=torch.float64)
CASES = {
    "vector": Case(torch.sin, (VECTOR,)),
    "scalar to scalar": Case(torch.exp, (torch.tensor(0.3),)),
    "scalar to matrix": Case(lambda x: x * MATRIX, (torch.tensor(0.3),)),
    "matrix to scalar": Case(lambda x: x.pow(3).sum(), (MATRIX,)),
    "identity": Case(lambda x: x, (VECTOR,)),
    "view": Case(lambda x: x.t()[1:].expand(4, 2, 2), (MATRIX,)),
    "strided input": Case(lambda x: x**2, (MATRIX.t()[::2],)),
    "in place on a copy": Case(_in_place, (VECTOR,)),
    "complex inside": Case(_through_complex, (VECTOR,)),
    "independent output": Case(lambda x: (x**2, torch.ones(2)), (VECTOR,)),
    "only a constant": Case(lambda x: CONSTANT, (VECTOR,)),
    "one of two inputs": Case(lambda x, y: (x * 2, y.sum()), (VECTOR, MATRIX), {"argnums": (0, 1)}),
    "argnums tuple of one": Case(lambda x, y: x * y[0], (VECTOR, MATRIX), {"argnums": (1,)}),
    "argnums backwards": Case(lambda x, y: x * y, (VECTOR, MATRIX), {"argnums": (1, 0)}),
    "aux": Case(lambda x: (x**2, x + 1), (VECTOR,), {"has_aux": True}),
    "aux tree": Case(lambda x: (x**2, {"b": x, "a": [x.sum()]}), (VECTOR,), {"has_aux": True}),
    "integer aux": Case(lambda x: (x**2, x.argmax()), (VECTOR,), {"has_aux": True}),
    "data that is no tensor": Case(lambda x, n, name: x**n, (VECTOR, 3, "text")),
    "integer data": Case(lambda x, i: x[i] ** 2, (VECTOR, torch.tensor([2, 0]))),
    "dict": Case(lambda p: {"z": p["b"] * 2, "y": p["a"] * p["b"]}, ({"b": VECTOR, "a": VECTOR + 1},)),
    "list in tuple": Case(lambda p: (p[0][0] * p[1], [p[1]]), (([VECTOR], VECTOR + 1),)),
    "namedtuple": Case(lambda p: Pair(p.first**2, p.second * p.first), (Pair(VECTOR, VECTOR + 1),)),
    "empty output": Case(lambda x: x[:0], (VECTOR,)),
    "float32 to float64": Case(lambda x: x.double() ** 2, (VECTOR.float(),)),
    "float64 to float32": Case(lambda x: x.float() ** 2, (VECTOR,)),
    "two dtypes": Case(lambda x, y: (x * y, x + 1), (VECTOR, VECTOR.float()), {"argnums": (0, 1)}),
}


@MODES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_drop_in(transform: Any, torch_transform: Any, case: Case, chunk_size: int | None) -> None:
    expected = torch_transform(case.fn, **case.options)(*case.args)
    actual = transform(case.fn, **case.options, chunk_size=chunk_size)(*case.args)
    assert_same(actual, expected, rtol=1e-12, atol=1e-14)


# What torch.func refuses or, as jacfwd with negative argnums, answers by zeros.
BEYOND = {
    "expanded input": Case(lambda x: x**2, (torch.tensor(2.0, dtype=torch.float64).expand(3),)),
    "empty input": Case(lambda x: torch.cat([x, VECTOR]) ** 2, (torch.ones(0, dtype=torch.float64),)),
    "argnums negative": Case(lambda x, y: x * y, (VECTOR, MATRIX), {"argnums": -1}),
}


@TRANSFORMS
@pytest.mark.parametrize("case", BEYOND.values(), ids=BEYOND)
def test_beyond_torch(transform: Any, case: Case) -> None:
    assert_same(transform(case.fn, **case.options)(*case.args), reference(case.fn, *case.args, **case.options))


@TRANSFORMS
def test_keywords_are_handed_through(transform: Any) -> None:
    def fn(x: Tensor, *, power: int, shift: Tensor) -> Tensor:
        return (x + shift) ** power

    expected = torch.diag(3 * (VECTOR + 1) ** 2)
    torch.testing.assert_close(transform(fn)(VECTOR, power=3, shift=torch.ones(3)), expected)
    jac = transform(fn, in_dims=0)(torch.stack([VECTOR, VECTOR]), power=3, shift=torch.ones(3))
    torch.testing.assert_close(jac, torch.stack([expected, expected]))  # samples come by position only


@MODES
def test_same_positional_signature(transform: Any, torch_transform: Any) -> None:
    def positional(fn: Any) -> list[Any]:
        kinds = inspect.signature(fn).parameters.values()
        return [parameter.default for parameter in kinds if parameter.kind != parameter.KEYWORD_ONLY]

    assert positional(transform) == positional(torch_transform)


@TRANSFORMS
def test_dict_columns_keep_insertion_order(transform: Any) -> None:
    jac = transform(lambda p: {"z": p["b"], "a": p["a"]})({"b": VECTOR, "a": VECTOR})
    assert list(jac) == ["z", "a"]
    assert list(jac["z"]) == ["b", "a"]


@TRANSFORMS
def test_dataclass_with_checks_in_init(transform: Any) -> None:
    """A Jacobian stands where a value stood: what the constructor says of values does not hold for it."""

    @dataclasses.dataclass(frozen=True)
    class Vectors:
        left: Tensor
        right: Tensor

        def __post_init__(self) -> None:
            if self.left.ndim != 1 or self.right.ndim != 1:
                raise ValueError("vectors only")

    jac = transform(lambda pair: Vectors(pair.right * pair.left, pair.left))(Vectors(VECTOR, VECTOR))
    assert type(jac) is Vectors
    assert type(jac.left) is Vectors
    torch.testing.assert_close(jac.left.right, torch.diag(VECTOR))


@TRANSFORMS
def test_other_arguments_arrive_as_they_are(transform: Any) -> None:
    """What is not differentiated is handed through, not rebuilt from its leaves."""

    @dataclasses.dataclass
    class Remembering(Box):
        def __post_init__(self) -> None:
            self.total = self.left + self.right

    settings = Remembering(2, 3)
    torch.testing.assert_close(transform(lambda x, s: x * s.total)(VECTOR, settings), 5 * torch.eye(3))


@TRANSFORMS
def test_none_in_the_arguments(transform: Any) -> None:
    jac = transform(lambda p, extra: p["w"] * 2)({"w": VECTOR, "bias": None}, None)
    assert jac["bias"] is None
    torch.testing.assert_close(jac["w"], 2 * torch.eye(3))


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("in_dims", [None, 0])
def test_dtypes(transform: Any, torch_transform: Any, dtype: torch.dtype, in_dims: int | None) -> None:
    weight = torch.randn(2, 3)

    def fn(x: Tensor) -> Tensor:
        return torch.tanh(weight.to(x.dtype) @ x.exp())

    x = torch.rand(4, 3)
    jac = transform(fn, in_dims=0)(x.to(dtype)) if in_dims == 0 else transform(fn)(x[0].to(dtype))
    expected = torch.func.vmap(torch_transform(fn))(x) if in_dims == 0 else torch_transform(fn)(x[0])
    assert jac.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(jac.double(), expected, rtol=tolerance, atol=tolerance)


@TRANSFORMS
def test_devices(transform: Any, device: str) -> None:
    torch.manual_seed(0)
    fn, params = make_functional(cnn().to(device))
    images = torch.randn(5, 1, 8, 8)
    expected = (
        per_sample(fn, map_tree(lambda p: p.cpu(), params), images, argnums=0, mapped=(False, True))
        if device == "cpu"
        else None
    )
    jac = transform(fn, in_dims=(None, 0), chunk_size=7)(params, images.to(device))
    if expected is None:
        expected = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(params, images.to(device))
    assert_same(jac, expected, **CLOSE)


# --- samples --------------------------------------------------------------------------------------


def _place_samples(stacked: Any, data: st.DataObject) -> tuple[Any, Any]:
    """``stacked`` (samples first) with its sample axis moved anywhere, and the in_dims that say where."""
    if data.draw(st.booleans(), label="one in_dims for the whole tree"):
        return stacked, 0
    leaves, dims = [], []
    for leaf in leaves_of(stacked):
        dim = data.draw(st.integers(-leaf.ndim, leaf.ndim - 1))
        leaves.append(leaf.movedim(0, dim))
        dims.append(dim)
    return rebuild(stacked, leaves), rebuild(stacked, dims)


@TRANSFORMS
@given(
    weights=trees(),
    x=trees(),
    outputs=trees(),
    samples=st.integers(1, 4),
    chunk_size=chunk_sizes(),
    argnums=st.sampled_from([0, 1, (0, 1), (1, 0), (-1,)]),
    data=st.data(),
)
def test_samples(
    transform: Any,
    weights: Any,
    x: Any,
    outputs: Any,
    samples: int,
    chunk_size: int | None,
    argnums: int | tuple[int, ...],
    data: st.DataObject,
) -> None:
    chosen = chosen_jacobian([weights, x], outputs).fn

    def fn(weights: Any, x: Any) -> Any:
        return chosen([weights, x])

    stacked = map_tree(lambda leaf: torch.stack([leaf + 0.1 * n for n in range(samples)]), x)
    moved, dims = _place_samples(stacked, data)
    jac = transform(fn, argnums, in_dims=(None, dims), chunk_size=chunk_size)(weights, moved)
    expected = per_sample(fn, weights, stacked, argnums=argnums, mapped=(False, True))
    assert_same(jac, expected, **CLOSE)


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("in_dims", [0, (0, 0), [0, 0], (0, {"x": 0, "t": 0}), (0, {"x": 0, "t": -1})])
def test_mapped_parameters(transform: Any, in_dims: Any, chunk_size: int | None) -> None:
    """Every sample with weights of its own: independent problems."""

    def fn(w: Tensor, data: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"r": w[0] * (w[1] * data["x"]).sin() - data["t"]}

    w, data = torch.randn(3, 2), {"x": torch.randn(3, 4), "t": torch.randn(3, 4)}
    call = dict(data) if in_dims != (0, {"x": 0, "t": -1}) else {"x": data["x"], "t": data["t"].T}
    jac, value = transform(fn, in_dims=in_dims, chunk_size=chunk_size, return_value=True)(w, call)
    assert_same(jac, per_sample(fn, w, data, argnums=0, mapped=(True, True)), **CLOSE)
    assert_same(value, torch.func.vmap(fn)(w, data), **CLOSE)


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("samples", [0, 1, 5])
def test_layout_with_samples(transform: Any, samples: int, chunk_size: int | None) -> None:
    def fn(w: Tensor, x: Tensor) -> tuple[Any, Any]:
        return {"y": torch.outer(w, x).sin(), "s": x.sum()}, {"x": x + 1, "n": 3}

    w, x = torch.randn(2), torch.randn(samples, 3)
    jac, (value, aux) = transform(
        fn, (0, 1), in_dims=(None, 0), has_aux=True, return_value=True, chunk_size=chunk_size
    )(w, x)
    found = {key: [tuple(leaf.shape) for leaf in part] for key, part in jac.items()}
    assert found == {"y": [(samples, 2, 3, 2), (samples, 2, 3, 3)], "s": [(samples, 2), (samples, 3)]}
    assert_same(value, {"y": torch.sin(w[None, :, None] * x[:, None]), "s": x.sum(1)})
    assert_same(aux, {"x": x + 1, "n": 3})


@MODES
def test_samples_as_vmap_does(transform: Any, torch_transform: Any) -> None:
    fn, params = make_functional(mlp(3, 4, 2))
    x = torch.randn(3, 6)
    expected = torch.func.vmap(torch_transform(fn), (None, 1))(params, x)
    assert_same(transform(fn, in_dims=(None, 1))(params, x), expected, **CLOSE)


# --- random functions -----------------------------------------------------------------------------


def _dropped(x: Tensor) -> Tensor:
    """Every element of the Jacobian's diagonal says whether its element was dropped."""
    return F.dropout(x, 0.5) * torch.ones(40)


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_dropout_without_samples_is_one_draw(chunk_size: int | None) -> None:
    """Reverse mode evaluates fn once, whatever the chunks, so that randomness needs no permission."""
    jac, value = jac_rev(_dropped, chunk_size=chunk_size, return_value=True)(torch.ones(40))
    torch.testing.assert_close(jac, torch.diag(value))
    assert 0 < (value == 0).sum() < 40


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_dropout_draws_once_for_all_columns(randomness: str, chunk_size: int | None) -> None:
    jac, value = jac_fwd(_dropped, chunk_size=chunk_size, return_value=True, randomness=randomness)(torch.ones(40))
    torch.testing.assert_close(jac, torch.diag(value))
    assert 0 < (value == 0).sum() < 40


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_forward_mode_refuses_unannounced_randomness(chunk_size: int | None) -> None:
    """Otherwise columns that were computed at different times would belong to different functions."""
    with pytest.raises(RuntimeError, match="random"):
        jac_fwd(_dropped, chunk_size=chunk_size)(torch.ones(40))


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 40, 100])
@pytest.mark.parametrize("samples", [1, 5])
def test_samples_with_unannounced_randomness(transform: Any, samples: int, chunk_size: int | None) -> None:
    with pytest.raises(RuntimeError, match="random"):
        transform(_dropped, in_dims=0, chunk_size=chunk_size)(torch.ones(samples, 40))


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
def test_samples_share_a_draw(transform: Any, chunk_size: int | None) -> None:
    jac, value = transform(_dropped, in_dims=0, randomness="same", chunk_size=chunk_size, return_value=True)(
        torch.ones(5, 40)
    )
    torch.testing.assert_close(jac, torch.diag_embed(value))
    assert (value == value[0]).all()
    assert 0 < (value[0] == 0).sum() < 40


@TRANSFORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
def test_samples_differ(transform: Any, chunk_size: int | None) -> None:
    jac, value = transform(_dropped, in_dims=0, randomness="different", chunk_size=chunk_size, return_value=True)(
        torch.ones(5, 40)
    )
    torch.testing.assert_close(jac, torch.diag_embed(value))
    assert len({tuple(sample.tolist()) for sample in value}) == 5


@TRANSFORMS
def test_same_draw_chunked_or_not(transform: Any) -> None:
    def run(chunk_size: int | None) -> Tensor:
        torch.manual_seed(3)
        result: Tensor = transform(_dropped, in_dims=0, randomness="same", chunk_size=chunk_size)(torch.ones(5, 40))
        return result

    torch.testing.assert_close(run(3), run(None))
    torch.testing.assert_close(run(100), run(None))


# --- results --------------------------------------------------------------------------------------


@TRANSFORMS
@given(x=tensors(), chunk_size=chunk_sizes())
def test_arguments_are_left_alone(transform: Any, x: Tensor, chunk_size: int | None) -> None:
    before = x.clone()
    jac = transform(torch.sin, chunk_size=chunk_size)(x)
    assert not jac.requires_grad
    jac.add_(1)  # the caller's own memory
    torch.testing.assert_close(x, before)


@TRANSFORMS
def test_result_may_be_changed_in_place(transform: Any) -> None:
    """Also where the Jacobian is the same for every sample and every place."""
    jac = transform(lambda x: x.sum(), in_dims=0)(torch.ones(4, 3))
    jac[0, 0] = 5
    torch.testing.assert_close(jac[1], torch.ones(3))


def test_out_of_memory_frees_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is emptied when the failed attempt holds nothing any more."""
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(ref() is not None for ref in held))

    def fn(x: Tensor) -> Tensor:
        y = x.sin()
        if not held:
            held.append(weakref.ref(y))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return y

    x = torch.randn(3)
    torch.testing.assert_close(jac_fwd(fn)(x), torch.diag(x.cos()))
    assert alive == [False]
