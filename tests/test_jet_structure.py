"""Rules for what views, permutes, joins, repeats and chooses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jets import check
from torch.nn import functional as F

MASK = torch.tensor([True, False, True])
GRID = torch.tensor([[True, False, True], [False, False, True]])

CASES = {
    "view": (lambda x: x.view(-1), (2, 3)),
    "view as itself": (lambda x: x.view(x.dtype).view_as(x), (2, 3)),
    "reshape": (lambda x: x.reshape(3, 2), (2, 3)),
    "reshape to a scalar": (lambda x: x.reshape(()), (1, 1)),
    "reshape of a transpose": (lambda x: x.mT.reshape(6), (2, 3)),
    "contiguous": (lambda x: x.mT.contiguous().view(-1), (2, 3)),
    "flatten": (lambda x: x.flatten(1), (2, 3, 2)),
    "ravel": (lambda x: x.mT.ravel(), (2, 3)),
    "unflatten": (lambda x: x.unflatten(-1, (2, 2)), (3, 4)),
    "movedim": (lambda x: x.movedim(0, -1), (2, 3, 4)),
    "permute": (lambda x: x.permute(-1, 0, 1), (2, 3, 4)),
    "T": (lambda x: x.T, (2, 3)),
    "t": (lambda x: x.t(), (2, 3)),
    "t of a vector": (lambda x: x.t(), (3,)),
    "mT": (lambda x: x.mT, (2, 3, 4)),
    "mH": (lambda x: x.mH, (2, 3)),
    "swapaxes": (lambda x: x.swapaxes(0, -1), (2, 3, 4)),
    "transpose": (lambda x: x.transpose(-2, 0), (2, 3, 4)),
    "expand_as": (lambda x: x.expand_as(torch.zeros(2, 3)), (3,)),
    "expand": (lambda x: x.expand(4, -1, 3), (2, 1)),
    "broadcast_to": (lambda x: torch.broadcast_to(x, (2, 3)), (3,)),
    "broadcast_tensors": (lambda x, y: torch.add(*torch.broadcast_tensors(x, y)), (3,), (2, 1)),
    "squeeze": (lambda x: x.squeeze(), (1, 3, 1)),
    "squeeze an axis": (lambda x: x.squeeze(0), (1, 3)),
    "squeeze no axis": (lambda x: x.squeeze(1), (1, 3)),
    "squeeze axes": (lambda x: x.squeeze((0, -1)), (1, 3, 1)),
    "unsqueeze": (lambda x: x.unsqueeze(0), (3,)),
    "unsqueeze behind": (lambda x: x.unsqueeze(-1), (2, 3)),
    "atleast_3d": (lambda x: torch.atleast_3d(x), (3,)),
    "slice": (lambda x: x[None, ..., 1:3:2], (2, 4)),
    "narrow": (lambda x: x.narrow(-1, 1, 2), (2, 4)),
    "select": (lambda x: x[:, -1], (2, 4)),
    "chunk": (lambda x: torch.mul(*x.chunk(2, -1)), (2, 4)),
    "uneven chunk": (lambda x: x.chunk(3)[-1], (5, 2)),
    "split": (lambda x: torch.mul(*x.split(2)), (4, 2)),
    "split sizes": (lambda x: x.split([1, 3], -1)[1], (2, 4)),
    "tensor_split": (lambda x: x.tensor_split(3, -1)[1], (2, 4)),
    "hsplit": (lambda x: torch.hsplit(x, 2)[1], (2, 4)),
    "vsplit": (lambda x: torch.vsplit(x, 2)[1], (2, 4)),
    "unbind": (lambda x: torch.mul(*x.unbind(-1)), (3, 2)),
    "iteration": (lambda x: sum(row * (i + 1) for i, row in enumerate(x)), (3, 2)),
    "cat": (lambda x, y: torch.cat([x, y], -1), (2, 3), (2, 1)),
    "cat with a constant": (lambda x: torch.cat([torch.ones(2, 3), x.sin()]), (2, 3)),
    "cat with nothing": (lambda x: torch.cat([torch.ones(0), x], 1), (2, 3)),
    "stack": (lambda x, y: torch.stack([x, y], -1), (2,), (2,)),
    "stack with a constant": (lambda x: torch.stack([torch.ones(2), x.sin()]), (2,)),
    "stack of scalars": (lambda x, y: torch.stack([x, y * x]), (), ()),
    "hstack": (lambda x, y: torch.hstack([x, y]), (2,), (3,)),
    "vstack": (lambda x, y: torch.vstack([x, y]), (2,), (2,)),
    "dstack": (lambda x, y: torch.dstack([x, y]), (2,), (2,)),
    "column_stack": (lambda x, y: torch.column_stack([x, y]), (2,), (2, 2)),
    "block_diag": (lambda x, y: torch.block_diag(x, y), (2, 2), (2, 3)),
    "cartesian_prod": (lambda x, y: torch.cartesian_prod(x, y), (2,), (3,)),
    "meshgrid": (lambda x, y: torch.mul(*torch.meshgrid(x, y, indexing="ij")), (2,), (3,)),
    "tile": (lambda x: torch.tile(x, (2, 2)), (2,)),
    "repeat": (lambda x: x.repeat(2, 1, 3), (2, 2)),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, -1), (2, 3)),
    "flip": (lambda x: x.flip(0, -1), (2, 3)),
    "fliplr": (lambda x: torch.fliplr(x), (2, 3)),
    "roll": (lambda x: x.roll(1, 0), (2, 3)),
    "roll axes": (lambda x: x.roll((1, 2), (0, -1)), (2, 3)),
    "roll elements": (lambda x: x.roll(2), (2, 3)),
    "rot90": (lambda x: torch.rot90(x), (2, 3)),
    "diag": (lambda x: x.diag(-1), (3, 3)),
    "diag of a vector": (lambda x: x.diag(1), (3,)),
    "diag_embed": (lambda x: torch.diag_embed(x, 1, 0, -1), (2, 3)),
    "diagflat": (lambda x: torch.diagflat(x), (2, 2)),
    "diagonal": (lambda x: x.diagonal(1, -2, -1), (2, 3, 3)),
    "diagonal of the first axes": (lambda x: x.diagonal(), (3, 3, 2)),
    "tril": (lambda x: x.tril(-1), (2, 3, 3)),
    "triu": (lambda x: x.triu(1), (3, 4)),
    "trace": (lambda x: x.sin().trace(), (3, 3)),
    "lower triangle": (lambda x: x[torch.tril_indices(3, 3).unbind()], (3, 3)),
    "kron": (lambda x, y: torch.kron(x, y), (2, 2), (2, 3)),
    "cross": (lambda x, y: torch.linalg.cross(x, y), (2, 3), (1, 3)),
    "cross of the first axis": (lambda x, y: torch.cross(x, y, dim=0), (3, 2), (3, 2)),
    "unfold": (lambda x: x.unfold(0, 2, 1), (4, 2)),
    "unfold behind": (lambda x: x.unfold(-1, 3, 2), (2, 7)),
    "as_strided": (lambda x: x[1:].as_strided((2, 2), (1, 3)), (6,)),
    "pad": (lambda x: F.pad(x, (1, 2), value=3.0), (2, 3)),
    "pad by less than nothing": (lambda x: F.pad(x, (-1, 2, 1, -1)), (2, 3)),
    "diff": (lambda x: x.sin().diff(n=2, dim=0), (4, 2)),
    "cumsum": (lambda x: x.cumsum(0), (3, 2)),
    "cumsum of a scalar": (lambda x: x.cumsum(0), ()),
    "trapezoid": (lambda x: torch.trapezoid(x.sin()), (4,)),
    "where": (lambda x, y: torch.where(MASK, x, y.sin()), (2, 3), (3,)),
    "where with a number": (lambda x: torch.where(MASK, 2.0, x.sin()), (2, 3)),
    "where of a larger mask": (lambda x: torch.where(GRID, x.sin(), torch.ones(3)), (3,)),
    "where of a jet": (lambda x: torch.where(x > 0, x.sin(), x), (2, 3)),
    "masked_fill": (lambda x: x.sin().masked_fill(MASK, 2.0), (2, 3)),
    "masked_fill with a jet": (lambda x, v: x.masked_fill(MASK, v.sin()), (2, 3), ()),
    "real": (lambda x: torch.real(x), (2, 3)),
    "to": (lambda x: x.to(torch.float64, copy=True), (2, 3)),
    "complex": (lambda x, y: torch.view_as_real(torch.complex(x, y) * torch.complex(y, x)), (3,), (3,)),
    "complex with a constant": (
        lambda x: torch.view_as_real(torch.complex(torch.ones(3, dtype=torch.float64), x) ** 2),
        (2, 3),
    ),
    "view_as_complex": (lambda x: torch.view_as_complex(x).conj().imag, (3, 2)),
    "conj": (lambda x: (torch.view_as_complex(x).conj() * torch.view_as_complex(x)).real, (3, 2)),
    "resolve_conj": (lambda x: torch.view_as_complex(x).mH.resolve_conj().imag, (2, 3, 2)),
    "fft": (lambda x: torch.view_as_real(torch.fft.fft(x)), (2, 4)),
    "ifft": (lambda x: torch.fft.ifft(x, dim=0, norm="ortho").imag, (4, 2)),
    "rfft": (lambda x: torch.view_as_real(torch.fft.rfft(x, n=6, dim=0)), (4, 2)),
    "irfft": (lambda x: torch.fft.irfft(torch.view_as_complex(x), n=5), (4, 2)),
    "ihfft": (lambda x: torch.fft.ihfft(x).imag, (5,)),
    "hfft": (lambda x: torch.fft.hfft(torch.view_as_complex(x)), (4, 2)),
    "fft2": (lambda x: torch.view_as_real(torch.fft.fft2(x)).square(), (2, 3, 4)),
    "ifftn": (lambda x: torch.fft.ifftn(x).real, (2, 4)),
    "rfftn": (lambda x: torch.fft.rfftn(x, dim=(0, -1)).imag, (3, 2, 4)),
    "fftshift": (lambda x: torch.fft.fftshift(x), (2, 4)),
    "stft": (lambda x: torch.view_as_real(torch.stft(x, 4, window=torch.ones(4), return_complex=True)), (12,)),
}


@pytest.mark.parametrize("case", CASES)
def test_structure(case):
    function, *shapes = CASES[case]
    check(function, *(torch.randn(shape, dtype=torch.float64) for shape in shapes))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_axes_of_either_sign(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    axis = st.integers(-len(shape), len(shape) - 1)
    a, b, c = data.draw(axis), data.draw(axis), data.draw(axis)
    x = torch.randn(shape, dtype=torch.float64)
    check(lambda x: x.transpose(a, b).flip(c).cumsum(b).roll(1, a).sin(), x)
    check(lambda x: torch.stack([x, x.square()], a).select(a, 1).unsqueeze(b).narrow(c, 0, 1), x)
