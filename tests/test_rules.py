"""Every registered rule and expansion against plain reverse and forward mode, on the example calls that it carries."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_same, finite_differences, ravel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.overrides import (
    TorchFunctionMode,
    handle_torch_function,
    has_torch_function,
    resolve_name,
    wrap_torch_function,
)

from jacfn import JacfnError, JacfnTypeError, jac_quasilinear, make_functional, register_expansion, register_rule
from jacfn._binding import bind
from jacfn._torch import as_called
from jacfn.quasilinear import Scale, Shift, Use, contraction
from jacfn.quasilinear.rules import CASES, EXPANSIONS, RULES
from jacfn.quasilinear.rules._cases import Call, Random
from jacfn.quasilinear.structure import learn

Operation = Callable[..., Any]

# PyTorch's own kernels of these have neither batching rules nor, all of them, forward derivatives.
FUSED = {
    operation for operation, expand in EXPANSIONS.items() if expand.__module__ in ("jacfn._recurrent", "jacfn._bag")
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # of the oracles, under vmap
    pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning"),
]


@pytest.fixture(autouse=True)
def _math_attention() -> Iterator[None]:
    """The only attention that PyTorch can differentiate under vmap and in forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


# --- example calls as functions of one parameter and one sample -----------------------------------


@dataclasses.dataclass
class Example:
    """An operation, the parameter, and what belongs to each sample."""

    operation: Operation
    call: Call
    parameter: Tensor
    data: list[Tensor]  # of one sample, in the order of the call's tensors
    samples: list[Tensor]  # the same of several, stacked

    def fn(self, parameter: Tensor, data: Sequence[Tensor]) -> list[Tensor]:
        """What the operation gives, behind a nonlinearity and times a number of the sample."""
        *data, factor = data
        new = {id(self.parameter): parameter, **{id(old): x for old, x in zip(self.data, data, strict=True)}}
        result = self.operation(*_replaced(self.call.args, new), **_replaced(self.call.kwargs, new))
        return [x.sin() * factor for x in _tensors(result)]

    def to(self, dtype: torch.dtype) -> Example:
        """The same numbers in another dtype."""
        new = {id(x): _cast(x, dtype) for x in _tensors((self.call.args, self.call.kwargs))}
        return Example(
            self.operation,
            Call(_replaced(self.call.args, new), _replaced(self.call.kwargs, new)),
            new[id(self.parameter)],
            [new[id(x)] for x in self.data],
            [_cast(x, dtype) for x in self.samples],
        )


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _tensors(value: Any) -> list[Tensor]:
    """The different tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return list({id(x): x for part in parts for x in _tensors(part)}.values())


def _replaced(value: Any, new: dict[int, Tensor]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(part, new) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, new) for part in value)
    return new.get(id(value), value)


def parameters(operation: Operation, call: Call) -> list[Tensor]:
    """The tensors of the call that become the parameter in turn: those that the rule claims."""
    tensors = _tensors((call.args, call.kwargs))
    if operation in RULES:
        rule = RULES[operation]
        uses = rule.uses(*call.args, **call.kwargs)
        named = {rule.place(i): value for i, value in enumerate(call.args)} | call.kwargs
        tensors = [named[place] for place in uses if isinstance(named.get(place), Tensor)]
    return [x for x in tensors if x.is_floating_point()]


def examples(operation: Operation, number: int, samples: int) -> list[Example]:
    """The example calls of one case, one for each parameter; what is drawn anew for every sample is data."""
    calls = [CASES[operation](Random(seed))[number] for seed in range(samples)]
    drawn = [_tensors((call.args, call.kwargs)) for call in calls]
    factor = torch.linspace(0.5, 1.5, samples, dtype=torch.float64)
    found = []
    for parameter in parameters(operation, calls[0]):
        varying = [
            column
            for column in zip(*drawn, strict=True)
            if column[0] is not parameter and (column[0].is_floating_point() or samples == 1 or _differ(column))
        ]
        data, stacked = [column[0] for column in varying], [torch.stack(column) for column in varying]
        found.append(Example(operation, calls[0], parameter, data, [*stacked, factor]))
    assert found, "no parameter"
    return found


def _differ(column: Sequence[Tensor]) -> bool:
    return any(not torch.equal(column[0], other) for other in column[1:])


def _id(operation: Operation) -> str:
    return str(resolve_name(operation)).removeprefix("torch.").removeprefix("nn.functional.")


def _sweep() -> list[Any]:
    """Every operation with every case; in the fast suite only the first operation of a rule has them all."""
    found, seen = [], set()
    for operation, cases in CASES.items():
        rule = RULES[operation].name if operation in RULES else EXPANSIONS[operation]
        for number in range(len(cases(Random()))):
            marks = [pytest.mark.slow] if rule in seen and number > 0 else []
            found.append(pytest.param(operation, number, id=f"{_id(operation)}-{number}", marks=marks))
        seen.add(rule)
    return found


# --- oracles --------------------------------------------------------------------------------------


def reverse(example: Example) -> list[Tensor]:
    """By plain reverse mode, ``(N, *out, *in)`` for each output."""
    if example.operation not in FUSED:
        return torch.func.vmap(torch.func.jacrev(example.fn), (None, 0))(example.parameter, example.samples)
    return _looped(example, lambda fn, w: torch.autograd.functional.jacobian(lambda w: tuple(fn(w)), w))


def forward(example: Example) -> list[Tensor]:
    """By plain forward mode, or by differences, of the first sample, where PyTorch has no forward derivative."""
    if example.operation not in FUSED:
        return torch.func.vmap(torch.func.jacfwd(example.fn), (None, 0))(example.parameter, example.samples)

    def differences(fn: Callable[[Tensor], list[Tensor]], w: Tensor) -> list[Tensor]:
        outputs = fn(w)
        rows = finite_differences(lambda w: ravel(fn(w)), w).split([y.numel() for y in outputs])
        return [part.reshape(*y.shape, *w.shape) for part, y in zip(rows, outputs, strict=True)]

    first = dataclasses.replace(example, samples=[x[:1] for x in example.samples])
    return _looped(first, differences)


def _looped(example: Example, jacobian: Callable[..., Sequence[Tensor]]) -> list[Tensor]:
    each = []
    for n in range(len(example.samples[-1])):
        data = [x[n] for x in example.samples]
        each.append(jacobian(lambda w, data=data: example.fn(w, data), example.parameter))
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


# --- the sweep ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "number"), _sweep())
def test_exact(operation: Operation, number: int) -> None:
    for example in examples(operation, number, samples=3):
        w, x = example.parameter, example.samples
        jacobian = jac_quasilinear(example.fn, in_dims=(None, 0), strict=True)
        wanted = reverse(example)
        assert_same(jacobian(w, x), wanted, **CLOSE)
        assert_same(jacobian(w, [part[:1] for part in x]), [part[:1] for part in wanted], **CLOSE)
        one = [part[0] for part in x]
        assert_same(jac_quasilinear(example.fn)(w, one), [part[0] for part in wanted], **CLOSE)
        if "padding_idx" not in example.call.kwargs:  # forward mode does not leave out that row
            got = forward(example)
            same = [part[: len(got[0])] for part in wanted]
            assert_same(got, same, **(ROUGH if operation in FUSED else CLOSE))


CLOSE = {"rtol": 1e-9, "atol": 1e-10}
ROUGH = {"rtol": 1e-6, "atol": 1e-8}  # finite differences


@pytest.mark.parametrize(("operation", "number"), [case for case in _sweep() if case.values[0] in RULES])
def test_claimed_by_the_rule(operation: Operation, number: int) -> None:
    """What carries the Jacobian is the rule of this name, and nothing else."""
    for example in examples(operation, number, samples=2):
        if not example.data:
            continue  # a value of the parameter alone
        bound = bind(example.fn, 0, (example.parameter, example.samples), {}, has_aux=False, in_dims=(None, 0))
        structure = learn(bound, "error")
        assert [claim.operation for claim in structure.claims] == [RULES[operation].name]
        assert structure.reasons == ("",)


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # of the greatest element
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def _sweep_of_dtypes() -> list[Any]:
    found = []
    for case, dtype in itertools.product(_sweep(), DTYPES):
        marks = [*case.marks, *([pytest.mark.slow] if case.values[1] > 0 else [])]
        found.append(pytest.param(*case.values, *dtype.values, id=f"{case.id}-{dtype.id}", marks=marks))
    return found


@pytest.mark.parametrize(("operation", "number", "dtype"), _sweep_of_dtypes())
def test_low_precision(operation: Operation, number: int, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and operation in (torch.rnn_relu, torch.rnn_relu_cell):
        pytest.skip("rounding takes the argument of a relu across zero")
    for example in examples(operation, number, samples=2):
        rounded = example.to(dtype)
        wanted = reverse(rounded.to(torch.float64))
        got = jac_quasilinear(rounded.fn, in_dims=(None, 0), strict=True)(rounded.parameter, rounded.samples)
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine.dtype == dtype
            scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
            assert_same(mine.double(), theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


# --- any shape, any option ------------------------------------------------------------------------


def assert_exact(fn: Operation, w: Any, x: Tensor) -> None:
    """Against reverse mode, for samples ``x``, and on a batch of them without ``in_dims``."""
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(w, x)
    assert_same(jac_quasilinear(fn, in_dims=(None, 0), strict=True)(w, x), wanted, **CLOSE)
    batched = jac_quasilinear(lambda w, x: torch.stack([fn(w, one) for one in x]))
    assert_same(batched(w, x), wanted, **CLOSE)


small = st.integers(1, 3)


@st.composite
def convolutions(draw: Any, transposed: bool) -> tuple[Operation, tuple[int, ...], Tensor]:
    """A convolution with all its options, the shape of its weight, and two samples that it fits."""
    axes, groups, channels, outputs = draw(small), draw(st.integers(1, 2)), draw(small), draw(small)
    kernel, stride, dilation = (draw(st.tuples(*[small] * axes)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * axes))
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups}
    if transposed:
        room = [range(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = draw(st.tuples(*map(st.sampled_from, room)))
        full = [d * (k - 1) + 1 + o for d, k, o in zip(dilation, kernel, options["output_padding"], strict=True)]
        padding = tuple(min(pad, (size - 1) // 2) for pad, size in zip(padding, full, strict=True))
        space = draw(st.tuples(*[small] * axes))
        shape = (groups * channels, outputs, *kernel)
    else:
        padding = draw(st.sampled_from([padding, "valid"] + ["same"] * (max(stride) == 1)))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        space = tuple(draw(st.integers(size, size + 2)) for size in reach)
        shape = (groups * outputs, channels, *kernel)
    options["padding"] = padding
    operation = getattr(F, f"conv{'_transpose' * transposed}{axes}d")
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    x = Random(draw(st.integers(0, 9)))(2, *batch, groups * channels, *space)
    return functools.partial(operation, **options), shape, x


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@given(data=st.data())
def test_convolutions(transposed: bool, data: Any) -> None:
    operation, shape, x = data.draw(convolutions(transposed))
    rand = Random(1)
    outputs = operation.keywords["groups"] * shape[1] if transposed else shape[0]
    w = {"weight": rand(*shape), "bias": rand(outputs)}
    assert_exact(lambda w, x: operation(x, w["weight"], w["bias"]).sin(), w, x)


@given(
    batch=st.lists(small, max_size=2),
    dropped=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    broadcast=st.tuples(st.booleans(), st.booleans()),
    sizes=st.tuples(small, small, small),
    vectors=st.tuples(st.booleans(), st.booleans()),
    parameter_left=st.booleans(),
)
def test_matrix_products(
    batch: list[int], dropped: Any, broadcast: Any, sizes: Any, vectors: Any, parameter_left: bool
) -> None:
    m, k, n = sizes
    matrices = [(m, k), (k, n)]
    shapes = []
    for matrix, drop, once, vector in zip(matrices, dropped, broadcast, vectors, strict=True):
        front = [1 if once and i == 0 else size for i, size in enumerate(batch)][drop:]
        shapes.append((k,) if vector else (*front, *matrix))
    left, right = shapes if parameter_left else shapes[::-1]
    w, x = Random()(*left), Random(1)(2, *right)
    assert_exact(lambda w, x: (w @ x if parameter_left else x @ w).sin(), w, x)


@st.composite
def equations(draw: Any) -> tuple[str, list[tuple[int, ...]]]:
    """An equation of two or three operands over four letters, and their shapes."""
    sizes = {letter: draw(small) for letter in "abcd"}
    letters = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True).map("".join)
    operands = draw(st.lists(letters, min_size=2, max_size=3))
    every = "".join(dict.fromkeys("".join(operands)))
    output = draw(st.permutations(every))[: draw(st.integers(0, len(every)))]
    return f"{','.join(operands)}->{''.join(output)}", [tuple(sizes[c] for c in operand) for operand in operands]


@given(equation=equations(), place=st.integers(0, 2))
def test_einsum(equation: tuple[str, list[tuple[int, ...]]], place: int) -> None:
    text, shapes = equation
    place %= len(shapes)
    operands = [Random(seed)(*shape) for seed, shape in enumerate(shapes)]
    x = operands[place - 1]

    def fn(w: Tensor, x: Tensor) -> Tensor:
        new = list(operands)
        new[place], new[place - 1] = w, x
        return torch.einsum(text, *new).sin()

    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(operands[place], torch.stack([x, 2 * x]))
    got = jac_quasilinear(fn, in_dims=(None, 0))(operands[place], torch.stack([x, 2 * x]))
    assert_same(got, wanted, **CLOSE)


@given(
    rows=st.integers(1, 4),
    width=st.lists(small, max_size=2),
    index=st.lists(small, max_size=2),
    padding=st.none() | st.integers(-4, 3),
    seed=st.integers(0, 9),
)
def test_tables(rows: int, width: list[int], index: list[int], padding: int | None, seed: int) -> None:
    rand = Random(seed)
    x = rand.below(rows, 2, *index)
    w = rand(rows, *width)
    if index:
        assert_exact(lambda w, x: w[x].sin(), w, x)
    if len(width) == 1:
        padding = None if padding is None or not -rows <= padding < rows else padding
        assert_exact(lambda w, x: F.embedding(x, w, padding_idx=padding).sin(), w, x)


# --- values of parameters alone -------------------------------------------------------------------


class Net(nn.Module):
    """A module whose forward is a function of it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(Random(len(name))(*part)))
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def tied(net: Any, x: Tensor) -> Tensor:
    return F.linear(F.embedding((x > 0).long(), net.table).tanh(), net.table)


