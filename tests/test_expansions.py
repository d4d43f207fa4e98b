"""Composite operations in elementary ones: the same values and derivatives as the operations that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_same, leaves_of, map_tree, per_sample, rebuild, reference
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode

from jacfn import JacfnError, jac_fwd, jac_quasilinear, jac_rev, make_functional
from jacfn.quasilinear.rules import EXPANSIONS

pytestmark = pytest.mark.usefixtures("float64", "math_attention")

Call = Callable[..., Any]


@pytest.fixture
def math_attention() -> Iterator[None]:
    """PyTorch's fused attention has no second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Expanded(TorchFunctionMode):
    """Runs every expansion in the place of its operation."""

    used = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in EXPANSIONS:
            return func(*args, **(kwargs or {}))
        self.used += 1
        result = EXPANSIONS[func](*args, **(kwargs or {}))
        assert result is not NotImplemented
        return result


def expanded(call: Call) -> Call:
    """``call`` with expansions; there must be one."""

    def run(*args: Any) -> Any:
        with Expanded() as mode:
            result = call(*args)
        assert mode.used > 0
        return result

    return run


# --- cases ----------------------------------------------------------------------------------------

Case = tuple[Call, tuple[Tensor, ...]]  # a function, and the tensors to differentiate

RNN_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
}
RNN_KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}


def recurrent_case(kind: str, options: str, *, unbatched: bool = False, state: bool = False) -> Case:
    make, own = RNN_KINDS[kind]
    module = make(3, 4, **own, **RNN_OPTIONS[options])
    x = torch.randn(5, 3) if unbatched else torch.randn(5, 2, 3)
    initial = initial_state(module, x) if state else ()
    return module_case(module, (x, initial) if state else (x,))


def initial_state(module: Any, x: Tensor) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    batch = () if x.ndim == 2 else (x.shape[0 if module.batch_first else 1],)
    h = torch.randn(count, *batch, module.proj_size or module.hidden_size)
    return (h, torch.randn(count, *batch, module.hidden_size)) if isinstance(module, nn.LSTM) else h


