"""Every argument error: both types it has, and what its message says (argument, what came, what was wanted)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import jacfn
from jacfn import jac_fwd, jac_rev, make_functional, pullback, pushforward

BOTH = [jac_rev, jac_fwd]


class Wrong(NamedTuple):
    """A call that must be refused, and words its message must have."""

    kind: type[Exception]
    match: str
    call: Callable[[Any], object]  # takes the transform


X = torch.tensor([1.0, 2.0, 3.0])
XS = torch.ones(4, 3)
FLOAT = "floating-point"


def _two(x: Tensor, y: Any) -> Tensor:
    return x * 2


WRONG = {
    # fn and argnums
    "fn": Wrong(TypeError, "fn must be callable, got Tensor", lambda t: t(X)(X)),
    "argnums float": Wrong(
        TypeError, r"argnums must be an int or a non-empty tuple .* got 0\.5", lambda t: t(torch.sin, 0.5)(X)
    ),
    "argnums bool": Wrong(TypeError, "argnums must be an int .* got True", lambda t: t(torch.sin, True)(X)),
    "argnums list": Wrong(TypeError, r"argnums must be an int .* got \[0\]", lambda t: t(torch.sin, [0])(X)),
    "argnums empty": Wrong(TypeError, r"non-empty tuple of ints, got \(\)", lambda t: t(torch.sin, ())(X)),
    "argnums out of range": Wrong(
        ValueError, r"argnums=1 is out of range.* 1 positional", lambda t: t(torch.sin, 1)(X)
    ),
    "argnums too negative": Wrong(ValueError, r"argnums=-2 is out of range", lambda t: t(torch.sin, -2)(X)),
    "argnums in a tuple": Wrong(ValueError, r"argnums=\(0, 3\) is out of range", lambda t: t(_two, (0, 3))(X, X)),
    "argnums twice": Wrong(
        ValueError, r"argnums must name each argument once, got \(0, -2\)", lambda t: t(_two, (0, -2))(X, X)
    ),
    "by keyword": Wrong(
        ValueError, "0 positional .*pass what is to be differentiated by position", lambda t: t(lambda x: x)(x=X)
    ),
    # leaves
    "integer leaf": Wrong(
        TypeError, f"argument 0: only {FLOAT} .* got torch.int64.*float", lambda t: t(torch.sin)(torch.tensor([1]))
    ),
    "bool leaf": Wrong(TypeError, f"argument 0: only {FLOAT} .* got torch.bool", lambda t: t(torch.sin)(X > 2)),
    "complex leaf": Wrong(
        TypeError, r"argument 0: complex inputs \(torch.complex64\).*view_as_real", lambda t: t(torch.sin)(X + 1j)
    ),
    "number": Wrong(TypeError, "argument 0: only tensors .* got float", lambda t: t(lambda x: x)(1.0)),
    "array": Wrong(TypeError, "argument 0: only tensors .* got ndarray", lambda t: t(lambda x: x)(np.ones(2))),
    "leaf in a tree": Wrong(
        TypeError, r"argument 1\['a'\]\[1\]: only tensors .* got int", lambda t: t(_two, 1)(X, {"a": [X, 3]})
    ),
    "one of two arguments": Wrong(
        TypeError, "argument 1: .* got torch.int64", lambda t: t(_two, (0, 1))(X, torch.tensor(1))
    ),
    # outputs
    "no output": Wrong(TypeError, "fn returned no tensor", lambda t: t(lambda x: None)(X)),
    "empty output": Wrong(TypeError, "fn returned no tensor", lambda t: t(lambda x: {})(X)),
    "number as output": Wrong(
        TypeError, "fn's output must be a tensor, got float.*has_aux", lambda t: t(lambda x: 1.0)(X)
    ),
    "output leaf": Wrong(
        TypeError, r"fn's output\['n'\] must be a tensor, got int", lambda t: t(lambda x: {"y": x, "n": 3})(X)
    ),
    "integer output": Wrong(
        TypeError,
        rf"fn's output\[1\] must be {FLOAT}, got torch.int64.*has_aux",
        lambda t: t(lambda x: (x, x.argmax()))(X),
    ),
    "complex output": Wrong(
        TypeError,
        r"fn's output is complex \(torch.complex64\).*view_as_real",
        lambda t: t(lambda x: torch.complex(x, x))(X),
    ),
    "aux missing": Wrong(
        TypeError,
        r"has_aux=True: fn must return a tuple \(output, aux\), got Tensor",
        lambda t: t(torch.sin, has_aux=True)(X),
    ),
    "aux of three": Wrong(TypeError, "got tuple of length 3", lambda t: t(lambda x: (x, 1, 2), has_aux=True)(X)),
    "aux in a list": Wrong(TypeError, "got list", lambda t: t(lambda x: [x, 1], has_aux=True)(X)),
    # in_dims
    "in_dims text": Wrong(
        ValueError, "in_dims must be None, an int, or a tuple .* got 'x'", lambda t: t(torch.sin, in_dims="x")(X)
    ),
    "in_dims length": Wrong(
        ValueError, r"one entry for each of the 2 positional .* got \(0,\)", lambda t: t(_two, in_dims=(0,))(X, X)
    ),
    "in_dims entry": Wrong(
        TypeError, r"in_dims must hold ints or None, got 0\.5 for argument 1", lambda t: t(_two, in_dims=(0, 0.5))(X, X)
    ),
    "in_dims bool": Wrong(
        TypeError, "in_dims must hold ints or None, got True", lambda t: t(torch.sin, in_dims=(True,))(X)
    ),
    "in_dims on a number": Wrong(
        TypeError, "axis 0 of argument 1, but that holds a int, .* give None", lambda t: t(_two, in_dims=(0, 0))(XS, 3)
    ),
    "in_dims axis": Wrong(
        ValueError, r"axis 2 of argument 0, which has the shape \(4, 3\)", lambda t: t(torch.sin, in_dims=2)(XS)
    ),
    "in_dims negative axis": Wrong(ValueError, "axis -3 of argument 0", lambda t: t(torch.sin, in_dims=-3)(XS)),
    "in_dims scalar": Wrong(
        ValueError, r"axis 0 of argument 0, which has the shape \(\)", lambda t: t(torch.sin, in_dims=0)(X[0])
    ),
    "in_dims sizes": Wrong(
        ValueError, "same number of samples, got 4 in argument 0, 3 in argument 1", lambda t: t(_two, in_dims=0)(XS, X)
    ),
    "in_dims sizes in one argument": Wrong(
        ValueError, "same number of samples, got .*4.*3", lambda t: t(lambda p: p["a"], in_dims=0)({"a": XS, "b": X})
    ),
    "in_dims nothing": Wrong(
        ValueError, r"in_dims=\(None, None\) maps no argument", lambda t: t(_two, in_dims=(None, None))(X, X)
    ),
    "in_dims prefix": Wrong(
        ValueError,
        "in_dims must be a prefix of the structure of the arguments",
        lambda t: t(lambda p: p["a"], in_dims=({"b": 0},))({"a": XS}),
    ),
    # chunks, memory, randomness
    "chunk_size zero": Wrong(
        ValueError, "chunk_size must be a positive int or None, got 0", lambda t: t(torch.sin, chunk_size=0)
    ),
    "chunk_size negative": Wrong(ValueError, "chunk_size .* got -1", lambda t: t(torch.sin, chunk_size=-1)),
    "chunk_size float": Wrong(ValueError, r"chunk_size .* got 2\.0", lambda t: t(torch.sin, chunk_size=2.0)),
    "chunk_size bool": Wrong(ValueError, "chunk_size .* got True", lambda t: t(torch.sin, chunk_size=True)),
    "memory text": Wrong(
        ValueError,
        "memory must be bytes or a string such as '512MiB' .* got 'much'",
        lambda t: t(torch.sin, memory="much"),
    ),
    "memory unit": Wrong(ValueError, "memory .* got '3 mibs'", lambda t: t(torch.sin, memory="3 mibs")),
    "memory sign": Wrong(ValueError, "memory .* got '-3MiB'", lambda t: t(torch.sin, memory="-3MiB")),
    "memory zero": Wrong(ValueError, "memory must be positive, got 0", lambda t: t(torch.sin, memory=0)),
    "memory float": Wrong(TypeError, "memory must be bytes .* got float", lambda t: t(torch.sin, memory=1e6)),
    "memory bool": Wrong(TypeError, "memory must be bytes .* got bool", lambda t: t(torch.sin, memory=True)),
    "memory and chunk_size": Wrong(
        ValueError,
        "chunk_size=3 and memory='1MiB' both set the chunks: give one",
        lambda t: t(torch.sin, memory="1MiB", chunk_size=3),
    ),
    "randomness": Wrong(
        ValueError,
        "randomness must be 'error', 'same' or 'different', got 'often'",
        lambda t: t(torch.sin, randomness="often"),
    ),
}


def _check(case: Wrong, transform: Any = None) -> None:
    with pytest.raises(jacfn.JacfnError, match=case.match) as caught:
        case.call(transform)
    assert isinstance(caught.value, case.kind)
    assert isinstance(caught.value, RuntimeError)  # what torch.func raises


@pytest.mark.parametrize("transform", BOTH)
@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_transforms(transform: Any, case: Wrong) -> None:
    _check(case, transform)


SELECTIONS = {
    "text": Wrong(
        TypeError, "{} must be an int, a slice, a 1-D LongTensor, or a pytree .* got str", lambda s: s("all")
    ),
    "bool": Wrong(TypeError, "{} must be .* got bool", lambda s: s(True)),
    "float": Wrong(TypeError, "{} must be .* got float", lambda s: s(1.0)),
    "mask": Wrong(TypeError, r"{} must hold integers, got torch.bool; pass mask.nonzero\(\)", lambda s: s(X > 2)),
    "float tensor": Wrong(TypeError, "{} must hold integers, got torch.float32", lambda s: s(X)),
    "matrix": Wrong(ValueError, r"{} must be .* got a tensor of shape \(2, 1\)", lambda s: s(torch.tensor([[0], [1]]))),
    "too large": Wrong(
        ValueError,
        r"{} must lie in \[-3, 3\), since that side has 3 .* got values from 0 to 3",
        lambda s: s(torch.tensor([0, 3])),
    ),
    "int too large": Wrong(ValueError, r"{} must lie in \[-3, 3\)", lambda s: s(3)),
    "too negative": Wrong(ValueError, r"{} must lie in .* from -4 to -4", lambda s: s(-4)),
    "structure": Wrong(ValueError, "{} must have the structure", lambda s: s({"a": 0})),
}


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize("case", SELECTIONS.values(), ids=SELECTIONS)
def test_selections(side: str, case: Wrong) -> None:
    transform = jac_rev if side == "rows" else jac_fwd
    tree = case.match.endswith("structure")
    fn: Any = (lambda p: {"b": p["b"].sin()}) if tree else torch.sin
    call = Wrong(
        case.kind,
        case.match.format(side),
        lambda _: case.call(lambda wanted: transform(fn, **{side: wanted})({"b": X} if tree else X)),
    )
    _check(call)


def test_selection_of_a_leaf_names_the_leaf() -> None:
    wanted = {"b": slice(0, 1), "a": 7}
    with pytest.raises(jacfn.JacfnValueError, match=r"columns\['a'\] must lie in \[-3, 3\)"):
        jac_fwd(lambda p: p["a"] * p["b"], columns=wanted)({"b": X, "a": X})
    with pytest.raises(jacfn.JacfnValueError, match=r"rows\['a'\] must lie in \[-3, 3\)"):
        jac_rev(lambda x: {"b": x, "a": x}, rows=wanted)(X)


def test_selection_out_of_nothing() -> None:
    with pytest.raises(jacfn.JacfnValueError, match="rows must lie in .* has 0 element"):
        jac_rev(lambda x: x[:0], rows=0)(X)


PRODUCTS = {
    "primals a tensor": Wrong(
        TypeError, r"primals must be a non-empty tuple .* got Tensor: \w+\(fn, \(x,\)", lambda p: p(torch.sin, X, (XS,))
    ),
    "primals a list": Wrong(
        TypeError, "primals must be a non-empty tuple .* got list", lambda p: p(torch.sin, [X], (XS,))
    ),
    "primals empty": Wrong(TypeError, "primals must be a non-empty tuple", lambda p: p(torch.sin, (), ())),
    "integer primal": Wrong(
        TypeError, "argument 0: only floating-point", lambda p: p(torch.sin, (torch.tensor([1]),), (XS,))
    ),
    "chunk_size": Wrong(ValueError, "chunk_size .* got 0", lambda p: p(torch.sin, (X,), (XS,), chunk_size=0)),
    "randomness": Wrong(ValueError, "randomness must be", lambda p: p(torch.sin, (X,), (XS,), randomness="x")),
    "fn": Wrong(TypeError, "fn must be callable", lambda p: p(X, (X,), (XS,))),
}


@pytest.mark.parametrize("product", [pushforward, pullback])
@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_products(product: Any, case: Wrong) -> None:
    _check(case, product)


STACKS = {
    "shape": Wrong(ValueError, r"{}.* must be a stack of shape \(S, 3\), got \(4, 2\)", lambda s: s(torch.ones(4, 2))),
    "no stack": Wrong(ValueError, r"{}.* must be a stack of shape \(S, 3\), got \(3,\)", lambda s: s(X)),
    "scalar": Wrong(ValueError, r"{}.* must be a stack .* got \(\)", lambda s: s(X[0])),
    "number": Wrong(ValueError, "{}.* must be a stack .* got float", lambda s: s(1.0)),
    "dtype": Wrong(TypeError, "{}.* must have dtype torch.float32, got torch.float64", lambda s: s(XS.double())),
    "structure": Wrong(ValueError, "{} must have the structure", lambda s: s({"a": XS})),
}


@pytest.mark.parametrize("case", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", ["tangents", "cotangents"])
def test_stacks(name: str, case: Wrong) -> None:
    def product(stack: Any) -> Any:
        if name == "tangents":
            return pushforward(
                lambda p: p["b"].sin(), ({"b": X},), (stack if isinstance(stack, dict) else {"b": stack},)
            )
        return pullback(lambda x: {"b": x.sin()}, (X,), stack if isinstance(stack, dict) else {"b": stack})

    _check(Wrong(case.kind, case.match.format(name), lambda _: case.call(product)))


def test_stacks_of_different_lengths() -> None:
    with pytest.raises(jacfn.JacfnValueError, match=r"tangents: all stacks .* same length, got \[1, 2\]"):
        pushforward(torch.mul, (X, X), (torch.ones(1, 3), torch.ones(2, 3)))
    with pytest.raises(jacfn.JacfnValueError, match=r"cotangents: all stacks .* same length, got \[1, 2\]"):
        pullback(lambda x: (x, x), (X,), (torch.ones(1, 3), torch.ones(2, 3)))


def test_tangents_for_each_primal() -> None:
    with pytest.raises(jacfn.JacfnValueError, match="tangents must have the structure"):
        pushforward(torch.mul, (X, X), (XS,))


@pytest.mark.parametrize("transform", BOTH)
def test_errors_of_fn_pass_through(transform: Any) -> None:
    """What fn raises is the caller's own."""

    def fn(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        transform(fn)(X)
    with pytest.raises(RuntimeError, match="shape|size"):
        transform(lambda x: x @ torch.ones(2, 2))(X)


@pytest.mark.parametrize("transform", BOTH)
def test_options_are_checked_before_fn_is_known_to_work(transform: Any) -> None:
    """A wrong option is an error where the transform is made, not where its result is called."""
    with pytest.raises(jacfn.JacfnValueError):
        transform(torch.sin, chunk_size=0)


def test_error_types() -> None:
    for kind, base in ((jacfn.JacfnTypeError, TypeError), (jacfn.JacfnValueError, ValueError)):
        assert issubclass(kind, (base, jacfn.JacfnError))
        assert issubclass(kind, base)
        assert issubclass(kind, RuntimeError)


def test_make_functional_refuses_functions() -> None:
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got function"):
        make_functional(lambda x: x)  # type: ignore[arg-type]
