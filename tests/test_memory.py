"""Budgets: what they parse to, what is predicted, what is then allocated, what they refuse."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, cnn, leaves_of, mlp
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import jacfn
from jacfn import _memory, jac_fwd, jac_quasilinear, jac_rev, make_functional, pullback, pushforward
from jacfn._memory import Chunks, PeakBytes, parse_budget

TRANSFORMS = pytest.mark.parametrize("transform", [jac_rev, jac_fwd])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, in chunks of other sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        (1000, 1000),
        ("1000", 1000),
        ("512MiB", 512 << 20),
        ("2 GB", 2 * 10**9),
        ("1.5KiB", 1536),
        (" 3kb ", 3000),
        ("1GiB", 1 << 30),
        ("7 b", 7),
        ("0.5TiB", 1 << 39),
    ],
)
def test_budget(text: Any, size: int | None) -> None:
    assert parse_budget(text) == size


# --- networks and what they take ------------------------------------------------------------------

NETS: dict[str, Callable[[], tuple[Any, dict[str, Tensor], Tensor]]] = {
    "mlp": lambda: (*make_functional(mlp(64, 128, 32, 5)), torch.randn(6, 64)),
    "cnn": lambda: (*make_functional(cnn(12, 5)), torch.randn(6, 1, 8, 8)),
    "deep": lambda: (*make_functional(mlp(32, *[32] * 10, 2)), torch.randn(6, 32)),
}


def _chosen(caplog: pytest.LogCaptureFixture, *, with_budget: bool = True) -> Chunks:
    """The chunks that the latest evaluation (with a budget) logged."""
    logged = [record.jacfn_chunks for record in caplog.records if hasattr(record, "jacfn_chunks")]
    chunks: Chunks = [chunks for chunks in logged if chunks.budget is not None or not with_budget][-1]
    return chunks


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in leaves_of(tree))


def _smallest(call: Callable[..., Any], *args: Any) -> int:
    """The budget that the error for a hopeless one asks for."""
    with pytest.raises(jacfn.JacfnValueError, match=r"memory=.* is too small: one \w+ at a time needs") as caught:
        call(memory=1)(*args)
    needed = re.search(r"needs ([\d.e+-]+) MiB", str(caught.value))
    assert needed is not None
    return int(float(needed[1]) * 2**20) + 2**7  # four digits of it are printed


def _options(name: str, with_samples: bool = True) -> Callable[..., Any]:
    """A transform and its options: of columns a few, since one evaluation each takes its time."""
    in_dims = (None, 0) if with_samples else None
    if name == "jac_rev":
        return partial(jac_rev, in_dims=in_dims)
    return partial(jac_fwd, in_dims=in_dims, columns=slice(30, 38))


@pytest.mark.parametrize(
    ("name", "net", "with_samples", "factor"),
    [
        ("jac_rev", "mlp", True, 1.5),
        ("jac_rev", "cnn", True, 4),
        ("jac_rev", "deep", True, 2.5),
        ("jac_rev", "cnn", False, 1.5),
        ("jac_rev", "mlp", False, 4),
        ("jac_fwd", "mlp", True, 1.5),
        ("jac_fwd", "cnn", True, 4),
        ("jac_fwd", "deep", True, 2.5),
        ("jac_fwd", "cnn", False, 1.5),
        ("jac_fwd", "mlp", False, 4),
    ],
)
def test_prediction_holds(
    name: str, net: str, with_samples: bool, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The predicted peak is that of what is dispatched on real tensors, and 0.8 of the budget is not exceeded."""
    fn, params, x = NETS[net]()
    if not with_samples:
        single, fn = fn, lambda params, x: torch.func.vmap(single, (None, 0))(params, x)
        x = x[:4]
    transform = _options(name, with_samples)
    budget = int(factor * _smallest(lambda **options: transform(fn, **options), params, x))
    limited = transform(fn, memory=budget)
    with caplog.at_level(logging.DEBUG, "jacfn"):
        assert_same(limited(params, x), transform(fn)(params, x), **CLOSE)  # and plans
    chunks = _chosen(caplog, with_budget=True)
    assert chunks.predicted is not None
    assert chunks.predicted <= 0.8 * budget
    with PeakBytes() as counter:
        result = limited(params, x)
    beyond = counter.peak_beyond(leaves_of(result))
    assert beyond <= 1.03 * chunks.predicted
    assert beyond >= 0.8 * chunks.predicted  # a plan on fake tensors allocates a little more