def module_case(module: nn.Module, inputs: tuple[Any, ...], **kwargs: Any) -> Case:
    """A module as a function of its parameters and inputs."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def call(*leaves: Tensor) -> Any:
        new = dict(zip(params, leaves, strict=False))
        return functional_call(module, new, rebuild(inputs, leaves[len(params) :]), kwargs)

    return call, (*params.values(), *leaves_of(inputs))


def packed_case(kind: str, **options: Any) -> Case:
    make, own = RNN_KINDS[kind]
    module = make(3, 4, **own, **options)
    params = {name: p.detach() for name, p in module.named_parameters()}
    samples = tuple(torch.randn(length, 3) for length in (2, 5, 3, 5))

    def call(*leaves: Tensor) -> Any:
        new = dict(zip(params, leaves, strict=False))
        packed = pack_sequence(leaves[len(params) :], enforce_sorted=False)
        output, state = functional_call(module, new, (packed,))
        return output.data, state

    return call, (*params.values(), *samples)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTMCell(3, 4),
    "gru": lambda: nn.GRUCell(3, 4),
    "tanh": lambda: nn.RNNCell(3, 4),
    "relu": lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
    "lstm_no_bias": lambda: nn.LSTMCell(3, 4, bias=False),
    "gru_no_bias": lambda: nn.GRUCell(3, 4, bias=False),
}


def cell_case(kind: str, *, unbatched: bool = False, state: bool = False) -> Case:
    module, batch = CELLS[kind](), () if unbatched else (2,)
    h = torch.randn(*batch, 4)
    initial = (h, torch.randn(*batch, 4)) if "lstm" in kind else h
    return module_case(module, (torch.randn(*batch, 3), initial) if state else (torch.randn(*batch, 3),))


ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "separate": {"kdim": 3, "vdim": 5},
    "bias_kv": {"add_bias_kv": True},
    "zero_attention": {"add_zero_attn": True},
    "all": {"kdim": 3, "vdim": 5, "add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}
L, S, B, E, H = 3, 5, 2, 8, 4
_PADDING = torch.tensor([[False] * 3 + [True] * 2, [False] * 4 + [True]])
MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "bool": lambda: {"attn_mask": torch.ones(L, S).triu(2).bool()},
    "float": lambda: {"attn_mask": torch.randn(L, S)},
    "heads": lambda: {"attn_mask": torch.randn(B * H, L, S)},
    "padding": lambda: {"key_padding_mask": _PADDING},
    "float_padding": lambda: {"key_padding_mask": torch.randn(B, S)},
    "both": lambda: {"attn_mask": torch.ones(L, S).triu(2).bool(), "key_padding_mask": _PADDING},
    "causal": lambda: {"attn_mask": torch.ones(L, S).triu(1).bool(), "is_causal": True},
    "causal_padding": lambda: {
        "attn_mask": torch.ones(L, S).triu(1).bool(),
        "is_causal": True,
        "key_padding_mask": _PADDING,
    },
}


def attention_case(options: str, masks: str = "none", *, unbatched: bool = False, **kwargs: Any) -> Case:
    module = nn.MultiheadAttention(E, H, **ATTENTION[options])
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)  # biases are made as zeros
    inputs = [torch.randn(n, B, width) for n, width in ((L, E), (S, module.kdim), (S, module.vdim))]
    kwargs |= MASKS[masks]()
    if unbatched:
        inputs = [x[:, 0] for x in inputs]
        kwargs = {k: v[0] if k == "key_padding_mask" else v for k, v in kwargs.items()}
        kwargs = {k: v[:H] if k == "attn_mask" and v.ndim == 3 else v for k, v in kwargs.items()}
    elif module.batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    return module_case(module, tuple(inputs), **kwargs)


def shared_case(*, key_only: bool, **kwargs: Any) -> Case:
    """Query, key and value, or the last two, are one tensor."""
    module = nn.MultiheadAttention(E, H)
    params = {name: torch.randn_like(p) for name, p in module.named_parameters()}

    def call(*leaves: Tensor) -> Any:
        new = dict(zip(params, leaves, strict=False))
        x, y = leaves[len(params) :]
        return functional_call(module, new, (y if key_only else x, x, x), kwargs)

    return call, (*params.values(), torch.randn(S, B, E), torch.randn(L, B, E))


def static_case(**kwargs: Any) -> Case:
    """Keys and values that were projected beforehand."""
    module = nn.MultiheadAttention(E, H)
    x, k, v = torch.randn(L, B, E), torch.randn(B * H, S, E // H), torch.randn(B * H, S, E // H)

    def call(x: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Any:
        head = module.out_proj
        return F.multi_head_attention_forward(
            *(x, x, x, E, H, weight, bias, None, None, False, 0.0, head.weight, head.bias),
            static_k=k,
            static_v=v,
            **kwargs,
        )

    return call, (x, k, v, torch.randn(3 * E, E), torch.randn(3 * E))


_ROWS = torch.tensor([[0, 3, 3, 5], [1, 2, 6, 2], [6, 6, 6, 6]])
_ENTRIES = torch.tensor([1, 0, 4, 4, 6, 2, 6, 6, 5])
BAGS: dict[str, dict[str, Any]] = {
    "rows": {"input": _ROWS},
    "padding": {"input": _ROWS, "padding_idx": 6},
    "negative_padding": {"input": _ROWS, "padding_idx": -5},
    "offsets": {"input": _ENTRIES, "offsets": torch.tensor([0, 3, 6])},
    "empty_bags": {"input": _ENTRIES, "offsets": torch.tensor([0, 0, 4, 4, 9])},
    "int32": {"input": _ENTRIES.int(), "offsets": torch.tensor([0, 3, 6]).int()},
    "last_offset": {"input": _ENTRIES, "offsets": torch.tensor([0, 3, 3, 9]), "include_last_offset": True},
    "offsets_padding": {"input": _ENTRIES, "offsets": torch.tensor([0, 3, 6, 8]), "padding_idx": 6},
}


def bag_case(bags: str, mode: str, weighted: bool = False) -> Case:
    options = dict(BAGS[bags])
    input = options.pop("input")
    weights = (torch.randn(input.shape),) if weighted else ()

    def call(table: Tensor, *weights: Tensor) -> Tensor:
        own = {"per_sample_weights": weights[0]} if weights else {}
        return F.embedding_bag(input, table, mode=mode, **options, **own)

    return call, (torch.randn(7, 3), *weights)


CASES: dict[str, Callable[[], Case]] = {
    **{
        f"rnn-{kind}-{options}": lambda kind=kind, options=options: recurrent_case(kind, options)
        for kind in RNN_KINDS
        for options in RNN_OPTIONS
    },
    **{
        f"rnn-{kind}-{options}-state": lambda kind=kind, options=options: recurrent_case(kind, options, state=True)
        for kind in RNN_KINDS
        for options in ("plain", "all")
    },
    **{
        f"rnn-{kind}-unbatched": lambda kind=kind: recurrent_case(kind, "all", unbatched=True, state=True)
        for kind in RNN_KINDS
    },
    **{
        f"packed-{kind}-{name}": lambda kind=kind, options=options: packed_case(kind, **options)
        for kind in RNN_KINDS
        for name, options in {"plain": {}, "all": {"num_layers": 2, "bidirectional": True}}.items()
    },
    **{
        f"cell-{kind}{'-unbatched' * bare}{'-state' * state}": lambda kind=kind, bare=bare, state=state: cell_case(
            kind, unbatched=bare, state=state
        )
        for kind in CELLS
        for bare in (False, True)
        for state in (False, True)
    },
    **{
        f"attention-{options}-{need}": lambda options=options, need=need: attention_case(options, need_weights=need)
        for options in ATTENTION
        for need in (True, False)
    },
    **{
        f"attention-{options}-{masks}-{need}-{'unbatched' * bare}": (
            lambda options=options, masks=masks, need=need, bare=bare: attention_case(
                options, masks, unbatched=bare, need_weights=need
            )
        )
        for options in ("plain", "all")
        for masks in MASKS
        for need in (True, False)
        for bare in (True, False)
    },
    "attention-heads": lambda: attention_case("plain", average_attn_weights=False),
    "attention-heads-unbatched": lambda: attention_case("all", unbatched=True, average_attn_weights=False),
    "attention-self": lambda: shared_case(key_only=False),
    "attention-self-no-weights": lambda: shared_case(key_only=False, need_weights=False),
    "attention-cross": lambda: shared_case(key_only=True),
    "attention-static": static_case,
    "attention-static-no-weights": lambda: static_case(need_weights=False),
    **{
        f"bag-{mode}-{bags}": lambda mode=mode, bags=bags: bag_case(bags, mode)
        for mode in ("sum", "mean", "max")
        for bags in BAGS
    },
    **{f"bag-weighted-{bags}": lambda bags=bags: bag_case(bags, "sum", weighted=True) for bags in BAGS},
}
FEW = [
    *(f"rnn-{kind}-{options}" for kind in RNN_KINDS for options in ("plain", "all-state")),
    *(f"cell-{kind}" for kind in CELLS),
    *("attention-plain-True", "attention-all-False", "attention-all-both-True-", "attention-self", "attention-cross"),
    *(f"bag-{mode}-{bags}" for mode in ("sum", "mean", "max", "weighted") for bags in ("padding", "empty_bags")),
]

COMPILED = [
    *("rnn-lstm_projected-all-state", "rnn-gru-plain", "rnn-relu-plain", "cell-lstm", "cell-gru", "cell-tanh"),
    *("attention-all-both-True-", "attention-self", "attention-cross", "bag-mean-padding", "bag-max-empty_bags"),
]


# --- values and derivatives -----------------------------------------------------------------------


def derivatives(call: Call, leaves: tuple[Tensor, ...], *, twice: bool) -> list[Tensor]:
    """Values, the gradient of a random functional of them, and the gradient of a random functional of that."""
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    generator = torch.Generator().manual_seed(0)

    def gradient(tensors: list[Tensor]) -> list[Tensor]:
        value = sum(((x * torch.randn(x.shape, generator=generator)).sum() for x in tensors), torch.zeros(()))
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        return list(torch.autograd.grad(value.sin(), leaves, **options))

    values = leaves_of(call(*leaves))
    first = gradient(values)
    return [*values, *first, *(gradient(first) if twice else [])]


@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives(case: str) -> None:
    call, leaves = CASES[case]()
    twice = not case.startswith("bag")  # which has no second derivatives in PyTorch
    torch.testing.assert_close(derivatives(expanded(call), leaves, twice=twice), derivatives(call, leaves, twice=twice))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("bag")])
def test_second_derivatives_of_bags(case: str) -> None:
    call, leaves = CASES[case]()
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    assert torch.autograd.gradgradcheck(expanded(call), leaves)


@pytest.mark.parametrize("case", FEW)
def test_under_vmap_and_forward_mode(case: str) -> None:
    """An ensemble of parameters and inputs, which PyTorch runs one by one."""
    call, leaves = CASES[case]()
    stacks = tuple(torch.stack([leaf, leaf + 0.1 * torch.randn_like(leaf)]) for leaf in leaves)
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)

    def values(*leaves: Tensor) -> list[Tensor]:
        return leaves_of(expanded(call)(*leaves))

    def derivative(*leaves: Tensor) -> list[Tensor]:
        value, change = torch.func.jvp(values, leaves, tangents)
        return [*value, *change]

    got = torch.func.vmap(derivative)(*stacks)
    for member in range(2):
        own = tuple(stack[member] for stack in stacks)
        wanted = [*leaves_of(call(*own)), *central_differences(call, own, tangents)]
        torch.testing.assert_close([x[member] for x in got], wanted, rtol=1e-6, atol=1e-7)


def central_differences(call: Call, leaves: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> list[Tensor]:
    """The derivative along the tangents."""
    step = 1e-5
    ahead, behind = (
        leaves_of(call(*(x + sign * step * v for x, v in zip(leaves, tangents, strict=True)))) for sign in (1, -1)
    )
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


class Recorded(TorchFunctionMode):
    """Keeps the last call that has an expansion."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in EXPANSIONS:
            self.call = func, args, kwargs or {}
        return func(*args, **(kwargs or {}))


