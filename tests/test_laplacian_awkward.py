"""Functions that jets are likely to misread: right, or refused with a JacfnError, never silently wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jets import differences
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_upper_left
from torch.utils._python_dispatch import TorchDispatchMode

from jacfn import JacfnError, hessian_diag, laplacian

SQUARE = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def point() -> Tensor:
    return torch.tensor([0.6, 1.4, 0.9, 1.7], dtype=torch.float64)


def ones() -> Tensor:
    return torch.ones(4, dtype=torch.float64)


def check(fn: Callable[..., Any], reference: Callable[..., Tensor] | None = None) -> None:
    """Value, Jacobian, Laplacian and diagonal against differences of ``reference``, or a refusal."""
    reference, x = reference or fn, point()
    along = torch.eye(4, dtype=torch.float64)
    slopes, bends = (torch.stack(d, -1) for d in zip(*(differences(reference, (x,), (v,)) for v in along), strict=True))
    wanted = reference(x.clone()), slopes, bends.sum(-1), bends
    try:
        total, (value, jacobian) = laplacian(fn, return_value=True)(x.clone())
        diagonal = hessian_diag(fn)(x.clone())
    except JacfnError:
        return
    for got, expected in zip((value, jacobian, total, diagonal), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


# --- constants that change while first derivatives wait ----------------------------------------------

PASSED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": torch.clone,
    "contiguous": lambda y: y.contiguous(),
    "to": lambda y: y.to(torch.float64),
    "power of one": lambda y: y**1,
    "view": lambda y: y.view(4),
    "sum to its size": lambda y: y.sum_to_size(4),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_constant_changes_after_its_product_was_passed_on(name: str) -> None:
    def fn(x: Tensor) -> Tensor:
        factor = ones()
        y = PASSED_ON[name](torch.sin(x) * factor)
        factor.mul_(3)
        return y * y

    check(fn)


def test_buffer_of_a_loop() -> None:
    def fn(x: Tensor) -> Tensor:
        buffer, total = torch.zeros(4, dtype=x.dtype), torch.zeros(4, dtype=x.dtype)
        for i in range(3):
            buffer[i] = 1.0
            total = total + (x * buffer).contiguous()
        return total**2

    check(fn)


# --- memory shared with what has no derivatives ------------------------------------------------------


def test_detached_tensor_sees_changes() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x**2
        before = y.detach()
        y.mul_(3)
        return before * x

    reached = laplacian(fn, return_value=True)(point())[1][0]
    torch.testing.assert_close(reached, 3 * point() ** 3)


def test_detached_tensor_is_changed() -> None:
    def fn(x: Tensor) -> Tensor:
        y = torch.sin(x)
        y.detach().mul_(2)
        return y + x

    # The value doubles; derivatives know nothing of that.
    try:
        total, (value, jacobian) = laplacian(fn, return_value=True)(point())
    except JacfnError:
        return
    x = point()
    torch.testing.assert_close(value, 2 * torch.sin(x) + x)
    torch.testing.assert_close(jacobian.diagonal(), torch.cos(x) + 1)
    torch.testing.assert_close(total, -torch.sin(x))


@pytest.mark.parametrize("offset", [0, 1, None])
def test_strided_views(offset: int | None) -> None:
    try:
        check(lambda x: torch.as_strided(x[1:], (3,), (1,), offset) ** 2)
    except RuntimeError as error:
        assert "can access memory outside" in str(error)  # noqa: PT017  (which PyTorch refuses under transforms)


def test_numpy_is_no_constant() -> None:
    with pytest.raises(RuntimeError):
        laplacian(lambda x: torch.from_numpy(x.numpy() * 2) * x)(point())


# --- tensors and modes with a mind of their own ------------------------------------------------------


class Shifting(Tensor):
    """Products with it are sums."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.mul, Tensor.mul, Tensor.__mul__):
            func = torch.add
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(x.as_subclass(Tensor) if isinstance(x, Shifting) else x for x in args), **(kwargs or {}))


def test_tensor_subclass() -> None:
    shift = ones().as_subclass(Shifting)
    check(lambda x: torch.sin(x) * shift, lambda x: torch.sin(x) + 1)


