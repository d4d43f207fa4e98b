"""The dense matrix from an operator: whole, into memory that is given, in blocks, for SciPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from operator_cases import CASES, METHODS, close, dense, from_blocks, operator, smallest_budget, some
from torch import Tensor

from jacfn import JacfnError, JacfnTypeError

D = torch.float64
methods = pytest.mark.parametrize("method", METHODS)

# What can be written into, for a result of shape (m, p).
BUFFERS: dict[str, Callable[[int, int], Tensor]] = {
    "new": lambda m, p: torch.empty(m, p, dtype=D),
    "view inside a larger one": lambda m, p: torch.zeros(m + 2, p + 3, dtype=D)[1:-1, 2:-1],
    "transposed": lambda m, p: torch.zeros(p, m, dtype=D).T,
    "every other row and third column": lambda m, p: torch.zeros(2 * m, 3 * p, dtype=D)[::2, 1::3],
    "slice of a stack": lambda m, p: torch.zeros(m, 2, p, dtype=D)[:, 1],
}


@methods
@pytest.mark.parametrize("name", ["mlp", "cnn", "embedding", "layer norm", "without closed form", "tied"])
@pytest.mark.parametrize("buffer", BUFFERS)
def test_out(buffer: str, name: str, method: str) -> None:
    case = CASES[name](3)
    A = dense(case)
    out = BUFFERS[buffer](*A.shape).fill_(torch.nan)
    assert operator(case, method).materialize(out=out) is out
    close(out, A)


@methods
def test_out_touches_nothing_else(method: str) -> None:
    case = CASES["mlp"](3)
    A = dense(case)
    whole = torch.full((len(A) + 2, A.shape[1] + 3), 7.0, dtype=D)
    operator(case, method, memory="64KiB").materialize(out=whole[1:-1, 2:-1])
    close(whole[1:-1, 2:-1], A)
    whole[1:-1, 2:-1] = 7
    assert (whole == 7).all()


@methods
@pytest.mark.parametrize("memory", [None, "32KiB"])
def test_memory_mapped(method: str, memory: str | None, tmp_path: Path) -> None:
    case = CASES["mlp"](4)
    A = dense(case)
    J = operator(case, method, memory=memory)
    disk = np.memmap(tmp_path / "jacobian", np.float64, "w+", shape=J.shape)
    J.materialize(out=torch.from_numpy(disk))
    disk.flush()
    close(torch.from_numpy(np.fromfile(tmp_path / "jacobian").reshape(J.shape)), A)
    disk[:] = 0
    for rows, block in J.blocks(chunk_size=3):
        disk[rows] = block.numpy()
    close(torch.from_numpy(np.array(disk)), A)


@methods
@pytest.mark.parametrize("name", ["mlp", "several outputs"])
def test_blocks(name: str, method: str) -> None:
    case = CASES[name](3)
    A = dense(case)
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    for memory in (None, smallest):
        J = operator(case, method, memory=memory)
        for chunk_size in (None, 1, 2, 3, 1000):
            stops = [0]
            for rows, block in J.blocks(chunk_size):
                assert rows.start == stops[-1]  # in order
                assert chunk_size is None or len(block) <= chunk_size
                stops.append(rows.stop)
                close(block, A[rows])
            assert stops[-1] == len(A)
        room = 2 * 8 * A.shape[1]
        assert all(block.nbytes <= room for _, block in J.blocks(memory=room))
        close(from_blocks(J, memory=room), A)


@methods
def test_blocks_of_chosen_rows(method: str) -> None:
    case = CASES["mlp"](4)
    A, places = dense(case), torch.tensor([7, 0, 3, 3])
    smallest = smallest_budget(lambda budget: operator(case, method, memory=budget))
    for memory in (None, smallest):
        J = operator(case, method, memory=memory).restrict(rows=places)
        for chunk_size in (None, 1, 3):
            close(from_blocks(J, chunk_size=chunk_size), A[places])


@methods
def test_result_is_no_alias(method: str) -> None:
    """Writing to a result changes no later one."""
    case = CASES["without closed form"](1)
    A, J = dense(case), operator(case, method)
    J.materialize().zero_()
    for _, leaf in J.leaves():
        leaf.zero_()
    for _, block in J.blocks():
        block.zero_()
    for kept in (J.restrict(leaves=["squared"]), J.restrict(rows=slice(0, 1)), J.weighted(torch.ones(3, dtype=D))):
        kept.materialize().zero_()
    close(J.materialize(), A)


@methods
def test_scipy(method: str) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    case = CASES["mlp"](6)
    A = dense(case).numpy()
    sp = operator(case, method).as_scipy()
    v, u = some(A.shape[1], 2).numpy(), some(len(A), 2).numpy()
    assert sp.dtype == np.float64
    np.testing.assert_allclose(sp @ v, A @ v, atol=1e-10)
    np.testing.assert_allclose(sp @ v[:, 0], A @ v[:, 0], atol=1e-10)
    np.testing.assert_allclose(sp.T @ u, A.T @ u, atol=1e-10)
    np.testing.assert_allclose(sp.rmatvec(u[:, :1]), A.T @ u[:, :1], atol=1e-10)
    values = np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(np.sort(linalg.svds(sp, k=3)[1])[::-1], values[:3], rtol=1e-8)
    solution = linalg.lsmr(sp, u[:, 0], damp=0.5, atol=1e-14, btol=1e-14, maxiter=500)[0]
    wanted = np.linalg.solve(A.T @ A + 0.25 * np.eye(A.shape[1]), A.T @ u[:, 0])
    np.testing.assert_allclose(solution, wanted, rtol=1e-6, atol=1e-8)


def test_scipy_with_any_array() -> None:
    pytest.importorskip("scipy")
    case = CASES["mlp"](6)
    A = dense(case).numpy()
    sp = operator(case).as_scipy()
    v = some(A.shape[1], 2).numpy()
    fixed = v.copy()
    fixed.flags.writeable = False
    for given in (v[::-1], v[:, ::-1], v[::-1, 0], v.astype(">f8"), fixed, v.astype(np.float32), np.asfortranarray(v)):
        np.testing.assert_allclose(sp @ given, A @ given, rtol=1e-10, atol=1e-10)
    for u in (v[:12] + 2j * v[12:24], (v[:12] + 2j * v[12:24])[:, 0]):
        np.testing.assert_allclose(sp.H @ u, A.T @ u, rtol=1e-10, atol=1e-10)
    with pytest.raises(JacfnTypeError, match=r"NumPy has no bfloat16; convert by J.astype"):
        operator(case).astype(torch.bfloat16).as_scipy()


@methods
def test_singular_values(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three ways, and the fewest bytes that lead to it."""
    case = CASES["mlp"](6)
    wanted = torch.linalg.svdvals(dense(case))
    J = operator(case, method)
    for room in (12 * 26 * 8, 3 * 12**2 * 8, 8):
        monkeypatch.setattr(J.source, "room", room)
        if room == 8:
            pytest.importorskip("scipy")
        close(J.singular_values(3), wanted[:3], scale=100)
        if room > 8:
            close(J.singular_values(12), wanted, scale=1e5)
    with pytest.raises(JacfnError, match=r"k=12 is all singular values.*more memory"):
        J.singular_values(12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_singular_values_in_half_precision(dtype: torch.dtype) -> None:
    J = operator(CASES["mlp"](6), "quasilinear")
    half = J.astype(dtype).singular_values(3)
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), J.singular_values(3), rtol=0.02, atol=0)