def recorded(case: str, dtype: torch.dtype) -> tuple[Call, Any, Any]:
    """The operation that a case calls, and the arguments that it gets, with floating-point tensors of a dtype."""
    call, leaves = CASES[case]()
    with Recorded() as mode:
        call(*leaves)

    def convert(value: Any) -> Any:
        return value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    operation, args, kwargs = mode.call
    return operation, map_tree(convert, args), map_tree(convert, kwargs)


@pytest.mark.parametrize("case", COMPILED)
def test_in_a_compiled_region(case: str) -> None:
    operation, args, kwargs = recorded(case, torch.float64)
    compiled = torch.compile(EXPANSIONS[operation], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args, **kwargs), operation(*args, **kwargs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", FEW)
def test_dtypes(case: str, dtype: torch.dtype) -> None:
    operation, args, kwargs = recorded(case, dtype)
    got = leaves_of(EXPANSIONS[operation](*args, **kwargs))
    assert {x.dtype for x in got} == {dtype}
    args, kwargs = map_tree(_double, args), map_tree(_double, kwargs)
    tolerance = 50 * torch.finfo(dtype).eps
    wanted = leaves_of(operation(*args, **kwargs))
    torch.testing.assert_close([_double(x) for x in got], wanted, rtol=tolerance, atol=tolerance)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# --- randomness -----------------------------------------------------------------------------------


def dropped(case: str) -> Case:
    """With dropout that keeps nothing predictable: modules in training mode."""
    if case == "attention":
        return attention_dropout()
    module = {"lstm": nn.LSTM, "gru": nn.GRU}[case](3, 4, num_layers=3, dropout=0.5, bidirectional=True)
    return module_case(module, (torch.randn(5, 2, 3),))


def attention_dropout(need_weights: bool = True) -> Case:
    module = nn.MultiheadAttention(E, H, dropout=0.5)
    return module_case(module, tuple(torch.randn(n, B, E) for n in (L, S, S)), need_weights=need_weights)


@pytest.mark.parametrize("case", ["lstm", "gru", "attention", "attention_without_weights"])
def test_dropout_draws_the_same_numbers(case: str) -> None:
    call, leaves = attention_dropout(need_weights=False) if case == "attention_without_weights" else dropped(case)
    torch.manual_seed(1)
    wanted = leaves_of(call(*leaves))
    torch.manual_seed(1)
    torch.testing.assert_close(leaves_of(expanded(call)(*leaves)), wanted)
    torch.manual_seed(2)
    assert not torch.allclose(leaves_of(expanded(call)(*leaves))[0], wanted[0])


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [({"max_norm": 1.0}, "max_norm changes its weight in place"), ({"scale_grad_by_freq": True}, "no derivatives")],
    ids=["max_norm", "scale_grad_by_freq"],
)
def test_bags_refuse_what_is_no_function(option: dict[str, Any], message: str) -> None:
    with pytest.raises(JacfnError, match=message):
        expanded(lambda table: F.embedding_bag(_ROWS, table, **option))(torch.randn(7, 3))