def linearly_and_not(net: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, net.w).tanh(), net.w).sin() + F.linear(x, net.w.sin()) * net.w.pow(2).sum()


def spectral(orthonormal: bool = False) -> nn.Module:
    layer = nn.Linear(3, 4)
    return (parametrizations.orthogonal if orthonormal else parametrizations.spectral_norm)(layer)


# Each is a module for samples (3,).
DERIVED: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: Net(lambda net, x: F.linear(F.linear(x, net.w.T).sin(), net.w), w=(3, 4)),
    "permuted": lambda: Net(lambda net, x: torch.einsum("ni,iab->nab", x, net.w.permute(2, 0, 1)).sin(), w=(4, 2, 3)),
    "chunks": lambda: Net(lambda net, x: sum(F.linear(x, part).sin() for part in net.w.chunk(3)), w=(6, 3)),
    "stack": lambda: Net(lambda net, x: F.linear(x, torch.stack([net.a, net.b, net.a])).sin(), a=(3,), b=(3,)),
    "cat": lambda: Net(lambda net, x: F.linear(x, torch.cat([net.a, 2 * net.b], 1)).sin(), a=(4, 1), b=(4, 2)),
    "rows": lambda: Net(lambda net, x: torch.stack([x @ net.w[0], x @ (net.w[1] * 2)], 1).sin(), w=(2, 3)),
    "weight_norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh()),
    "spectral_norm": lambda: nn.Sequential(spectral(), nn.Tanh()).eval(),
    "orthogonal": lambda: nn.Sequential(spectral(orthonormal=True), nn.Tanh()),
    "LoRA": lambda: Net(
        lambda net, x: F.linear(x, net.w + 0.5 * (net.up @ net.down)).sin(), w=(4, 3), up=(4, 2), down=(2, 3)
    ),
    "learnt scale": lambda: Net(lambda net, x: F.linear(x, net.scale.exp() * net.w).sin(), w=(4, 3), scale=()),
    "normalised": lambda: Net(lambda net, x: F.linear(x, F.normalize(net.w, dim=1) * net.g).sin(), w=(4, 3), g=(4, 1)),
    "softmax": lambda: Net(lambda net, x: (x @ net.w.softmax(-1).T).sin(), w=(4, 3)),
    "gate": lambda: Net(lambda net, x: net.g.sigmoid() * x + (1 - net.g.sigmoid()) * net.b, g=(1,), b=(3,)),
    "standardised convolution": lambda: Net(
        lambda net, x: F.conv1d(x.unsqueeze(1), (net.w - net.w.mean()) / net.w.std()).sin(), w=(2, 1, 2)
    ),
    "tied table and head": lambda: Net(tied, table=(4, 3)),
    "many times": lambda: Net(lambda net, x: net.f(net.f(net.f(x).sin()).tanh()), f=nn.Linear(3, 3)),
    "linearly and not": lambda: Net(linearly_and_not, w=(3, 3)),
}