@pytest.mark.parametrize("net", ["mlp", "cnn"])
@pytest.mark.parametrize("name", ["jac_rev", "jac_fwd"])
def test_budget_is_used(name: str, net: str, caplog: pytest.LogCaptureFixture) -> None:
    """A larger budget means larger chunks, and without limit everything is done at once."""
    fn, params, x = NETS[net]()
    transform = _options(name)
    smallest = _smallest(lambda **options: transform(fn, **options), params, x)
    sizes = []
    for budget in (smallest, 5 * smallest, 1 << 40):
        with caplog.at_level(logging.DEBUG, "jacfn"):
            transform(fn, memory=budget)(params, x)
        chunks = _chosen(caplog)
        sizes.append((chunks.samples or 1) * chunks.rows)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert chunks.samples == len(x)


@given(
    fixed=st.integers(0, 500),
    slope=st.integers(1, 50),
    most=st.integers(1, 400),
    usable=st.integers(100, 5000),
)
def test_search_finds_a_size_close_to_the_largest(fixed: int, slope: int, most: int, usable: int) -> None:
    sizes = [size for size in range(1, most + 1) if fixed + slope * size <= usable]
    assume(sizes)
    calls = []

    def peak(size: int) -> int:
        calls.append(size)
        return fixed + slope * size

    found = _memory._largest(peak, most, usable)
    assert peak(found) <= usable
    assert found == sizes[-1] or peak(found) >= 0.9 * usable
    assert len(calls) < 20


@pytest.mark.parametrize("name", ["jac_rev", "jac_fwd"])
def test_row_that_just_fits(name: str) -> None:
    """The error says how much one row needs; that much is enough, and a little less is not."""
    fn, params, x = NETS["mlp"]()
    call = partial(_options(name), fn)
    smallest = _smallest(call, params, x)
    call(memory=smallest)(params, x)
    with pytest.raises(jacfn.JacfnValueError, match=r"too small.*predicted .* 80%"):
        call(memory=int(0.98 * smallest))(params, x)


def test_error_names_what_is_chunked() -> None:
    fn, params, x = NETS["mlp"]()
    with pytest.raises(jacfn.JacfnValueError, match="one row at a time"):
        jac_rev(fn, in_dims=(None, 0), memory=1)(params, x)
    with pytest.raises(jacfn.JacfnValueError, match="one column at a time"):
        jac_fwd(fn, in_dims=(None, 0), memory=1)(params, x)


# --- everything together with a budget ------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, -1, slice(0, 3), torch.tensor([4, 0]), range(2)])
def test_budget_with_a_selection(wanted: Any) -> None:
    fn, params, x = NETS["mlp"]()
    rev = jac_rev(fn, in_dims=(None, 0), rows=wanted)(params, x)
    fwd = jac_fwd(fn, in_dims=(None, 0), columns=wanted)(params, x)
    assert_same(jac_rev(fn, in_dims=(None, 0), rows=wanted, memory="1MiB")(params, x), rev, **CLOSE)
    assert_same(jac_fwd(fn, in_dims=(None, 0), columns=wanted, memory="1MiB")(params, x), fwd, **CLOSE)