def test_sparse_gradients_are_as_good_as_dense_ones() -> None:
    table = torch.randn(7, 3, requires_grad=True)
    for call in (F.embedding_bag, EXPANSIONS[F.embedding_bag]):
        (gradient,) = torch.autograd.grad(call(_ROWS, table, sparse=True).sum(), table)
        assert gradient.is_sparse == (call is F.embedding_bag)
    torch.testing.assert_close(gradient, torch.autograd.grad(F.embedding_bag(_ROWS, table).sum(), table)[0])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_entries_behind_the_last_offset_are_in_no_bag(mode: str) -> None:
    """As documented. PyTorch counts them in with some dtypes; with others its gradient reads memory of no one."""
    table, offsets = torch.randn(7, 3), torch.tensor([0, 3, 7])
    got = EXPANSIONS[F.embedding_bag](_ENTRIES, table, offsets, mode=mode, include_last_offset=True)
    torch.testing.assert_close(got, F.embedding_bag(_ENTRIES[:7], table, offsets[:2], mode=mode))


@pytest.mark.parametrize(
    "options",
    [
        {"input": _ENTRIES},
        {"input": _ROWS, "offsets": torch.tensor([0, 2])},
        {"input": _ROWS, "per_sample_weights": torch.randn(3, 4), "mode": "mean"},
        {"input": _ENTRIES[:0], "offsets": torch.tensor([0, 0])},
    ],
    ids=["no_offsets", "rows_and_offsets", "weighted_mean", "no_entries"],
)
def test_bags_leave_other_arguments_to_the_operation(options: dict[str, Any]) -> None:
    assert EXPANSIONS[F.embedding_bag](weight=torch.randn(7, 3), **options) is NotImplemented