@pytest.mark.parametrize("name", DERIVED)
def test_parameters_behind_other_values(name: str) -> None:
    fn, params = make_functional(DERIVED[name]().double())
    x = torch.stack([Random(seed)(3) for seed in range(3)])
    strict = name != "linearly and not"
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(params, x)
    assert_same(jac_quasilinear(fn, in_dims=(None, 0), strict=strict)(params, x), wanted, **CLOSE)
    if name != "weight_norm":  # which PyTorch cannot differentiate forward
        assert_same(torch.func.vmap(torch.func.jacfwd(fn), (None, 0))(params, x), wanted, **CLOSE)
    batched = jac_quasilinear(lambda params: torch.stack([fn(params, one) for one in x]))(params)
    assert_same(batched, wanted, **CLOSE)


# --- the registry ---------------------------------------------------------------------------------


def test_every_rule_of_the_library_has_cases() -> None:
    own = [*((op, rule.uses) for op, rule in RULES.items()), *EXPANSIONS.items()]
    assert all(CASES[op](Random()) for op, function in own if function.__module__.startswith("jacfn."))


@pytest.fixture
def _registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = [dict(table) for table in (RULES, EXPANSIONS, CASES)]
    yield
    for table, entries in zip((RULES, EXPANSIONS, CASES), before, strict=True):
        table.clear()
        table.update(entries)


