"""Cases of linear algebra and complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Case, D, group, values

CASES: list[Case] = []

square = torch.diag(values(3, low=1.5, high=3)) + values(3, 3) / 2
rank_two = torch.stack([square[0], square[1], square[0] - square[1]])
rank_one = torch.outer(square[0], square[1])


def spd(x: Tensor) -> Tensor:
    """Symmetric, positive definite."""
    return x @ x.mT + torch.eye(3, dtype=D)


def of_vectors(*parts: Tensor) -> tuple[Tensor, ...]:
    """What does not depend on the signs of eigenvectors."""
    return tuple(part if part.ndim == 1 else part**2 for part in parts)


def turned(x: Tensor) -> Tensor:
    """A complex matrix."""
    return torch.complex(x, x.roll(1, 0) / 2)


CASES += group(
    "Linear algebra",
    square,
    {
        "torch.linalg.det": torch.linalg.det,
        "torch.linalg.slogdet": lambda x: torch.linalg.slogdet(x)[1],
        "torch.logdet": torch.logdet,
        "torch.linalg.inv": torch.linalg.inv,
        "torch.linalg.solve": lambda x: torch.linalg.solve(x, x.sin()),
        "torch.linalg.solve (vector)": lambda x: torch.linalg.solve(x, x[0]),
        "torch.linalg.solve (left=False)": lambda x: torch.linalg.solve(x, x.sin(), left=False),
        "torch.linalg.cholesky": lambda x: torch.linalg.cholesky(spd(x)),
        "torch.cholesky_solve": lambda x: torch.cholesky_solve(x.sin(), torch.linalg.cholesky(spd(x))),
        "torch.cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(spd(x))),
        "torch.linalg.solve_triangular": lambda x: torch.linalg.solve_triangular(x, x.sin(), upper=True),
        "torch.triangular_solve": lambda x: torch.triangular_solve(x.sin(), x)[0],
        "torch.linalg.lu": lambda x: torch.linalg.lu(x)[1:],
        "torch.linalg.lu_factor": lambda x: torch.linalg.lu_factor(x)[0],
        "torch.linalg.lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x.sin()),
        "torch.linalg.qr": lambda x: tuple(torch.linalg.qr(x)),
        "torch.linalg.householder_product": lambda x: torch.linalg.householder_product(x / 3, x[0] / 3),
        "torch.linalg.eigh": lambda x: of_vectors(*torch.linalg.eigh(spd(x))),
        "torch.linalg.eigvalsh": lambda x: torch.linalg.eigvalsh(spd(x)),
        "torch.linalg.eigvals": lambda x: (torch.linalg.eigvals(x) ** 2).real.sum(),
        "torch.linalg.svd": lambda x: of_vectors(*torch.linalg.svd(x)),
        "torch.linalg.svdvals": torch.linalg.svdvals,
        "torch.linalg.pinv": lambda x: torch.linalg.pinv(x[:, :2]),
        "torch.linalg.lstsq": lambda x: torch.linalg.lstsq(x[:, :2], x[:, 2:].sin()).solution,
        "torch.linalg.matrix_exp": lambda x: torch.linalg.matrix_exp(x / 2),
        "torch.linalg.matrix_power": lambda x: torch.linalg.matrix_power(x, 3) / 9,
        "torch.linalg.matrix_power (negative)": lambda x: torch.linalg.matrix_power(x, -2),
        "torch.linalg.tensorsolve": lambda x: torch.linalg.tensorsolve(x.reshape(1, 3, 3), x[:1].sin()),
        "torch.linalg.multi_dot": lambda x: torch.linalg.multi_dot([x, x.sin(), x[:, :1]]),
        "torch.linalg.cross": lambda x: torch.linalg.cross(x[0], x[1]),
        "torch.linalg.cond": torch.linalg.cond,
        "torch.trace": lambda x: torch.trace(x @ x),
        "torch.linalg.vector_norm": torch.linalg.vector_norm,
        "torch.linalg.vector_norm (1)": lambda x: torch.linalg.vector_norm(x / 2 + 1, 1, -1),
        "torch.linalg.vector_norm (3)": lambda x: torch.linalg.vector_norm(x + 2, 3, -1),
        "torch.linalg.vector_norm (inf)": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
        "torch.linalg.matrix_norm": torch.linalg.matrix_norm,
        "torch.linalg.matrix_norm (2)": lambda x: torch.linalg.matrix_norm(x, 2),
        "torch.linalg.matrix_norm (nuc)": lambda x: torch.linalg.matrix_norm(x, "nuc"),
    },
)
CASES += group("Linear algebra", rank_two, {"torch.linalg.det (rank n - 1)": torch.linalg.det})
CASES += group("Linear algebra", rank_one, {"torch.linalg.det (rank n - 2)": torch.linalg.det})
CASES += group(
    "Complex",
    square,
    {
        "torch.view_as_complex": lambda x: torch.view_as_complex(x[:, :2].contiguous()).exp().abs(),
        "torch.complex, Tensor.angle": lambda x: torch.complex(x[0], x[1]).square().angle(),
        "torch.polar": lambda x: torch.view_as_real(torch.polar(x[0] + 4, x[1])),
        "torch.matmul (complex)": lambda x: (turned(x) @ turned(x).mH).real,
        "torch.linalg.solve (complex)": lambda x: torch.view_as_real(torch.linalg.solve(turned(x), turned(x.sin()))),
        "torch.linalg.slogdet (complex)": lambda x: torch.linalg.slogdet(turned(x))[1],
        "torch.linalg.eigvalsh (complex)": lambda x: torch.linalg.eigvalsh(turned(x) @ turned(x).mH),
        "torch.fft.fft": lambda x: torch.view_as_real(torch.fft.fft(x)),
        "torch.fft.rfft": lambda x: torch.view_as_real(torch.fft.rfft(x)),
        "torch.fft.irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x, n=4) ** 2),
        "torch.fft.fft2": lambda x: (torch.fft.fft2(x) + 3).abs(),
    },
)