def test_attention_leaves_a_hint_without_mask_to_the_operation() -> None:
    _, args, kwargs = recorded("attention-plain-True", torch.float64)
    assert EXPANSIONS[F.multi_head_attention_forward](*args, **kwargs | {"is_causal": True}) is NotImplemented


# --- per-sample Jacobians of modules --------------------------------------------------------------


class SelfAttention(nn.Module):
    """Query, key and value are one tensor, as in most networks."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, 2, **options)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x)


def _layer(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return kind(E, 2, dim_feedforward=6, dropout=0.0, **options)


def _words() -> tuple[Tensor, ...]:
    return (torch.randint(0, 6, (N, 2, 4)),)


N = 2
X, Y = torch.randn(N, 3, E, dtype=torch.float64), torch.randn(N, 2, E, dtype=torch.float64)
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "RNN": (lambda: nn.RNN(E, 3), (X,)),
    "RNN_relu": (lambda: nn.RNN(E, 3, nonlinearity="relu", bidirectional=True), (X,)),
    "LSTM": (lambda: nn.LSTM(E, 3), (X,)),
    "LSTM_layers": (lambda: nn.LSTM(E, 3, num_layers=2, bidirectional=True, proj_size=2, bias=False), (X,)),
    "GRU": (lambda: nn.GRU(E, 3, num_layers=2), (X,)),
    "GRU_state": (lambda: nn.GRU(E, 3), (X, Y[:, :1, :3])),
    "RNNCell": (lambda: nn.RNNCell(E, 3), (X[:, 0],)),
    "LSTMCell": (lambda: nn.LSTMCell(E, 3), (X[:, 0],)),
    "GRUCell": (lambda: nn.GRUCell(E, 3), (X[:, 0], Y[:, 0, :3])),
    "attention": (lambda: nn.MultiheadAttention(E, 2), (Y, X, X)),
    "attention_separate": (
        lambda: nn.MultiheadAttention(E, 2, kdim=3, vdim=2, add_bias_kv=True, add_zero_attn=True),
        (Y, X[..., :3], X[..., :2]),
    ),
    "self_attention": (SelfAttention, (X,)),
    "self_attention_bias_kv": (lambda: SelfAttention(add_bias_kv=True, bias=False), (X,)),
    "encoder_layer": (lambda: _layer(nn.TransformerEncoderLayer), (X,)),
    "encoder_layer_norm_first": (lambda: _layer(nn.TransformerEncoderLayer, norm_first=True), (X,)),
    "encoder_layer_in_eval": (lambda: _layer(nn.TransformerEncoderLayer, batch_first=True).eval(), (X,)),
    "decoder_layer": (lambda: _layer(nn.TransformerDecoderLayer), (Y, X)),
    "decoder_layer_norm_first": (lambda: _layer(nn.TransformerDecoderLayer, norm_first=True), (Y, X)),
    "transformer": (lambda: nn.Transformer(E, 2, 1, 1, 6, dropout=0.0, batch_first=True), (X, Y)),
    "embedding_bag": (lambda: nn.EmbeddingBag(6, 3), _words()),
    "embedding_bag_sum": (lambda: nn.EmbeddingBag(6, 3, mode="sum", padding_idx=2), _words()),
    "embedding_bag_max": (lambda: nn.EmbeddingBag(6, 3, mode="max"), _words()),
}


@pytest.mark.parametrize("case", MODULES)
def test_jacobians_of_modules(case: str) -> None:
    """Of samples without a batch axis, as the modules take them; every use of a parameter has a closed form."""
    make, inputs = MODULES[case]
    fn, params = make_functional(make(), batched=True)
    wanted = per_sample(fn, params, *inputs, argnums=0, mapped=[False, *(True for _ in inputs)])
    dims = (None, *(0 for _ in inputs))
    assert_same(jac_quasilinear(fn, in_dims=dims, strict=True)(params, *inputs), wanted)
    assert_same(jac_rev(fn, in_dims=dims)(params, *inputs), wanted)
    assert_same(jac_fwd(fn, in_dims=dims)(params, *inputs), wanted)


@pytest.mark.parametrize("case", ["LSTMCell", "GRUCell", "self_attention", "embedding_bag"])
def test_jacobians_in_a_compiled_region(case: str) -> None:
    make, inputs = MODULES[case]
    fn, params = make_functional(make(), batched=True)
    transform = jac_quasilinear(fn, in_dims=(None, *(0 for _ in inputs)))
    compiled = torch.compile(transform, fullgraph=True, backend="eager", dynamic=False)
    assert_same(compiled(params, *inputs), transform(params, *inputs))


def test_packed_sequences_have_closed_forms() -> None:
    """A batch of sequences that are not equally long is one sample here."""
    module = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    samples = tuple(torch.randn(length, 3) for length in (2, 5, 3))
    fn, params = make_functional(module, batched=True)

    def last_states(params: Any, *samples: Tensor) -> Tensor:
        return fn(params, pack_sequence(samples, enforce_sorted=False))[1]

    got = jac_quasilinear(last_states, strict=True)(params, *samples)
    assert_same(got, reference(last_states, params, *samples))


@pytest.mark.parametrize("case", ["LSTM", "attention"])
def test_dropout_obeys_randomness(case: str) -> None:
    module = nn.LSTM(E, 3, num_layers=2, dropout=0.5) if case == "LSTM" else SelfAttention(dropout=0.5)
    fn, params = make_functional(module, batched=True)
    with pytest.raises(RuntimeError, match="randomness"):
        jac_quasilinear(fn, in_dims=(None, 0))(params, X)
    same, different = (
        _seeded(jac_quasilinear(fn, in_dims=(None, 0), randomness=kind), params, X[:1].expand_as(X))
        for kind in ("same", "different")
    )
    assert_same(same, _seeded(jac_rev(fn, in_dims=(None, 0), randomness="same"), params, X[:1].expand_as(X)))
    assert all(torch.allclose(leaf[0], leaf[1]) for leaf in leaves_of(same))
    assert not all(torch.allclose(leaf[0], leaf[1]) for leaf in leaves_of(different))


def _seeded(call: Call, *args: Any) -> Any:
    torch.manual_seed(1)
    return call(*args)