registering = pytest.mark.usefixtures("_registry")


class Blocks(torch.autograd.Function):
    """``y[h, o] = sum_i x[h, i] W[h, o, i]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
        return scale * torch.einsum("hi,hoi->ho", x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.scale = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grad * ctx.scale
        return torch.einsum("ho,hoi->hi", grad, weight), torch.einsum("ho,hi->hoi", grad, x), None


class TwoOutputs(Blocks):
    """The same twice."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return x * weight, x + weight

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return first * weight + second, first * x + second


def _blocks(x: Tensor, weight: Tensor, scale: float = 1.0) -> dict[str, Use]:
    return {"weight": Use(contraction("hoi", "hi", "ho"), lambda: scale * x)}


def _times(x: Tensor, weight: Tensor) -> dict[str, Use]:
    return {"weight": Use(Scale(tuple(weight.shape)), x)}


def _ldexp(input: Tensor, other: Tensor) -> dict[str, Use]:
    return {"input": Use(Scale(tuple(input.shape)), lambda: 2.0**other)}


LIBRARY = torch.library.Library("jacfn_tests", "FRAGMENT")
LIBRARY.define("times(Tensor x, Tensor weight) -> Tensor")
LIBRARY.impl("times", lambda x, weight: x * weight, "CompositeImplicitAutograd")
times = torch.ops.jacfn_tests.times


