"""Rules for activations and losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jets import by_jets, check
from torch.nn import functional as F

from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum


def _number(x):
    return torch.tensor(x, dtype=torch.float64)


# On both sides of every kink, and far enough from each for differences.
POINTS = torch.tensor(
    [[-25.3, -4.4, -2.6, -1.4], [-0.71, 0.33, 0.77, 1.6], [2.5, 4.5, 18.6, 25.2]], dtype=torch.float64
)

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus with beta": lambda x: F.softplus(x, beta=2.0, threshold=4.0),
    "elu": lambda x: F.elu(x, 1.5),
    "celu": lambda x: F.celu(x, 1.5),
    "selu": F.selu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -2.0, 3.0),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.5, -3.0),
    "logsigmoid": F.logsigmoid,
    "glu": F.glu,
    "glu along rows": lambda x: F.glu(x[:2], 0),
    "prelu": lambda x: F.prelu(x, torch.full((4,), 0.3, dtype=x.dtype)),
    "rrelu": F.rrelu,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "dropout": lambda x: F.dropout(x, training=False),
    "where": lambda x: torch.where(x > 0, x.square(), x.sin()),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    function = ACTIVATIONS[name]
    check(function, POINTS)
    check(lambda x: function(x) * function(x * 0.98), POINTS, count=2)  # curved, where the function is not


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if not name.startswith(("glu", "prelu"))])
def test_activation_of_a_tensor_without_axes(name):
    check(ACTIVATIONS[name], _number(1.4), count=1)


def _second(function, *inputs, recording=False):
    """The second derivative along ones."""
    stacks = tuple(torch.ones(1, *x.shape, dtype=x.dtype) for x in inputs)
    return by_jets(function, inputs, stacks, Sum(), Engine(recording=recording, depth=0))[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if not name.startswith("glu")])
def test_gradients_of_second_derivatives_are_finite_far_out(name, dtype):
    function = ACTIVATIONS[name]
    x = torch.tensor([-1e30, -1e4, -750.0, -100.0, 0.0, 100.0, 750.0, 1e4], dtype=dtype).reshape(2, 4)
    second = _second(function, x)
    assert second.isfinite().all()
    gradient = torch.func.grad(lambda x: _second(function, x, recording=True).sum())(x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["gelu", "gelu by tanh", "silu", "mish", "softplus", "elu", "logsigmoid", "tanh"])
def test_third_derivatives(name):
    function, step, x = ACTIVATIONS[name], 1e-4, POINTS[:, 1:]
    got = torch.func.grad(lambda x: _second(function, x, recording=True).sum())(x)
    wanted = (_second(function, x + step) - _second(function, x - step)) / (2 * step)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    _, forward = torch.func.jvp(lambda x: _second(function, x, recording=True), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(forward, got)


@pytest.mark.parametrize("training", ["dropout", "alpha_dropout", "rrelu"])
def test_random_activations_are_linear_in_pieces(training):
    """Without anything to compare with: value and derivatives have to fit each other."""

    def function(x):
        return getattr(F, training)(x, training=True)

    x = torch.rand(8, 8, dtype=torch.float64) - 0.5
    engine = Engine(recording=False, depth=0)
    value, first, second = by_jets(function, (x,), (x[None],), Sum(), engine)
    assert (second == 0).all()
    offset = value - first[0]  # zero, but for alpha_dropout, which adds numbers of two kinds
    assert len(offset.round(decimals=9).unique()) <= 2
    if training == "rrelu":
        slope = value / x
        assert ((slope == 1) == (x > 0)).all()
        assert ((slope > 1 / 8 - 1e-9) & ((slope < 1 / 3) | (x > 0))).all()


T = torch.linspace(0.7, 0.3, 12).double().reshape(3, 4)
X = torch.tensor([[-1.3, 1.4, -0.7, 1.3], [-0.2, 1.8, -0.2, -0.9], [-0.3, 2.5, 0.0, 0.8]], dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1])
SIGNS = torch.tensor([[1.0, -1.0, 1.0, -1.0]] * 3, dtype=torch.float64)

LOSSES = {
    "mse_loss": (F.mse_loss, X, T),
    "l1_loss": (lambda x, t: F.l1_loss(x, t) * x, X, T),
    "smooth_l1_loss": (F.smooth_l1_loss, X, T),
    "huber_loss": (lambda x, t: F.huber_loss(x, t, delta=1.08), X, T),
    "binary_cross_entropy": (F.binary_cross_entropy, T, T.flip(0)),
    "binary_cross_entropy, constant target": (lambda x: F.binary_cross_entropy(x, T.flip(0), reduction="sum"), T),
    "binary_cross_entropy, constant input": (
        lambda t: F.binary_cross_entropy(T.flip(0), t.square(), reduction="none"),
        T,
    ),
    "binary_cross_entropy, weighted": (lambda x, w: F.binary_cross_entropy(x, T.flip(0), w), T, T),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, X, T),
    "binary_cross_entropy_with_logits, weighted": (
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=T[0], weight=T),
        X,
        T,
    ),
    "kl_div": (lambda x, t: F.kl_div(x, t, reduction="batchmean"), X, T),
    "kl_div of logarithms": (lambda x, t: F.kl_div(x, t, log_target=True, reduction="sum"), X, T),
    "poisson_nll_loss": (F.poisson_nll_loss, X, T),
    "poisson_nll_loss, full": (lambda x, t: F.poisson_nll_loss(x, t + 2, log_input=False, full=True), T, T),
    "gaussian_nll_loss": (F.gaussian_nll_loss, X, T, T.flip(0)),
    "gaussian_nll_loss, full": (lambda x, v: F.gaussian_nll_loss(x, T, v, full=True, reduction="sum"), X, T),
    "gaussian_nll_loss, constant variance": (lambda x: F.gaussian_nll_loss(x, T, T, reduction="none"), X),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, SIGNS), X),
    "margin_ranking_loss": (lambda x, t: F.margin_ranking_loss(x, t, SIGNS, margin=3.0) * x, X, T),
    "hinge_embedding_loss": (lambda x: F.hinge_embedding_loss(x, SIGNS) * x, X),
    "cosine_embedding_loss": (lambda x, t: F.cosine_embedding_loss(x, t, SIGNS[0, :3]), X, T),
    "triplet_margin_loss": (lambda x, t: F.triplet_margin_loss(x, t, t * t, margin=5.0), X, T),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, LABELS, p=2), X),
    "multilabel_soft_margin_loss": (F.multilabel_soft_margin_loss, X, T),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), X),
    "cross_entropy of probabilities": (F.cross_entropy, X, T),
    "cross_entropy, smoothed": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1, reduction="sum"), X),
    "cross_entropy, weighted": (lambda x: F.cross_entropy(x, LABELS, weight=T[0], ignore_index=3), X),
    "cross_entropy of one": (lambda x: F.cross_entropy(x, LABELS[0]), X[0]),
    "cross_entropy of images": (
        lambda x: F.cross_entropy(x.reshape(3, 2, 2), torch.tensor([[0, 1], [1, 1], [0, 1]])),
        X,
    ),
    "nll_loss": (lambda x: F.nll_loss(x.square(), LABELS), X),
    "cosine_similarity": (F.cosine_similarity, X, T),
    "pairwise_distance": (F.pairwise_distance, X, T),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_loss(name):
    function, *inputs = LOSSES[name]
    check(function, *inputs, count=2)


def test_binary_cross_entropy_of_certainties():
    """As PyTorch, whose logarithms are -100 at least, and with finite derivatives of all orders."""
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 1e-50, 1.0 - 1e-16], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)

    def function(x):
        return F.binary_cross_entropy(x, target, reduction="none")

    value, first, second = by_jets(function, (x,), (torch.ones_like(x)[None],), Sum(), Engine(recording=False, depth=0))
    torch.testing.assert_close(value, function(x))
    assert first.tolist() == [[1, 0, 0, -1, 0, pytest.approx(1 / (1 - x[-1].item()))]]
    assert second[:5].tolist() == [1, 0, 0, 1, 0]
    gradient = torch.func.grad(lambda x: _second(function, x, recording=True)[:5].sum())(x)
    assert gradient[:5].tolist() == [2, 0, 0, -2, 0]


def test_soft_margin_loss_far_out():
    x = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    target = torch.ones_like(x)
    assert _second(lambda x: F.soft_margin_loss(x, target), x) == 0


@given(
    shape=st.lists(st.integers(0, 3), max_size=4),
    name=st.sampled_from(["gelu", "softplus", "elu", "hardswish", "logsigmoid", "leaky_relu"]),
)
def test_any_shape(shape, name):
    x = torch.rand(shape, dtype=torch.float64) + 0.3
    check(ACTIVATIONS[name], x, count=1)


def test_values_are_those_of_pytorch():
    """To rounding, also in single precision and far out."""
    for name, function in ACTIVATIONS.items():
        for dtype in (torch.float32, torch.float64):
            x = POINTS.to(dtype)
            value, _, _ = by_jets(function, (x,), (torch.ones_like(x)[None],), Sum(), Engine(recording=False, depth=0))
            assert value.dtype == dtype, name
            torch.testing.assert_close(
                value,
                function(x),
                rtol=1e-5 if dtype == torch.float32 else 1e-10,
                atol=1e-6 if dtype == torch.float32 else 1e-14,
            )


def test_softplus_is_linear_beyond_its_threshold():
    x = _number([math.log(1e9), 21.0])
    value, first, second = by_jets(
        F.softplus, (x,), (torch.ones_like(x)[None],), Sum(), Engine(recording=False, depth=0)
    )
    assert (value == x).all()
    assert first.tolist() == [[1, 1]]
    assert second.tolist() == [0, 0]