def test_budget_with_a_selection_of_each_leaf() -> None:
    fn, params, x = NETS["mlp"]()
    columns = {name: slice(0, 2) for name in params} | {"0.bias": torch.tensor([3, 1])}
    expected = jac_fwd(fn, in_dims=(None, 0), columns=columns)(params, x)
    assert_same(jac_fwd(fn, in_dims=(None, 0), columns=columns, memory="1MiB")(params, x), expected, **CLOSE)


@TRANSFORMS
def test_budget_with_value_and_aux(transform: Any) -> None:
    def fn(w: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return torch.tanh(w @ x), {"x": x + 1, "n": 3}

    w, x = torch.randn(4, 3), torch.randn(10, 3)
    options = {"in_dims": (None, 0), "has_aux": True, "return_value": True}
    assert_same(transform(fn, **options, memory="3KiB")(w, x), transform(fn, **options)(w, x), **CLOSE)


@pytest.mark.parametrize("transform", [jac_rev, jac_fwd, jac_quasilinear])
def test_budget_with_views_that_have_gaps(transform: Any) -> None:
    """As columns of one tensor are."""
    a, b = torch.rand(50, 2, dtype=torch.float64).unbind(1)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    in_dims = ([0, 0], None)
    fn = lambda p, t: p[0] * torch.exp(-p[1] * t)  # noqa: E731
    wanted = torch.func.vmap(torch.func.jacrev(fn), in_dims)([a, b], t)
    got = transform(fn, in_dims=in_dims, memory="100KiB")([a, b], t)
    torch.testing.assert_close(got, wanted)


@TRANSFORMS
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_budget_without_work(transform: Any, shape: tuple[int, int]) -> None:
    x = torch.ones(shape)
    jac = transform(torch.sin, in_dims=0, memory="1MiB")(x)
    assert jac.shape == (*shape, shape[1])


@TRANSFORMS
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_budget_with_random_functions(transform: Any, randomness: str) -> None:
    """The plan draws no random numbers."""

    def fn(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    x = torch.ones(6, 40)
    state = torch.get_rng_state()
    limited = transform(fn, in_dims=0, randomness=randomness, memory="200KiB")
    first = limited(x)
    torch.set_rng_state(state)
    torch.testing.assert_close(limited(x), first)
    assert not torch.equal(torch.get_rng_state(), state)


@TRANSFORMS
def test_devices(transform: Any, device: str) -> None:
    """Plans, and draws that are repeated for every chunk."""
    x = torch.ones(6, 40, device=device)
    call = transform(lambda x: F.dropout(x, 0.5), in_dims=0, randomness="same", memory="40KiB", return_value=True)
    jac, value = call(x)
    assert jac.device == x.device
    assert (value == value[0]).all()
    torch.testing.assert_close(jac, torch.diag_embed(value))


def test_budget_of_products() -> None:
    fn, params, x = NETS["cnn"]()
    batch = lambda params: torch.func.vmap(fn, (None, 0))(params, x)  # noqa: E731
    V = {name: torch.randn(12, *value.shape) for name, value in params.items()}
    U = torch.randn(12, 6, 5)
    for product, vectors in ((pushforward, (V,)), (pullback, U)):
        expected = product(batch, (params,), vectors)
        assert_same(product(batch, (params,), vectors, memory="4MiB"), expected, **CLOSE)
        with pytest.raises(jacfn.JacfnValueError, match=r"memory=.* is too small"):
            product(batch, (params,), vectors, memory=1)


@TRANSFORMS
@pytest.mark.parametrize(
    "outer",
    [torch.func.vmap, torch.func.jacrev, torch.func.jacfwd],
    ids=["vmap", "jacrev", "jacfwd"],
)
def test_no_budget_inside_a_transform(transform: Any, outer: Any) -> None:
    with pytest.raises(jacfn.JacfnValueError, match="memory: .* inside a transform .* pass chunk_size"):
        outer(transform(torch.sin, memory="1MiB"))(torch.ones(2, 3))


@TRANSFORMS
def test_budget_for_a_function_that_needs_data(transform: Any) -> None:
    def fn(x: Tensor) -> Tensor:
        return x * (2 if x.sum().item() > 0 else 3)

    call = transform(lambda x: fn(x.detach()) * x, memory="1MiB")
    with pytest.raises(jacfn.JacfnError, match="memory: fn cannot be evaluated on fake tensors.*chunk_size"):
        call(torch.ones(3))


@TRANSFORMS
def test_errors_of_jacfn_pass_through_the_plan(transform: Any) -> None:
    with pytest.raises(jacfn.JacfnTypeError, match="fn's output must be floating-point"):
        transform(lambda x: x > 1, memory="1MiB")(torch.ones(3))


@TRANSFORMS
def test_tracked_results_with_a_budget(transform: Any) -> None:
    """Parameters that require grad: the plan is made without, the result is tracked."""
    w = torch.randn(4, 3, requires_grad=True)
    x = torch.randn(6, 3)

    def fn(w: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(w @ x)

    transform(fn, 1, in_dims=(None, 0), memory="20KiB")(w, x).pow(2).sum().backward()
    expected = torch.func.grad(lambda w: jac_rev(fn, 1, in_dims=(None, 0))(w, x).pow(2).sum())(w.detach())
    torch.testing.assert_close(w.grad, expected)


# --- plans are kept -------------------------------------------------------------------------------


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for each prediction that is made."""
    made: list[int] = []
    predict = _memory.predict

    def counting(run: Any) -> int:
        made.append(1)
        return predict(run)

    monkeypatch.setattr("jacfn._evaluate.predict", counting)
    return made


@pytest.mark.parametrize("name", ["jac_rev", "jac_fwd"])
def test_plan_is_kept(name: str, predictions: list[int]) -> None:
    fn, params, x = NETS["mlp"]()
    call = lambda budget: _options(name)(fn, memory=budget)  # noqa: E731
    call("1MiB")(params, x)
    first = len(predictions)
    assert first > 0
    call("1MiB")(params, x + 1)
    assert len(predictions) == first, "another point of the same shapes"
    call("2MiB")(params, x)
    second = len(predictions)
    assert second > first, "another budget"
    call("2MiB")(params, x[:3])
    assert len(predictions) > second, "another number of samples"


def test_plans_of_different_functions_are_apart(predictions: list[int]) -> None:
    """Also where both are built in, and know nothing of each other but their module."""
    x = torch.ones(5)
    for fn in (torch.sin, torch.exp):
        before = len(predictions)
        jac_rev(fn, memory="1MiB")(x)
        assert len(predictions) > before


def test_plans_of_bound_methods_are_kept(predictions: list[int]) -> None:
    class Model:
        def one(self, x: Tensor) -> Tensor:
            return x.sin()

        def two(self, x: Tensor) -> Tensor:
            return x.cos()

    model, x = Model(), torch.ones(5)
    jac_rev(model.one, memory="1MiB")(x)
    made = len(predictions)
    jac_rev(model.one, memory="1MiB")(x)
    assert len(predictions) == made
    jac_rev(model.two, memory="1MiB")(x)
    assert len(predictions) > made


def test_few_predictions_suffice(predictions: list[int]) -> None:
    fn, params, x = NETS["cnn"]()
    jac_rev(fn, in_dims=(None, 0), memory="2MiB")(params, x)
    assert len(predictions) <= 10
    assert len(predictions) >= 2


# --- what is allocated without a budget -----------------------------------------------------------


def test_rows_are_written_in_place() -> None:
    """Beyond the result a few chunks: no second copy of it, no identity of all rows."""
    x = torch.randn(100, 100)
    with PeakBytes() as counter:
        jac = jac_rev(lambda x: (x**2).sum(1), chunk_size=4)(x)
    assert jac.shape == (100, 100, 100)
    assert counter.peak < 1.25 * jac.nbytes


def test_columns_are_written_in_place() -> None:
    x, scale = torch.randn(100), torch.randn(100)
    with PeakBytes() as counter:
        jac = jac_fwd(lambda x: torch.outer(x, scale).sin(), chunk_size=4)(x)
    assert jac.shape == (100, 100, 100)
    assert counter.peak < 1.35 * jac.nbytes


def test_samples_are_written_in_place() -> None:
    fn, params, _ = NETS["cnn"]()
    x = torch.randn(20, 1, 8, 8)
    for transform, chunk_size in ((jac_rev, 3), (partial(jac_fwd, columns=slice(0, 16)), 2)):
        with PeakBytes() as counter:
            jac = transform(fn, in_dims=(None, 0), chunk_size=chunk_size)(params, x)
        with PeakBytes() as whole:
            transform(fn, in_dims=(None, 0))(params, x)
        assert counter.peak - _bytes(jac) < 0.3 * (whole.peak - _bytes(jac))


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_blocks_do_not_pile_up(chunk_size: int) -> None:
    """What belonged to one block of samples, its graph above all, is gone when the next one is evaluated."""

    def fn(w: Tensor, x: Tensor) -> Tensor:
        for _ in range(10):
            x = (w * x).sin()
        return x.sum()

    peaks = []
    for samples in (chunk_size, 6):
        w, x = torch.ones(()), torch.randn(samples, 1000)
        with PeakBytes() as counter:
            jac = jac_rev(fn, in_dims=(None, 0), chunk_size=chunk_size)(w, x)
        peaks.append(counter.peak_beyond([jac]))
    assert peaks[1] < 1.2 * peaks[0]


def test_smaller_chunks_take_less() -> None:
    fn, params, x = NETS["cnn"]()
    peaks = []
    for chunk_size in (1, 5, 20, None):
        with PeakBytes() as counter:
            jac_rev(fn, in_dims=(None, 0), chunk_size=chunk_size)(params, x)
        peaks.append(counter.peak)
    assert peaks == sorted(peaks)
    assert peaks[0] < 0.7 * peaks[-1]


def test_counter_books_what_is_alive() -> None:
    with PeakBytes() as counter:
        a = torch.empty(1000)  # 4000 bytes
        b = a + 1
        assert counter.now == 8000
        del b
        assert counter.now == 4000
        c = a[10:]  # no new storage
        assert counter.now == 4000
        a.add_(1)
        assert counter.now == 4000
    assert counter.peak == 8000
    assert c.shape == (990,)


# --- the process ----------------------------------------------------------------------------------

PROCESS = """
    import resource, sys, threading, time, torch
    from jacfn import jac_fwd, jac_rev, make_functional
    from torch import nn

    torch.set_num_threads(1)
    transform = {"jac_rev": jac_rev, "jac_fwd": jac_fwd}[sys.argv[1]]
    budget = int(sys.argv[2]) << 20
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    fn, params = make_functional(net)
    x = torch.randn(96, 64)
    call = transform(fn, in_dims=(None, 0), memory=budget)
    call(params, x)  # plans; starts thread pools and kernels

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    before, peak, done = resident(), 0, False

    def watch():
        global peak
        while not done:
            peak = max(peak, resident())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    jac = call(params, x)
    done = True
    thread.join()
    result = sum(leaf.nbytes for leaf in jac.values())
    print(peak - before - result, result)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("budget", [16, 64])
@pytest.mark.parametrize("name", ["jac_rev", "jac_fwd"])
def test_process_keeps_to_the_budget(name: str, budget: int) -> None:
    """Resident memory beyond the result, as the operating system sees it."""
    root = str(Path(jacfn.__file__).parents[1])
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory goes back
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS), name, str(budget)],
        env=os.environ | heap | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    extra, result = map(int, run.stdout.split())
    assert result > 100 << 20  # far more than the budget: it was really cut
    assert extra <= budget << 20