@torch.library.custom_op("jacfn_tests::custom_times", mutates_args=())
def custom_times(x: Tensor, weight: Tensor) -> Tensor:
    """An operator that torch.func cannot differentiate."""
    return x * weight


def dispatched(x: Tensor, weight: Tensor) -> Tensor:
    """A Python function that shows itself."""
    if has_torch_function((x, weight)):
        return handle_torch_function(dispatched, (x, weight), x, weight)
    return x * weight


@wrap_torch_function(lambda x, weight: (x, weight))
def wrapped(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


class Own(NamedTuple):
    """An operation of a user: what is registered, how it is called, its rule, and shapes of data and parameter."""

    registered: Any
    called: Operation
    rule: Any
    data: tuple[int, ...] = (4, 3)
    weight: tuple[int, ...] = (4, 3)


OWN = {
    "Function": Own(Blocks, Blocks.apply, _blocks, (2, 3), (2, 4, 3)),
    "Function.apply": Own(Blocks.apply, Blocks.apply, _blocks, (2, 3), (2, 4, 3)),
    "operator": Own(times, times, _times),
    "operator, called by its overload": Own(times, times.default, _times),
    "overload, called by its operator": Own(times.default, times, _times),
    "Python function": Own(dispatched, dispatched, _times),
    "wrapped function": Own(wrapped, wrapped, _times),
    "torch function": Own(torch.ldexp, lambda x, w: torch.ldexp(w, (x > 0).to(x)), _ldexp),
}
own = pytest.mark.parametrize("name", OWN)


def _problem(name: str) -> tuple[Operation, Tensor, Tensor]:
    _, called, _, data, weight = OWN[name]
    rand = Random()
    return lambda w, x: called(x, w).sin(), rand(*weight), torch.stack([rand(*data) for _ in range(3)])


@registering
@own
def test_operation_of_a_user(name: str) -> None:
    fn, w, x = _problem(name)
    with pytest.raises(JacfnError, match="strict=True: no closed form"):
        jac_quasilinear(fn, in_dims=(None, 0), strict=True)(w, x)
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(w, x)
    plain = jac_quasilinear(fn, in_dims=(None, 0))
    assert_same(plain(w, x), wanted, **CLOSE)
    register_rule(OWN[name].registered)(OWN[name].rule)
    assert_same(jac_quasilinear(fn, in_dims=(None, 0), strict=True)(w, x), wanted, **CLOSE)
    assert_same(plain(w, x), wanted, **CLOSE)  # whose structure was learnt without the rule
    assert_same(jac_quasilinear(fn)(w, x[0]), wanted[0], **CLOSE)


@registering
@pytest.mark.parametrize("name", ["operator", "Python function"])
def test_operation_of_a_user_in_a_compiled_region(name: str) -> None:
    fn, w, x = _problem(name)
    for each in ("Function", name):  # all of the table is looked through
        register_rule(OWN[each].registered)(OWN[each].rule)
    jacobian = jac_quasilinear(fn, in_dims=(None, 0))
    compiled = torch.compile(jacobian, fullgraph=True, backend="eager")
    assert_same(compiled(w, x), jacobian(w, x), **CLOSE)


@pytest.mark.parametrize("called", [custom_times, torch.ops.jacfn_tests.custom_times], ids=["definition", "packet"])
def test_custom_op_is_known_by_all_that_stands_for_it(called: Operation) -> None:
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Spy():
        called(x, x)
    packet = torch.ops.jacfn_tests.custom_times
    assert all(seen[0] in as_called(given) for given in (custom_times, packet, packet.default))


@registering
def test_expansion_of_a_user() -> None:
    register_expansion(TwoOutputs)(lambda x, weight: (x * weight, x + weight))
    w, x = Random()(3), Random(1)(4, 3)
    fn = lambda w, x: [y.sin() for y in TwoOutputs.apply(x, w)]  # noqa: E731
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(w, x)
    assert_same(jac_quasilinear(fn, in_dims=(None, 0), strict=True)(w, x), wanted, **CLOSE)


@registering
def test_rule_beside_an_option_that_it_does_not_know() -> None:
    register_rule(Blocks)(lambda x, weight: _blocks(x, weight))
    _, w, x = _problem("Function")
    fn = lambda w, x: Blocks.apply(x, w, 2.0).sin()  # noqa: E731
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(w, x)
    assert_same(jac_quasilinear(fn, in_dims=(None, 0))(w, x), wanted, **CLOSE)  # by vjp


@registering
def test_wrong_rule_is_an_error() -> None:
    register_rule(times)(lambda x, weight: {"weight": Use(Scale(tuple(weight.shape)), 2 * x)})
    fn, w, x = _problem("operator")
    with pytest.raises(JacfnError, match="argument 0: the closed form differs from a plain vjp"):
        jac_quasilinear(fn, in_dims=(None, 0))(w, x)


@registering
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            None,
            "the rule wrong returned None: it has to be a dictionary from names of arguments to jacfn.quasilinear.Use",
        ),
        ({"weight": Scale((4, 3))}, r"it has to be a dictionary from names of arguments to jacfn.quasilinear.Use"),
        ({"wieght": Use(Shift(()), None)}, r"returned a use of 'wieght'; it has \('x', 'weight'\)"),
    ],
)
def test_rule_with_a_wrong_result(result: Any, message: str) -> None:
    @register_rule(times)
    def wrong(x: Tensor, weight: Tensor) -> Any:
        return result

    fn, w, x = _problem("operator")
    with pytest.raises(JacfnTypeError, match=message):
        jac_quasilinear(fn, in_dims=(None, 0))(w, x)