def test_causal_bias() -> None:
    q = SQUARE[None, None]
    check(lambda x: F.scaled_dot_product_attention(q * x, q, q * x, attn_mask=causal_upper_left(4, 4))[0, 0])


class Renamed(TorchDispatchMode):
    """Sines are cosines."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.ops.aten.cos.default if func is torch.ops.aten.sin.default else func
        return func(*args, **(kwargs or {}))


def test_dispatch_mode_leaves_no_trace() -> None:
    def inside(x: Tensor) -> Tensor:
        with Renamed():
            return torch.sin(x[:3]) * 5

    laplacian(inside)(point())
    check(lambda x: torch.sin(x[:3]) * 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script() -> None:
    check(torch.jit.trace(lambda x: torch.sin(x) * x, point()))


# --- draws, chunks, threads, depth -------------------------------------------------------------------


@pytest.mark.parametrize("in_dims", [None, 0])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"chunk_size": 3}, {"memory": "4KiB"}], ids=str)
def test_one_draw_for_all_directions(in_dims: int | None, options: dict[str, Any]) -> None:
    x = torch.rand(5, 4, dtype=torch.float64) + 1 if in_dims == 0 else point()
    for randomness in ("same", "different"):
        total, (value, jacobian) = laplacian(
            lambda x: F.dropout(x**3, 0.5, training=True),
            in_dims=in_dims,
            randomness=randomness,
            return_value=True,
            **options,
        )(x)
        kept = value / x**3
        torch.testing.assert_close(jacobian.diagonal(dim1=-2, dim2=-1), 3 * x**2 * kept)
        torch.testing.assert_close(total, 6 * x * kept)


def test_unannounced_draws_with_several_chunks() -> None:
    x = point()
    try:
        total, (value, _) = laplacian(lambda x: F.dropout(x**3, 0.5, training=True), chunk_size=2, return_value=True)(x)
    except (JacfnError, RuntimeError):
        return
    torch.testing.assert_close(total, 6 * value / x**2)


def test_threads() -> None:
    results: dict[int, Any] = {}

    def run(i: int) -> None:
        width = i % 2 + 2  # programs that nobody has traced yet

        def fn(x: Tensor) -> Tensor:
            return torch.logsumexp(x.expand(width, 3, 4) * SQUARE[:3], (0, 1)) * F.gelu(x).prod()

        try:
            results[i] = laplacian(fn)(point())
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in results.items():
        assert isinstance(result, Tensor), result
        torch.testing.assert_close(result, results[i % 2], msg=f"thread {i}")


ADDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "behind": lambda total, x: x * x + total,
    "in front": lambda total, x: total + x * x,
    "stacked": lambda total, x: torch.stack([x * x, total]).sum(0),
    "chosen": lambda total, x: torch.where(x > 1, x * x, total),
}


@pytest.mark.parametrize("name", ADDED)
def test_long_chains(name: str) -> None:
    def fn(x: Tensor) -> Tensor:
        total = 0 * x
        for _ in range(600):
            total = ADDED[name](total, x)
        return total

    total, (_, jacobian) = laplacian(fn, return_value=True)(point())
    x = point()
    count = torch.where(x > 1, 1.0, 0.0).double() if name == "chosen" else torch.full((4,), 600.0, dtype=x.dtype)
    torch.testing.assert_close(total, 2 * count)
    torch.testing.assert_close(jacobian.diagonal(), 2 * count * x)


# --- numbers and dtypes ------------------------------------------------------------------------------


def test_complex_base() -> None:
    check(lambda x: ((2.0 + 1j) ** x).imag)


def test_jacobian_keeps_the_dtype() -> None:
    _, (value, jacobian) = laplacian(lambda x: x / x[0].double(), return_value=True)(point().float())
    assert value.dtype == jacobian.dtype == torch.float32


@pytest.mark.parametrize("fn", [lambda x: (x**2).sum(), lambda x: torch.sin(x).sum()], ids=["power", "sine"])
def test_no_samples(fn: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(0, 4, dtype=torch.float64)
    assert laplacian(fn, in_dims=0)(x).shape == (0,)
    assert hessian_diag(fn, in_dims=0)(x).shape == (0, 4)
