"""What is changed in place after an operator was made: it refuses to answer, or has a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import CASES, METHODS, QUESTIONS, close, dense, operator, smallest_budget, some
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from jacfn import JacfnError, JacobianOperator, jacobian_operator

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)
REFUSED = pytest.raises(JacfnError, match=r"changed in place .*make the operator again")


def _linear(w: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, w)


def test_changed_samples_that_are_factors() -> None:
    x = some(4, 3)
    J = jacobian_operator(_linear, some(2, 3), x, in_dims=(None, 0))
    changed = {"itself": J, "leaves": J.restrict(leaves=lambda _: True), "sum": J + J, "scaled": 2 * J}
    x.mul_(2)
    for ask, _ in QUESTIONS.values():
        for one in changed.values():
            with REFUSED:
                ask(one)


def test_changed_value_that_is_a_factor() -> None:
    """The hidden layer is an output, too, and its memory the input of the next one."""

    def both(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.linear(x, p["first"]).tanh()
        return hidden, F.linear(hidden, p["last"])

    params = {"first": some(3, 3), "last": some(2, 3)}
    J = jacobian_operator(both, params, some(4, 3), in_dims=(None, 0), method="quasilinear")
    J.value[0].zero_()
    with REFUSED:
        J.row_norms()


@methods
def test_changed_arguments_that_are_needed_again(method: str) -> None:
    case = CASES["mlp"](20)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    for number in range(2):
        J = operator(case, method, memory=smallest)
        v, u = some(J.shape[1]), some(J.shape[0])
        assert not J.source.held
        changed = case.x if number else case.params["0.weight"]
        changed.mul_(1)
        for ask in (lambda J=J, v=v: J @ v, lambda J=J, u=u: J.T @ u, lambda J=J: J.weighted(J.value).gram()):
            with REFUSED:
                ask()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "products"])
def test_changed_arguments_of_which_nothing_is_kept(method: str) -> None:
    """As by a step of an optimiser: rows that are held are those of the point where they were made."""
    case = CASES["mlp"](3)
    A, J = dense(case), operator(case, method)
    case.params["0.weight"].mul_(2)
    J.value.zero_()
    close(J.gram(), A @ A.T)
    case.params["0.weight"].div_(2)


CHANGES: dict[str, Callable[[JacobianOperator, Any], JacobianOperator]] = {
    "weighted": lambda J, w: J.weighted(w["rows"]),
    "by blocks": lambda J, w: J.weighted(w["blocks"]),
    "column_weighted": lambda J, w: J.column_weighted(w["columns"]),
    "mask": lambda J, w: J.restrict(mask=w["mask"]),
    "rows": lambda J, w: J.restrict(rows=w["places"]),
    "scaled": lambda J, w: J * w["factor"],
}


@methods
@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_copied(change: str, method: str) -> None:
    case = CASES["mlp"](5)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    for memory in (None, smallest):
        J = operator(case, method, memory=memory)
        w = {
            "rows": some(10),
            "blocks": some(5, 2, 2),
            "columns": some(26),
            "mask": some(26) > 0,
            "places": torch.tensor([3, 1]),
            "factor": some(),
        }
        changed = CHANGES[change](J, w)
        wanted = changed.materialize()
        for given in w.values():
            given.zero_()
        close(changed.materialize(), wanted)


def test_inside_transforms_nobody_counts() -> None:
    x, W = some(4, 3), some(2, 3)

    def squares(x: Tensor) -> Tensor:
        J = jacobian_operator(_linear, W, x.clone(), in_dims=(None, 0))
        return J.row_norms().square().sum()

    close(grad(squares)(x), 4 * x)
    with torch.inference_mode():
        J = jacobian_operator(_linear, W.clone(), x.clone(), in_dims=(None, 0))
        close(J.row_norms()[::2], x.norm(dim=1))


def test_repr_counts_shared_memory_once() -> None:
    J = operator(CASES["mlp"](20), "quasilinear")
    assert (J + J).source.held == J.source.held
    w = some(J.shape[1])
    assert J.column_weighted(w).source.held == J.source.held + w.nbytes