@registering
def test_rule_for_an_operation_with_two_outputs() -> None:
    register_rule(TwoOutputs)(_times)
    with pytest.raises(JacfnTypeError, match="_times is for an operation that returns tuple.*register_expansion"):
        jac_quasilinear(lambda w, x: TwoOutputs.apply(x, w)[0])(torch.ones(2), torch.ones(2))


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


@registering
@pytest.mark.parametrize("register", [register_rule, register_expansion])
@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ((), r'needs the operations: write "@register_\w+\(operation\)"'),
        ((plain,), "argument 0 is plain, a plain Python function, and PyTorch cannot see calls of that. Make it"),
        ((times, 3), "argument 1 is 3, of type int, and PyTorch cannot see"),
        ((nn.Linear(2, 2),), "of type Linear, and PyTorch cannot see calls"),
        ((nn.Linear,), "argument 0 is Linear, of type type, and PyTorch cannot see"),
        ((functools.partial(torch.mul, 2),), "of type partial, and PyTorch cannot see"),
        ((torch.mul,), "has a rule already; pass replace=True to put another in its place"),
        ((torch.cat,), "has an expansion already; pass replace=True"),
    ],
)
def test_operation_that_cannot_be_registered(register: Any, operations: Any, message: str) -> None:
    with pytest.raises(JacfnError, match=message) as raised:
        register(*operations)(_times)
    assert isinstance(raised.value, (TypeError, ValueError))


