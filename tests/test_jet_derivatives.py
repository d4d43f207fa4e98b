"""Derivatives of what rules compute: a transform around them must see them whole."""

from __future__ import annotations

import pytest
import test_jet_indexing
import test_jet_linalg
import test_jet_products
import test_jet_windows
import torch
from jets import SLOPE, STEP, by_jets

from jacfn.second_order.engine import Engine
from jacfn.second_order.jet import Sum

CASES = {
    f"{name}: {case}": table[case]
    for name, table in (
        ("linalg", test_jet_linalg.CASES),
        ("products", test_jet_products.CASES),
        ("convolution", test_jet_windows.CONVOLUTIONS),
        ("indexing", test_jet_indexing.CASES),
    )
    for case in table
}


@pytest.mark.filterwarnings("ignore:torch.(cholesky|qr|chain)", "ignore:index_reduce")
@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_derivatives(case):
    """Of the value, the first derivatives and the sum of the second ones, together."""
    torch.manual_seed(1)
    function, *shapes = CASES[case]
    inputs, along = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    stacks = tuple(torch.randn(2, *x.shape, dtype=torch.float64) for x in inputs)
    engine = Engine(recording=True, depth=0)

    def parts(*inputs):
        return by_jets(function, inputs, stacks, Sum(), engine)

    cotangents = [torch.randn_like(part) for part in parts(*inputs)]

    def scalar(*inputs):
        return sum((part * c).sum() for part, c in zip(parts(*inputs), cotangents, strict=True))

    def at(t):
        return scalar(*(x + t * v for x, v in zip(inputs, along, strict=True)))

    expected = sum(c * (at(i * STEP) - at(-i * STEP)) for i, c in enumerate(SLOPE, 1)) / STEP

    def mapped(*inputs):
        return torch.func.vmap(scalar)(*(torch.stack([x, x.detach()]) for x in inputs)).sum()

    def directional(function):
        gradients = torch.func.grad(function, tuple(range(len(inputs))))(*inputs)
        return sum((g * v).sum() for g, v in zip(gradients, along, strict=True))

    forward = torch.func.jvp(scalar, tuple(inputs), tuple(along))[1]
    got = torch.stack([directional(scalar), directional(mapped), forward])
    torch.testing.assert_close(
        got / (1 + expected.abs()), (expected / (1 + expected.abs())).expand(3), rtol=0, atol=1e-6
    )
