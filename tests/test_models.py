"""Published architectures: every transform exact on every weight, closed forms for all leaves but those named."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import models
import pytest
import torch
from helpers import assert_same, per_sample
from torch import Tensor, nn

import jacfn
from jacfn import jac_fwd, jac_quasilinear, jac_rev, make_functional

pytestmark = pytest.mark.usefixtures("float64")

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
Leaves = dict[str, Tensor]

# model: {regular expression of leaves: the use that has no closed form, as strict=True names it}. The others have one.
EXCEPTIONS: dict[str, dict[str, str]] = {
    # Weights inside the derivatives that forward takes; the last bias does not show in them.
    "siren residual": {r"net\.layers\.(0|1)\..*|net\.layers\.2\.weight": r"linear.*siren\.py"},
}


class Known(NamedTuple):
    """A model, and its Jacobian by one plain backward pass for each row of every sample."""

    module: nn.Module
    fn: Callable[..., Any]
    params: Leaves
    inputs: tuple[Tensor, ...]
    wanted: Leaves


@functools.cache
def example(name: str) -> Known:
    """The model of that name."""
    if name.startswith(("bert", "gpt2")):
        pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, inputs = models.build(name)
    fn, params = make_functional(module)
    wanted = per_sample(fn, params, *inputs, argnums=0, mapped=[False, *(True for _ in inputs)])
    return Known(module, fn, params, inputs, wanted)


def mapped(inputs: tuple[Tensor, ...]) -> tuple[int | None, ...]:
    return None, *(0 for _ in inputs)


every_model = pytest.mark.parametrize("name", models.NAMES)


@every_model
def test_the_jacobian_says_something(name: str) -> None:
    """No leaf is dead by accident of the numbers: what is tested is worth testing."""
    wanted = example(name).wanted
    dead = {leaf for leaf, jac in wanted.items() if jac.abs().max() < 1e-8}
    assert all(re.search(r"key\.bias|tokens\.2\.bias", leaf) for leaf in dead), dead  # shifts that cancel exactly


@every_model
@pytest.mark.parametrize("transform", [jac_rev, jac_quasilinear], ids=["jac_rev", "jac_quasilinear"])
def test_reverse_mode(name: str, transform: Any) -> None:
    _, fn, params, inputs, wanted = example(name)
    jac, value = transform(fn, in_dims=mapped(inputs), return_value=True)(params, *inputs)
    assert_same(jac, wanted, **CLOSE)
    assert_same(value, torch.stack([fn(params, *sample) for sample in zip(*inputs, strict=True)]), **CLOSE)


@every_model
def test_forward_mode_on_some_columns(name: str) -> None:
    _, fn, params, inputs, wanted = example(name)
    total = sum(leaf.numel() for leaf in params.values())
    # The row of the padding token, BERT's first, is left out: padding_idx says that it has no gradient, and PyTorch
    # follows that in reverse mode alone.
    columns = torch.linspace(4, total - 1, 12).long()
    jac = jac_fwd(fn, in_dims=mapped(inputs), columns=columns)(params, *inputs)
    outputs = fn(params, *(x[0] for x in inputs)).shape
    whole = torch.cat([leaf.reshape(len(inputs[0]), *outputs, -1) for leaf in wanted.values()], -1)
    assert_same(jac, whole[..., columns], **CLOSE)


@every_model
@pytest.mark.parametrize("transform", [jac_rev, jac_quasilinear], ids=["jac_rev", "jac_quasilinear"])
def test_rows_and_chunks(name: str, transform: Any) -> None:
    _, fn, params, inputs, wanted = example(name)
    rows = fn(params, *(x[0] for x in inputs)).numel()
    chosen = [rows - 1, 0]
    jac = transform(fn, in_dims=mapped(inputs), rows=torch.tensor(chosen), chunk_size=1)(params, *inputs)
    for leaf, value in jac.items():
        expected = wanted[leaf].reshape(len(inputs[0]), rows, *params[leaf].shape)[:, chosen]
        assert_same(value, expected, where=leaf, **CLOSE)


def exceptions(name: str) -> dict[str, str]:
    """The leaves of a model without closed form, and the reason of each."""
    return {
        leaf: reason
        for leaf in example(name).params
        for pattern, reason in EXCEPTIONS.get(name, {}).items()
        if re.fullmatch(pattern, leaf)
    }


@every_model
def test_all_leaves_but_the_exceptions_have_closed_forms(name: str) -> None:
    _, fn, params, inputs, wanted = example(name)
    others = exceptions(name)
    free = {leaf: value for leaf, value in params.items() if leaf in others}
    closed = {leaf: value for leaf, value in params.items() if leaf not in others}

    def of_closed(closed: Leaves, *sample: Tensor) -> Tensor:
        return fn(closed | free, *sample)

    jac = jac_quasilinear(of_closed, in_dims=mapped(inputs), strict=True)(closed, *inputs)
    assert_same(jac, {leaf: wanted[leaf] for leaf in closed}, **CLOSE)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_refused_with_their_reasons(name: str) -> None:
    """So that the table above says what is."""
    _, fn, params, inputs, _ = example(name)
    assert exceptions(name), "the names in the table are those of leaves"
    with pytest.raises(jacfn.JacfnError, match=r"strict=True") as error:
        jac_quasilinear(fn, in_dims=mapped(inputs), strict=True)(params, *inputs)
    for leaf, reason in exceptions(name).items():
        assert re.search(rf"\['{re.escape(leaf)}'\]: .*{reason}", str(error.value)), leaf


@pytest.mark.parametrize("name", ["resnet", "mixer", "vit plain", "gcn", "siren value", "fourier"])
def test_gradients_of_a_penalty_on_the_jacobian(name: str) -> None:
    """The derivative of a function of the Jacobian along a direction, against a central difference of the oracle."""
    _, fn, params, inputs, _ = example(name)
    direction = {leaf: torch.randn_like(value) for leaf, value in params.items()}
    sample = tuple(x[:1] for x in inputs)

    def penalty(params: Leaves) -> Tensor:
        jac = jac_quasilinear(fn, in_dims=mapped(inputs), rows=0)(params, *sample)
        return sum(leaf.square().sum() for leaf in jac.values())  # type: ignore[return-value]

    def along(step: float) -> Tensor:
        moved = {leaf: params[leaf] + step * direction[leaf] for leaf in params}
        names, values = list(moved), tuple(moved.values())
        row = torch.autograd.functional.jacobian(
            lambda *values: fn(dict(zip(names, values, strict=True)), *(x[0] for x in sample)).reshape(-1)[0], values
        )
        return sum(leaf.square().sum() for leaf in row)  # type: ignore[return-value]

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    slope = torch.func.grad(penalty)(params)
    got = sum((slope[leaf] * direction[leaf]).sum() for leaf in params)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "vit plain", "gpt2 words eager"])
def test_single_precision(name: str) -> None:
    """Against the same in double precision, relative to the largest entry of each leaf."""
    model = example(name)
    fn, params = make_functional(copy.deepcopy(model.module).float())
    inputs = tuple(x.float() if x.is_floating_point() else x for x in model.inputs)
    jac = jac_quasilinear(fn, in_dims=mapped(inputs))(params, *inputs)
    for leaf, value in jac.items():
        assert value.dtype == torch.float32
        scale = model.wanted[leaf].abs().max()
        torch.testing.assert_close(value / scale, (model.wanted[leaf] / scale).float(), rtol=0, atol=2e-4)