@registering
@pytest.mark.parametrize(
    ("operation", "rule", "message"),
    [
        (times, lambda x, w: {}, r"has the parameters \(x, w\), but .*times.* has \(x, weight\): name them as"),
        (times, lambda x: {}, r"has the parameters \(x\), but .* has \(x, weight\)"),
        (times, lambda x, weight, scale: {}, r"\(x, weight, scale\), but"),
        (Blocks, lambda x, weights: {}, r"has the parameters \(x, weights\), but Blocks has \(x, weight, scale\)"),
        (dispatched, lambda weight, x: {}, r"\(weight, x\), but dispatched has \(x, weight\)"),
        (times, lambda x, *, weight: {}, r"has the parameter weight, which no argument of a call can be told apart by"),
        (times, lambda **options: {}, r"has the parameter \*\*options, which no argument"),
        (
            times,
            {"weight": 1},
            r"not {'weight': 1}, of type dict",
        ),
    ],
)
def test_rule_that_cannot_be_registered(operation: Any, rule: Any, message: str) -> None:
    with pytest.raises(JacfnTypeError, match=message):
        register_rule(operation)(rule)
    assert not any(one in RULES for one in as_called(operation))


@registering
def test_replaced() -> None:
    register_rule(times)(lambda x, weight: {})
    register_expansion(times, replace=True)(torch.mul)
    assert times not in RULES
    register_rule(times, replace=True)(_times)
    fn, w, x = _problem("operator")
    jac_quasilinear(fn, in_dims=(None, 0), strict=True)(w, x)
