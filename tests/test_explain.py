"""explain says what the transforms then do: rules, counts, chunks, memory, failures."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import types
from typing import Any

import models
import pytest
import torch
from helpers import Box, Pair, Square, cnn, leaves_of, mlp
from torch import Tensor, nn
from torch.nn import functional as F

import jacfn
from jacfn import Plan, explain, jac_fwd, jac_quasilinear, jac_rev, jacobian, make_functional
from jacfn._explain.records import SecondPlan
from jacfn._memory import PeakBytes

TRANSFORMS = {"rev": jac_rev, "fwd": jac_fwd, "quasilinear": jac_quasilinear}


def warned(plan: Plan) -> dict[str, str]:
    """Messages by kind."""
    return {warning.kind: warning.message for warning in plan.warnings}


def rules(plan: Plan) -> list[str]:
    return [leaf.rule for leaf in plan.leaves]


def network(*widths: int):
    return make_functional(mlp(*widths))


# --- leaves


def test_closed_forms_with_their_counts() -> None:
    fn, params = network(3, 4, 2)
    plan = explain(fn, params, torch.ones(10, 3), in_dims=(None, 0))
    assert [leaf.path for leaf in plan.leaves] == [f"argument 0['{name}']" for name in params]
    assert [leaf.shape for leaf in plan.leaves] == [tuple(leaf.shape) for leaf in params.values()]
    assert rules(plan) == ["linear"] * 4
    assert all(leaf.closed and leaf.uses == 1 and not leaf.reason for leaf in plan.leaves)
    # 10 samples of 2 rows; one position, so an outer product, or a copy
    assert [leaf.flops for leaf in plan.leaves] == [20 * size for size in (12, 4, 8, 2)]
    assert [leaf.bytes for leaf in plan.leaves] == [20 * 4 * size for size in (12, 4, 8, 2)]
    assert (plan.rows, plan.columns, plan.samples) == (2, 26, 10)
    assert plan.warnings == ()


def test_positions_count_in_products() -> None:
    fn, params = make_functional(nn.Conv2d(2, 3, 3))
    plan = explain(fn, params, torch.ones(1, 2, 6, 6), in_dims=(None, 0))
    rows = 3 * 16
    assert [leaf.flops for leaf in plan.leaves] == [rows * 2 * 16 * (3 * 2 * 9), rows * 3 * 16]


def squared(w: Tensor, x: Tensor) -> Tensor:
    return torch.fft.fft(w).real @ x


def test_leaf_without_closed_form_names_operation_and_call_site() -> None:
    (leaf,) = explain(squared, torch.randn(3, 4), torch.randn(5, 4), in_dims=(None, 0)).leaves
    assert leaf.rule == "vjp"
    assert not leaf.closed
    line = squared.__code__.co_firstlineno + 1
    assert re.fullmatch(rf".*fft.* at .*test_explain\.py:{line}", leaf.reason)


def test_both_kinds_of_use() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return w @ x + torch.fft.fft(w).real.sum()

    (leaf,) = explain(fn, torch.randn(3, 4), torch.randn(5, 4), in_dims=(None, 0)).leaves
    assert leaf.rule == "matmul + vjp"
    assert (leaf.uses, leaf.closed) == (1, False)


def test_values_derived_from_parameters() -> None:
    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, params["w"] + params["b"] @ params["a"].t()) @ params["w"]

    params = {"w": torch.randn(3, 3), "a": torch.randn(3, 1), "b": torch.randn(3, 1)}
    plan = explain(fn, params, torch.randn(5, 3), in_dims=(None, 0))
    assert rules(plan) == [
        "linear (through add), matmul",
        "linear (through t, matmul, add)",
        "linear (through matmul, add)",
    ]
    assert [leaf.uses for leaf in plan.leaves] == [2, 1, 1]
    assert all(leaf.closed for leaf in plan.leaves)


def test_tied_weight_has_two_uses() -> None:
    def fn(table: Tensor, words: Tensor) -> Tensor:
        return F.linear(F.embedding(words, table), table)

    (leaf,) = explain(fn, torch.randn(7, 3), torch.tensor([[1, 2], [3, 4]]), in_dims=(None, 0)).leaves
    assert (leaf.rule, leaf.uses) == ("embedding, linear", 2)


# --- methods


def cases():
    fn, params = network(3, 4, 2)
    wide, thin = network(1, 4)

    def repeated(p, x):
        return wide(p, x).repeat(5)

    def product(x):
        return x.prod()

    def scaled(t):
        return t * torch.ones(5)

    return {
        "network": (fn, (params, torch.ones(6, 3)), {"in_dims": (None, 0)}),
        "few columns": (repeated, (thin, torch.ones(9, 1)), {"in_dims": (None, 0)}),
        "gradient": (product, (torch.ones(4),), {}),
        "scalar": (scaled, (torch.tensor(2.0),), {}),
    }


@pytest.mark.parametrize("name", cases())
def test_method_is_the_one_that_jacobian_takes(name, caplog) -> None:
    fn, args, options = cases()[name]
    with caplog.at_level(logging.DEBUG, logger="jacfn"):
        jacobian(fn, **options)(*args)
    logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith("jacobian:")]
    plan = explain(fn, *args, **options)
    assert logged == [f"jacobian: {plan.method}, {plan.why}"]


@pytest.mark.parametrize("memory", [None, "1MiB"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_chunk_result_and_peak_are_those_of_the_transform(name, memory, caplog) -> None:
    fn, params = make_functional(cnn())
    x = torch.randn(40, 1, 8, 8)
    plan = explain(fn, params, x, in_dims=(None, 0), memory=memory)
    method = next(method for method in plan.methods if method.name == name)
    transform = TRANSFORMS[name](fn, in_dims=(None, 0), memory=memory)
    transform(params, x)  # once, so that nothing is learnt below
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="jacfn"), PeakBytes() as tracker:
        jac = transform(params, x)
    chunks = next(record.jacfn_chunks for record in caplog.records if hasattr(record, "jacfn_chunks"))
    columns = sum(leaf.numel() for leaf in params.values())
    assert method.samples_at_once == chunks.samples
    assert method.at_once == min(chunks.rows, columns if name == "fwd" else 4)
    leaves = list(jac.values())
    assert method.bytes == sum(leaf.numel() * leaf.itemsize for leaf in leaves)
    actual = tracker.peak_beyond(leaves)
    assert 0.8 * actual <= method.peak <= 1.25 * actual + 4096


def test_passes() -> None:
    fn, params = network(3, 4, 2)
    methods = {method.name: method for method in explain(fn, params, torch.ones(6, 3), in_dims=(None, 0)).methods}
    passes = {name: (method.forward_passes, method.backward_passes) for name, method in methods.items()}
    assert passes == {"rev": (1, 2), "fwd": (26, 0), "quasilinear": (1, 2)}
    forward = 6 * 2 * (12 + 8)
    assert methods["rev"].flops == forward * 5
    assert methods["fwd"].flops == forward * 53
    assert methods["quasilinear"].flops == forward * 3 + 6 * 2 * 26


def test_chunk_size() -> None:
    fn, params = network(3, 4, 2)
    plan = explain(fn, params, torch.ones(6, 3), in_dims=(None, 0), chunk_size=4)
    assert [(method.samples_at_once, method.at_once) for method in plan.methods] == [(4, 1), (6, 4), (4, 1)]


def test_budget_that_is_too_small() -> None:
    fn, params = network(30, 400, 2)
    plan = explain(fn, params, torch.ones(6, 30), in_dims=(None, 0), memory="1KiB")
    assert all(method.fails and "too small" in method.note for method in plan.methods)
    assert "memory=0.0009766 MiB is too small" in warned(plan)["fails"]


# --- structures


def test_ensemble() -> None:
    fn, params = network(3, 2)
    stacked = {name: torch.stack([leaf, 2 * leaf]) for name, leaf in params.items()}
    plan = explain(fn, stacked, torch.ones(3), in_dims=(0, None))
    assert [leaf.shape for leaf in plan.leaves] == [(2, 3), (2,)]
    assert rules(plan) == ["linear", "linear"]
    assert (plan.samples, plan.rows, plan.columns) == (2, 2, 8)


def test_trees_and_several_arguments() -> None:
    def fn(pair: Pair, scale: float, box: Box) -> dict[str, Tensor]:
        return {"a": pair.first @ box.left * scale, "b": [pair.second + box.right]}

    first = Pair(torch.randn(2, 3), torch.randn(2))
    plan = explain(fn, first, 3.0, Box(torch.randn(3), torch.tensor(1.0)), argnums=(0, 2))
    assert [leaf.path for leaf in plan.leaves] == [
        "argument 0.first",
        "argument 0.second",
        "argument 2.left",
        "argument 2.right",
    ]
    assert (plan.rows, plan.columns, plan.samples) == (4, 12, None)
    assert all(path in str(plan) for path in (leaf.path for leaf in plan.leaves))


def test_keyword_arguments_and_aux() -> None:
    def fn(w: Tensor, *, memory: Tensor) -> tuple[Tensor, str]:
        return w @ memory, "aux"

    plan = explain(fn, torch.randn(2, 3), kwargs={"memory": torch.randn(3)}, has_aux=True)
    assert rules(plan) == ["matmul"]


def test_empty() -> None:
    fn, params = network(3, 2)
    assert explain(fn, params, torch.ones(0, 3), in_dims=(None, 0)).samples == 0

    def nothing(x: Tensor) -> Tensor:
        return x[:0]

    assert explain(nothing, torch.ones(3)).rows == 0


def _models():
    quick = {"fourier", "siren residual", "gpt2 classifier eager", "resnet"}
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in models.NAMES]


@pytest.mark.filterwarnings("ignore:.*SwigPy:DeprecationWarning")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", _models())
def test_published_architectures(name) -> None:
    if name.startswith(("bert", "gpt2")):
        pytest.importorskip("transformers")
    module, inputs = models.build(name)
    fn, params = make_functional(module)
    plan = explain(fn, params, *inputs, in_dims=(None, *(0 for _ in inputs)))
    assert plan.method == "quasilinear"
    assert not any(method.fails for method in plan.methods)
    assert all(leaf.closed for leaf in plan.leaves) or name == "siren residual"
    assert not warned(plan).keys() & {"not finite", "slow operation", "unused", "zero", "in place"}
    assert "disagree" not in warned(plan).get("modes differ", "")


# --- warnings


def test_padding_row() -> None:
    fn, params = make_functional(nn.Embedding(5, 2, padding_idx=1))
    plan = explain(fn, params, torch.tensor([[0, 1], [2, 3]]), in_dims=(None, 0))
    assert not plan.warnings


class Straight(torch.autograd.Function):
    """Rounds, and claims to be the identity in reverse mode alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return 0 * tangent

    generate_vmap_rule = True


