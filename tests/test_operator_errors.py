"""What operators refuse: each message names the argument, what came and what was wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import CASES, operator
from torch.func import grad

from jacfn import JacfnError, JacfnTypeError, JacfnValueError, jacobian_operator

D, S = torch.float64, torch.float32
CASE = CASES["mlp"](5)
J = operator(CASE, "quasilinear")
M, P = J.shape
one = {name: torch.ones_like(leaf) for name, leaf in CASE.params.items()}
ones = torch.ones


def made(**options: Any) -> Any:
    return jacobian_operator(CASE.fn, CASE.params, CASE.x, in_dims=(None, 0), **options)


def of_two(first: str, second: str) -> Any:
    return jacobian_operator(lambda p: p["a"] * p["b"], {first: ones(2), second: ones(2)})


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: J.mv(ones(P + 1, dtype=D)),
        JacfnValueError,
        r"v must be .*\(26,\) or \(S, 26\), got a tensor of shape \(27",
    ),
    (lambda: J.mv(ones(P)), JacfnTypeError, r"v must be torch.float64 on cpu .*got torch.float32"),
    (lambda: J.mv(None), JacfnValueError, r"v must have the structure .*got PyTreeSpec\(None"),
    (lambda: J.mv({"0.bias": ones(4)}), JacfnValueError, "v must have the structure"),
    (lambda: J.mv(one | {"0.bias": ones(3)}), JacfnValueError, r"v\['0.bias'\] must have shape \(4,\).*got \(3,\)"),
    (
        lambda: J.mv(one | {"0.bias": ones(4)}),
        JacfnTypeError,
        r"v\['0.bias'\] must be torch.float64.*got torch.float32",
    ),
    (lambda: J.mv(one | {"0.bias": 1.0}), JacfnValueError, r"v\['0.bias'\] must have shape.*got float"),
    (lambda: J.mv(one | {"0.bias": ones(2, 4, dtype=D)}), JacfnValueError, "v: all leaves must be stacks of the same"),
    (lambda: J.rmv(ones(M + 1, dtype=D)), JacfnValueError, r"u must be .*\(10,\) or \(S, 10\), got .*\(11,\)"),
    (lambda: J.restrict(rows=0).rmv([1]), JacfnTypeError, r"u must be flat, of shape \(1,\).*got list"),
    (lambda: J @ ones(P + 1, dtype=D), JacfnValueError, r"J @ v: .*\(26,\) or \(26, S\), got \(27,\)"),
    (lambda: J @ ones(P, 1, 1, dtype=D), JacfnValueError, r"J @ v: .*got \(26, 1, 1\)"),
    (lambda: J @ [1.0], JacfnValueError, r"J @ v: .*got list"),
    (lambda: J @ ones(P), JacfnTypeError, r"J @ v: .*torch.float64 on cpu, got torch.float32"),
    (lambda: J.T @ ones(P, dtype=D), JacfnValueError, r"J.T @ u: .*\(10,\) or \(10, S\), got \(26,\)"),
    (
        lambda: J.weighted(ones(M + 1, dtype=D)),
        JacfnValueError,
        r"weights must have shape \(10,\), \(5, 2\) or \(5, 2, 2\)",
    ),
    (lambda: J.weighted(ones(M)), JacfnTypeError, r"weights must be torch.float64 on cpu, got torch.float32"),
    (lambda: J.weighted([1.0] * M), JacfnTypeError, r"weights must be a tensor of shape .*got list"),
    (lambda: J.normal(ones(3, dtype=D)), JacfnValueError, r"weights must have shape .*got \(3,\)"),
    (lambda: J.ggn_mv(ones(P, dtype=D), ones(3, dtype=D)), JacfnValueError, "weights must have shape"),
    (lambda: J.ggn_diagonal(ones(3, dtype=D)), JacfnValueError, "weights must have shape"),
    (lambda: J.restrict(rows=slice(2)).weighted(ones(1, 2, 2, dtype=D)), JacfnError, "mix all rows of a sample"),
    (lambda: J.column_weighted(ones(P + 1, dtype=D)), JacfnValueError, "weights must be"),
    (lambda: J.column_weighted(ones(2, P, dtype=D)), JacfnValueError, "weights must be one.*not a stack"),
    (lambda: J.restrict(rows=1.5), JacfnTypeError, "rows must be an int, a slice, a 1-D LongTensor"),
    (lambda: J.restrict(rows=M), JacfnValueError, r"rows must lie in \[-10, 10\)"),
    (lambda: J.restrict(rows=ones(M, dtype=torch.bool)), JacfnTypeError, "rows must hold integers"),
    (lambda: J.restrict(leaves="0.bias"), JacfnTypeError, "leaves must be names or a function of a name, got '0.bias'"),
    (lambda: J.restrict(leaves=["nope"]), JacfnValueError, "no leaf 'nope'; there are 0.weight, 0.bias"),
    (lambda: J.restrict(leaves=[]), JacfnValueError, "leaves: none is left"),
    (lambda: J.restrict(leaves=lambda _: False), JacfnValueError, "leaves: none is left"),
    (lambda: J.restrict(leaves=["0.bias", "0.bias"]), JacfnValueError, "leaves"),
    (lambda: J.restrict(mask=ones(P)), JacfnTypeError, "mask must be torch.bool.*got torch.float32"),
    (
        lambda: J.restrict(mask=ones(3, dtype=torch.bool)),
        JacfnValueError,
        r"mask must be .*got a tensor of shape \(3,\)",
    ),
    (lambda: J.restrict(mask=ones(2, P, dtype=torch.bool)), JacfnValueError, "mask must be one mask, not a stack"),
    (lambda: J.gram(J.restrict(leaves=["0.bias"])), JacfnValueError, "gram: columns differ"),
    (lambda: J.gram(ones(2)), JacfnTypeError, "gram: the other side must be a JacobianOperator, got Tensor"),
    (lambda: J.gram(J.astype(S)), JacfnTypeError, "gram: torch.float64 on cpu and torch.float32 on cpu"),
    (lambda: J + J.restrict(rows=slice(0, 2)), JacfnValueError, r"J \+ K: rows differ, 10 and 2"),
    (lambda: J + J.restrict(leaves=["0.bias"]), JacfnValueError, r"\+: columns differ"),
    (lambda: J + 1, TypeError, "unsupported operand"),
    (lambda: J - 1, TypeError, "unsupported operand"),
    (lambda: J * "a", JacfnTypeError, r"J \* c: c must be a real number"),
    (
        lambda: J * ones(M),
        JacfnTypeError,
        r"J \* c: c must be a real number, got a tensor of shape \(10,\); weighted\(\) scales rows",
    ),
    (lambda: J * 1j, JacfnTypeError, "c must be a real number, got complex"),
    (lambda: J * torch.tensor(1j), JacfnTypeError, "c must be a real number, got one of torch.complex64"),
    (lambda: J / torch.tensor(1j), JacfnTypeError, "c must be a real number, got one of torch.complex64"),
    (
        lambda: of_two("a", "b").gram(of_two("b", "a")),
        JacfnValueError,
        r"gram: the same leaves in another order, a, b and b, a; restrict\(leaves=...\)",
    ),
    (lambda: of_two("a", "b") + of_two("b", "a"), JacfnValueError, r"\+: the same leaves in another order"),
    (
        lambda: jacobian_operator(lambda p, x: x, {}, ones(2, 3), in_dims=(None, 0)),
        JacfnTypeError,
        "the differentiated arguments hold no tensors",
    ),
    (lambda: J.astype(torch.int32), JacfnTypeError, "floating-point"),
    (lambda: J.materialize(out=ones(M, P + 1, dtype=D)), JacfnValueError, r"out must be .*\(10, 26\), got \(10, 27\)"),
    (lambda: J.materialize(out=[1]), JacfnValueError, "out must be a tensor .*got list"),
    (lambda: J.materialize(out=ones(M, P)), JacfnTypeError, "out must be torch.float64 on cpu, got torch.float32"),
    (lambda: J.materialize(out=ones(1, P, dtype=D).expand(M, P)), JacfnError, "out must be"),
    (lambda: J.materialize(out=ones(M, P, dtype=D, requires_grad=True)), JacfnError, "out must be"),
    (lambda: list(J.blocks(chunk_size=0)), JacfnValueError, "chunk_size must be a positive int or None, got 0"),
    (lambda: list(J.blocks(memory=3)), JacfnValueError, "memory=3 bytes is too small: one row has 208"),
    (lambda: list(J.blocks(chunk_size=2, memory=1000)), JacfnValueError, "chunk_size and memory both"),
    (lambda: J.singular_values(0), JacfnValueError, "k must be a positive int or None, got 0"),
    (lambda: J.singular_values(11), JacfnValueError, r"k must be at most min\(M, P\) = 10, got 11"),
    (lambda: J.restrict(rows=0).tree(), JacfnError, "tree: a restricted operator has no structure"),
    (lambda: made(method="x"), JacfnValueError, "method must be one of auto, rev, fwd, quasilinear, products, got 'x'"),
    (lambda: made(chunk_size=2, memory=10**6), JacfnValueError, "chunk_size=2 and memory=1000000 both"),
    (lambda: made(memory=10), JacfnValueError, "memory=.* is too small: one row at a time needs"),
    (lambda: made(memory="many"), JacfnValueError, "memory must be bytes or a string such as"),
    (
        lambda: jacobian_operator(lambda w, x: w * x, ones(3, 2), ones(3, 2), in_dims=0),
        JacfnValueError,
        "in_dims maps argument 0, which is differentiated",
    ),
    (
        lambda: jacobian_operator(lambda a, b: a * b, ones(2), ones(2, dtype=D), argnums=(0, 1)),
        JacfnTypeError,
        "differentiated arguments must have one dtype and device, got torch.float32 on cpu, torch.float64 on cpu",
    ),
    (
        lambda: jacobian_operator(lambda a: a.float(), ones(2, dtype=D)),
        JacfnTypeError,
        "outputs and differentiated arguments must have one dtype, got torch.float32, torch.float64",
    ),
    (
        lambda: grad(lambda p: jacobian_operator(CASE.fn, p, CASE.x[0], memory="1MiB").gram().sum())(CASE.params),
        JacfnValueError,
        "memory: a budget cannot be planned inside a transform",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
