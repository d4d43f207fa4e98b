"""Rules for softmax and the normalisations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jets import by_jets, check
from torch.nn import functional as F

from jacfn.second_order.carrier import UnseenError
from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

aten = torch.ops.aten


def _randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


SMALL = [0.7 * torch.linspace(0.5, 1.5, 4).double(), torch.linspace(-1, 1, 4).double()]  # for four channels
STATISTICS = [torch.linspace(-0.3, 0.3, 4).double(), torch.linspace(0.5, 2.0, 4).double()]
MORE = [*SMALL, *STATISTICS]
MASK = torch.tensor([[False] * 4, [True, False, True, False], [True] * 4])

CASES = {
    "softmax": (lambda x: F.softmax(x, -1), (2, 3, 4)),
    "softmax along the first": (lambda x: F.softmax(x, 0), (3, 2)),
    "softmax of one": (lambda x: F.softmax(x, 1), (3, 1)),
    "softmax without axes": (lambda x: F.softmax(x, 0) * x, ()),
    "safe softmax": (lambda x: torch.ops.aten._safe_softmax(x.masked_fill(MASK, -torch.inf), -1) * x, (3, 4)),
    "safe softmax without axes": (lambda x: torch.ops.aten._safe_softmax(x, 0) * x, ()),
    "softmin": (lambda x: F.softmin(x, 1), (2, 3)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), (2, 3, 4)),
    "log_softmax along the first": (lambda x: F.log_softmax(x, 0), (3, 2)),
    "log_softmax without axes": (lambda x: F.log_softmax(x, 0) * x, ()),
    "special.softmax": (lambda x: torch.special.softmax(x, 1) * torch.special.log_softmax(x, 1), (2, 3)),
    "softmax2d": (torch.nn.Softmax2d(), (2, 3, 2, 2)),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), (2, 3, 4)),
    "layer_norm of two axes": (lambda x: F.layer_norm(x, (3, 4), eps=0.1), (2, 3, 4)),
    "layer_norm, affine": (lambda x: F.layer_norm(x, (4,), *SMALL), (2, 4)),
    "layer_norm, weight": (lambda x: F.layer_norm(x, (4,), SMALL[0]), (2, 4)),
    "layer_norm, all vary": (lambda x, w, b: F.layer_norm(x, (4,), w, b), (2, 4), (4,), (4,)),
    "layer_norm, weight varies": (lambda w: F.layer_norm(SMALL[1], (4,), w, SMALL[1]), (4,)),
    "native_layer_norm": (lambda x: sum(torch.native_layer_norm(x, (4,), None, None, 1e-3)), (2, 4)),
    "rms_norm": (lambda x: F.rms_norm(x, (4,)), (2, 4)),
    "rms_norm of two axes": (lambda x: F.rms_norm(x, (3, 4), eps=0.1), (2, 3, 4)),
    "rms_norm, weight varies too": (lambda x, w: F.rms_norm(x, (4,), w), (2, 4), (4,)),
    "group_norm": (lambda x: F.group_norm(x, 2), (2, 4, 3)),
    "group_norm, affine": (lambda x: F.group_norm(x, 2, *SMALL), (2, 4, 2, 2)),
    "group_norm of vectors": (lambda x: F.group_norm(x, 2, *SMALL), (2, 4)),
    "group_norm, all vary": (lambda x, w, b: F.group_norm(x, 1, w, b), (2, 4, 3), (4,), (4,)),
    "batch_norm, evaluated": (lambda x: F.batch_norm(x, *STATISTICS, *SMALL), (2, 4)),
    "batch_norm, evaluated, images": (lambda x: F.batch_norm(x, *STATISTICS, *SMALL) ** 2, (2, 4, 2, 2)),
    "batch_norm, evaluated, plain": (lambda x: F.batch_norm(x, *STATISTICS) ** 2, (2, 4, 3)),
    "batch_norm, evaluated, all vary": (lambda x, w, b: F.batch_norm(x, *STATISTICS, w, b), (2, 4, 3), (4,), (4,)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (3, 4)),
    "batch_norm, images": (lambda x: F.batch_norm(x, None, None, *SMALL, training=True), (2, 4, 2, 2)),
    "batch_norm, all vary": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), (3, 4, 2), (4,), (4,)),
    "_fused_rms_norm": (lambda x, w: aten._fused_rms_norm(x, (4,), w, 0.1)[0], (2, 4), (4,)),
    "_native_batch_norm_legit.no_stats": (
        lambda x: aten._native_batch_norm_legit.no_stats(x, *SMALL, True, 0.1, 1e-5)[0],
        (3, 4),
    ),
    "_native_batch_norm_legit_no_training": (
        lambda x: aten._native_batch_norm_legit_no_training(x, *MORE, 0.1, 1e-5)[0] ** 2,
        (3, 4),
    ),
    "instance_norm": (F.instance_norm, (2, 4, 3)),
    "instance_norm, all vary": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (2, 4, 3), (4,), (4,)),
    "instance_norm, evaluated": (lambda x: F.instance_norm(x, *STATISTICS, use_input_stats=False) ** 2, (2, 4, 3)),
    "normalize": (lambda x: F.normalize(x + 3), (3, 4)),
    "normalize, p=1": (lambda x: F.normalize(x + 3, p=1, dim=0), (3, 4)),
    "normalize of zero": (lambda x: F.normalize(x * 1e-14, eps=1e-3) * 1e14, (3, 4)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (2, 4, 3)),
    "local_response_norm of images": (lambda x: F.local_response_norm(x, 3), (2, 4, 2, 2)),
    "weight_norm": (lambda x: x / x.norm(dim=1, keepdim=True) * 2, (3, 4)),
    "cosine_similarity": (lambda x, y: F.cosine_similarity(x, y, dim=0), (3, 4), (3, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_normalisation(name):
    function, *shapes = CASES[name]
    check(function, *(_randn(*shape) for shape in shapes))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_gradient_of_second_derivatives(name):
    """Third derivatives, which PyTorch's own formulas for the normalisations get wrong."""
    function, shape = CASES[name]
    x, v, u = (_randn(*shape) for _ in range(3))

    def second(x):
        engine = Engine(recording=True, depth=0)
        return (by_jets(function, (x,), (v[None],), Sum(), engine)[2] * u).sum()

    gradient, (forward, along) = torch.func.grad(second)(x), torch.func.jvp(second, (x,), (u,))
    step = 1e-3
    ahead, behind = ([second(x + sign * k * step * u) for k in (1, 2)] for sign in (1, -1))
    wanted = (8 * (ahead[0] - behind[0]) - (ahead[1] - behind[1])) / (12 * step)
    torch.testing.assert_close(along, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((gradient * u).sum(), wanted, rtol=1e-6, atol=1e-6)
    assert forward == second(x)


def test_running_statistics_are_not_updated_here():
    with pytest.raises(UnseenError, match="no rule for native_batch_norm"):
        check(lambda x: F.batch_norm(x, *STATISTICS, training=True), _randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_coarse_numbers(name, dtype):
    """Derivatives are as good as the dtype lets them be."""
    function, shape = CASES[name]
    x, v = (_randn(*shape).to(dtype).to(torch.float64) for _ in range(2))
    engine = Engine(recording=False, depth=0)
    wanted = by_jets(function, (x,), (v[None],), Sum(), engine)
    got = by_jets(function, (x.to(dtype),), (v[None].to(dtype),), Sum(), engine)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=20 * torch.finfo(dtype).eps * (1 + b.abs().max().item()))


def test_softmax_far_out():
    x = torch.tensor([[800.0, -800.0, 0.0], [-torch.inf, 0.0, 0.0]], dtype=torch.float64)
    engine = Engine(recording=False, depth=0)
    _, first, second = by_jets(
        lambda x: F.softmax(x, 1), (x,), (torch.eye(3).double()[:, None].expand(3, 2, 3),), Sum(), engine
    )
    assert first[:, 0].count_nonzero() == second[0].count_nonzero() == 0
    torch.testing.assert_close(first[1, 1], torch.tensor([0, 0.25, -0.25], dtype=torch.float64))


@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), axis=st.integers(-4, 3))
def test_any_axis(shape, axis):
    axis = axis % (2 * len(shape)) - len(shape)
    check(lambda x: F.softmax(x, axis) - F.log_softmax(x, axis), _randn(*shape), count=1)


@given(shape=st.lists(st.integers(2, 3), min_size=1, max_size=4), last=st.integers(1, 4))
def test_any_shape(shape, last):
    check(lambda x: F.layer_norm(x, shape[-last:], eps=0.1), _randn(*shape), count=1)