def straight(x: Tensor) -> Tensor:
    return 3 * Straight.apply(x)


def test_modes_that_disagree() -> None:
    assert "forward and reverse mode disagree" in warned(explain(straight, torch.randn(3)))["modes differ"]


class NoForward(torch.autograd.Function):
    """Has no forward derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()

    generate_vmap_rule = True


def reverse_only(x: Tensor, y: Tensor) -> Tensor:
    return x * NoForward.apply(y)


def test_forward_mode_gap_in_any_leaf() -> None:
    plan = explain(reverse_only, torch.randn(3), torch.randn(3), argnums=(0, 1))
    assert [method.name for method in plan.methods if method.fails] == ["fwd"]
    assert warned(plan)["fails"].startswith("jac_fwd fails: ")
    with pytest.raises(Exception, match="jvp"):
        jac_fwd(reverse_only, 1)(torch.randn(3), torch.randn(3))


def test_dropout() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    fn, params = make_functional(module)
    x = torch.randn(5, 3)
    state = torch.get_rng_state()
    plan = explain(fn, params, x, in_dims=(None, 0))
    assert torch.equal(state, torch.get_rng_state())
    assert "randomness='error'" in warned(plan)["random"]
    assert all(method.fails for method in plan.methods)
    assert rules(plan) == ["linear"] * 4
    for name, transform in TRANSFORMS.items():
        with pytest.raises(RuntimeError):
            transform(fn, in_dims=(None, 0))(params, x)
        assert explain(fn, params, x, in_dims=(None, 0), randomness="same").methods, name
    assert not explain(fn, params, x, in_dims=(None, 0), randomness="different").warnings
    module.eval()
    assert not explain(fn, params, x, in_dims=(None, 0)).warnings


def test_batch_norm_in_training_mode_is_refused_as_everywhere() -> None:
    fn, params = make_functional(nn.BatchNorm1d(3))
    with pytest.raises(jacfn.JacfnValueError, match="BatchNorm1d in training mode"):
        explain(fn, params, torch.randn(5, 3), in_dims=(None, 0))


def decomposed(x: Tensor) -> Tensor:
    return torch.linalg.lu(x)[2]


def test_operation_without_batching_rule() -> None:
    plan = explain(decomposed, torch.eye(3) + torch.rand(4, 3, 3), in_dims=0)
    assert "linalg_lu has no batching rule" in warned(plan)["slow operation"]


def test_joined_leaves() -> None:
    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return params["w"] @ x + torch.fft.fft(params["u"]).real @ x

    params = {"w": torch.randn(3, 4), "u": torch.randn(3, 4)}
    message = warned(explain(fn, params, torch.randn(5, 4), in_dims=(None, 0)))["joined"]
    assert message.startswith("argument 0['u']: ")


def test_unused_leaf_and_leaf_without_gradient() -> None:
    def fn(params: dict[str, Tensor], x: Tensor) -> Tensor:
        count = params["unused"].shape[0]
        index = params["chosen"].argmax()
        return params["used"] @ x * params["cut"].detach() + count + index

    params = {name: torch.randn(3) for name in ("unused", "cut", "chosen")} | {"used": torch.randn(3, 3)}
    plan = explain(fn, params, torch.randn(4, 3), in_dims=(None, 0))
    assert rules(plan) == ["zero", "zero", "zero", "matmul"]
    assert plan.leaves[1].reason == "no gradient comes back from torch.Tensor.detach"
    assert warned(plan)["unused"].startswith("argument 0['unused']: ")
    assert warned(plan)["zero"].startswith("argument 0['cut'], argument 0['chosen']: ")
    jac = jac_rev(fn, in_dims=(None, 0))(params, torch.randn(4, 3))
    assert all(not jac[name].any() for name in ("unused", "cut", "chosen"))


@dataclasses.dataclass
class Unhashable:
    """Equal by value, hence without a hash."""

    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_functions_that_cannot_be_kept() -> None:
    assert "Unhashable" in warned(explain(Unhashable(2.0), torch.ones(3)))["not kept"]
    assert "lambda" in warned(explain(lambda x: 2 * x, torch.ones(3)))["not kept"]
    assert "partial" in warned(explain(functools.partial(torch.mul, torch.ones(3)), torch.ones(3)))["not kept"]

    def fn(x: Tensor, options: object) -> Tensor:
        return 2 * x

    namespace = types.SimpleNamespace(scale=1)  # not hashable either
    assert "an argument that is no tensor" in warned(explain(fn, torch.ones(3), namespace))["not kept"]
    assert not explain(fn, torch.ones(3), 1).warnings


def test_function_that_changes_its_arguments() -> None:
    def fn(x: Tensor, state: Tensor) -> Tensor:
        state.add_(1)
        return x * 2

    state = torch.zeros(4, 3)
    plan = explain(fn, torch.ones(4, 3), state, in_dims=0)
    assert "in place" in warned(plan)
    assert not state.any()


def test_input_changed_after_its_use() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        h = x * 2
        y = w @ h
        h.add_(1)
        return y

    w, x = torch.randn(2, 3), torch.randn(5, 3)
    plan = explain(fn, w, x, in_dims=(None, 0))
    assert plan.method is None
    assert "changed in place" in plan.why
    assert "jac_quasilinear fails" in warned(plan)["fails"]
    with pytest.raises(jacfn.JacfnError, match="changed in place"):
        jacobian(fn, in_dims=(None, 0))(w, x)


def test_half_precision() -> None:
    fn, params = make_functional(mlp(3, 2).bfloat16())
    plan = explain(fn, params, torch.ones(5, 3, dtype=torch.bfloat16), in_dims=(None, 0))
    assert "torch.bfloat16" in warned(plan)["half precision"]
    assert "modes differ" not in warned(plan)


def test_derivatives_that_are_not_finite() -> None:
    assert "the derivative" in warned(explain(torch.sqrt, torch.zeros(3)))["not finite"]
    assert "fn's value" in warned(explain(torch.log, -torch.ones(3)))["not finite"]


def test_result_that_does_not_fit() -> None:
    def fn(x: Tensor) -> Tensor:
        return x.sum().expand(10**6)

    message = warned(explain(fn, torch.ones(10**7)))["too large"]
    assert message.startswith("the result takes 36.4 TiB, cpu has ")


def test_self_made_failure_of_every_method_becomes_warnings() -> None:
    def fn(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("not while recording")
        return x * 2

    plan = explain(fn, torch.ones(3))
    assert "not while recording" in plan.why
    assert any("not while recording" in warning.message for warning in plan.warnings)


# --- errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(3, dtype=torch.long),), {}, "only floating-point tensors can be differentiated"),
        ((torch.ones(3),), {"argnums": 2}, "argnums=2 is out of range"),
        ((torch.ones(3),), {"in_dims": (0, 0)}, "in_dims must be"),
        ((torch.ones(3),), {"memory": "much"}, "memory must be bytes or a string"),
        ((torch.ones(3),), {"memory": 1, "chunk_size": 1}, "give one of them"),
        ((torch.ones(3),), {"randomness": "some"}, "randomness must be"),
        ((torch.ones(3),), {"kwargs": 3}, "kwargs must be a dict"),
    ],
)
def test_arguments_that_do_not_fit(arguments, options, message) -> None:
    with pytest.raises(jacfn.JacfnError, match=message):
        explain(torch.sin, *arguments, **options)


def test_what_fn_raises_is_raised() -> None:
    def fn(x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        explain(fn, torch.ones(3))


def test_inside_a_transform() -> None:
    def fn(x: Tensor) -> Tensor:
        explain(torch.sin, x)
        return x

    with pytest.raises(jacfn.JacfnError, match="call it outside"):
        torch.func.vmap(fn)(torch.ones(3))


# --- text


def test_table() -> None:
    fn, params = network(3, 4, 2)
    plan = explain(fn, params, torch.ones(10, 3), in_dims=(None, 0))
    leaves, methods, second, summary = str(plan).split("\n\n")
    assert repr(plan) == str(plan)
    assert leaves.splitlines()[2].split() == ["['0.weight']", "(4,", "3)", "linear", "1", "240", "960", "B"]
    assert [line.split()[0] for line in methods.splitlines()[2:]] == ["jac_rev", "jac_fwd", "jac_quasilinear"]
    assert [line for line in methods.splitlines() if line.endswith("chosen")] == [methods.splitlines()[-1]]
    assert (
        summary
        == "jac_quasilinear: 4 of 4 leaves in closed form, 10 x 2 rows, 26 columns, 2.03 KiB result, no warnings"
    )
    assert second == "hessian, hvp: forward over reverse\nlaplacian, hessian_diag, partial: by rules"
    for block in (leaves, methods):
        rule = block.splitlines()[1]
        starts = [match.start() for match in re.finditer("-+", rule)]
        assert all(line[start - 1] == " " for line in block.splitlines() for start in starts[1:] if start < len(line))


def test_table_with_reasons_and_warnings() -> None:
    text = str(explain(squared, torch.randn(3, 4), torch.randn(5, 4), in_dims=(None, 0)))
    assert re.search(r"vjp +- +- +\d+ B +\S*fft\S* at test_explain\.py:\d+$", text, re.MULTILINE)
    assert text.endswith("no warnings")
    warning = str(explain(torch.sqrt, torch.zeros(3))).splitlines()[-6]
    assert warning == "! the derivative at the first samples is not finite, though the value is"


def test_second_derivatives() -> None:
    def by_rules(x: Tensor) -> Tensor:
        return torch.tanh(x).sum()

    def with_a_transform(x: Tensor) -> Tensor:
        return torch.func.vmap(torch.sin)(x)

    def without_forward(x: Tensor) -> Tensor:
        return Square.apply(x)

    def once(x: Tensor) -> Tensor:
        return Once.apply(x)

    x = torch.randn(3)
    assert explain(by_rules, x).second == SecondPlan("", "", "")
    assert explain(by_rules, torch.randn(4, 3), in_dims=0).second == SecondPlan("", "", "")
    assert explain(by_rules, torch.randn(0, 3), in_dims=0).second is None
    plan = explain(with_a_transform, x).second
    assert "a transform of its own" in plan.uncovered
    assert plan.no_forward == ""
    plan = explain(without_forward, x).second
    assert "Square" in plan.uncovered
    assert "jvp" in plan.no_forward
    assert plan.fails == ""
    assert str(plan).startswith("hessian, hvp: reverse over reverse (")
    assert "fail (" in str(explain(once, x).second)


class Once(torch.autograd.Function):
    """Cannot be differentiated twice."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def test_fields_are_for_programs() -> None:
    fn, params = network(3, 2)
    plan = explain(fn, params, torch.ones(10, 3), in_dims=(None, 0))
    assert dataclasses.asdict(plan)["leaves"][0]["rule"] == "linear"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rows = 3  # type: ignore[misc]
    assert len(leaves_of(list(plan.leaves))) > 0
