"""jacobian(method="auto") takes the transform with the fewest passes, and all of them agree."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import jacfn
from jacfn import jacobian, make_functional


def chosen(caplog, fn, *args, **options) -> str:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="jacfn"):
        jacobian(fn, **options)(*args)
    return next(r.getMessage().split()[1].rstrip(",") for r in caplog.records if r.getMessage().startswith("jacobian:"))


def test_few_columns_few_rows_and_networks(caplog) -> None:
    fn, params = make_functional(nn.Linear(3, 2))
    assert chosen(caplog, lambda t: t * torch.ones(5), torch.tensor(2.0)) == "fwd"
    assert chosen(caplog, lambda x: x.prod(), torch.ones(4)) == "rev"
    assert chosen(caplog, fn, params, torch.ones(6, 3), in_dims=(None, 0)) == "quasilinear"
    assert chosen(caplog, fn, params, torch.ones(3), rows=1) == "quasilinear"
    # 8 columns of one sample, and 20 rows: the number of samples does not count
    wide, params = make_functional(nn.Sequential(nn.Linear(1, 4), nn.Tanh()))
    assert chosen(caplog, lambda p, x: wide(p, x).repeat(5), params, torch.ones(100, 1), in_dims=(None, 0)) == "fwd"


@pytest.mark.parametrize("method", ["auto", "rev", "fwd", "quasilinear"])
def test_methods_agree(method) -> None:
    fn, params = make_functional(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    x = torch.randn(5, 3, dtype=torch.float64)
    wanted = torch.func.vmap(torch.func.jacrev(fn), (None, 0))(params, x)
    got, value = jacobian(fn, method=method, in_dims=(None, 0), return_value=True, memory="1MiB")(params, x)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(value, torch.func.vmap(fn, (None, 0))(params, x))


def test_columns_choose_forward_mode() -> None:
    def fn(x: Tensor) -> Tensor:
        return x.prod()

    torch.testing.assert_close(jacobian(fn, columns=1)(torch.tensor([2.0, 3.0])), torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of auto, rev, fwd, quasilinear, got 'magic'"),
        ({"rows": 0, "columns": 0}, "rows and columns cannot be chosen at once"),
        ({"rows": 0, "method": "fwd"}, "rows: forward mode computes columns"),
        ({"columns": 0, "method": "rev"}, "columns: method='rev' computes rows"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(jacfn.JacfnValueError, match=message):
        jacobian(torch.sin, **options)
