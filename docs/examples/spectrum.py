"""The spectrum of a classifier's Hessian; ``python3 docs/examples/spectrum.py picture.png``."""

import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import jacfn

Loss = Callable[[Tensor], Tensor]


def trained(classes: int, hidden: int = 16, steps: int = 100) -> tuple[Loss, Tensor]:
    """The loss of a small network on the images of the first digits, as a function of all weights, and these."""
    torch.manual_seed(0)
    digits = load_digits(n_class=classes)
    x, y = torch.from_numpy(digits.data / 16), torch.from_numpy(digits.target)
    model = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    f, params = jacfn.make_functional(model, batched=True)
    sizes = [leaf.numel() for leaf in params.values()]

    def loss(weights: Tensor) -> Tensor:
        leaves = zip(params.items(), weights.split(sizes), strict=True)
        return cross_entropy(f({name: piece.view_as(leaf) for (name, leaf), piece in leaves}, x), y)

    return loss, torch.cat([leaf.flatten() for leaf in params.values()])


def product(loss: Loss, weights: Tensor, v: Tensor) -> Tensor:
    return jacfn.hvp(loss, (weights,), (v,))


def largest(loss: Loss, weights: Tensor, count: int) -> np.ndarray:
    """The largest eigenvalues, in descending order, by products alone."""

    def matvec(v: np.ndarray) -> np.ndarray:
        return product(loss, weights, torch.from_numpy(v.reshape(-1).copy())).numpy()

    size = weights.numel()
    H = LinearOperator((size, size), matvec, dtype=np.float64)
    return eigsh(H, k=count, which="LA", return_eigenvectors=False)[::-1]


def lanczos(loss: Loss, weights: Tensor, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a quadrature for the spectral density, from a vector of length 1."""
    basis, diagonal, beside = [v], [], []
    for _ in range(steps):
        w = product(loss, weights, v)
        diagonal.append(v @ w)
        known = torch.stack(basis)
        for _ in range(2):  # once leaves what rounding has brought in
            w = w - known.T @ (known @ w)
        beside.append(w.norm())
        v = w / beside[-1]
        basis.append(v)
    off = torch.stack(beside[:-1])
    T = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    nodes, vectors = torch.linalg.eigh(T)
    return nodes, vectors[0] ** 2


def density(loss: Loss, weights: Tensor, at: Tensor, width: float, steps: int = 25, probes: int = 12) -> Tensor:
    """Of the eigenvalues, each widened to a Gaussian: the mean of quadratures."""
    starts = nn.functional.normalize(torch.randn(probes, len(weights), dtype=weights.dtype))
    quadratures = [lanczos(loss, weights, v, steps) for v in starts]
    return torch.stack([bells(nodes, masses, at, width) for nodes, masses in quadratures]).mean(0)


def bells(nodes: Tensor, masses: Tensor, at: Tensor, width: float) -> Tensor:
    heights = torch.exp(-(((at[:, None] - nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
    return heights @ masses


def draw(top: dict[int, np.ndarray], dense: Tensor, at: Tensor, estimated: Tensor, width: float) -> Figure:
    blue, orange, grey = "#1f6fb2", "#d9741a", "#8a8a8a"
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    masses = torch.full_like(dense, 1 / len(dense))
    left.semilogy(at, bells(dense, masses, at, width), color=grey, lw=3, alpha=0.6, label="all eigenvalues")
    left.semilogy(at, estimated, color=blue, lw=1.2, label="Lanczos")
    left.set(title="Density, five classes", xlabel="eigenvalue", ylim=(1e-3, 100))
    for (classes, values), color in zip(sorted(top.items()), (blue, orange, "black"), strict=True):
        right.semilogy(range(1, len(values) + 1), values / values[0], "o-", color=color, ms=4, lw=0.8)
        right.axvline(classes - 0.5, color=color, ls=":", label=f"{classes - 1} of {classes} classes")
    right.set(title="Largest eigenvalues, relative to the first", xlabel="index")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def main(picture: str) -> None:
    top = {}
    for classes in (3, 10, 5):
        loss, weights = trained(classes)
        top[classes] = largest(loss, weights, classes + 6)
        drops = top[classes][:-1] / top[classes][1:]
        print(
            f"{classes:2} classes, {len(weights)} weights: eigenvalue {classes - 1} / eigenvalue {classes} =", end=" "
        )
        print(f"{drops[classes - 2]:.2f}, eigenvalue {classes} / eigenvalue {classes + 1} = {drops[classes - 1]:.2f}")
    dense = torch.linalg.eigvalsh(jacfn.hessian(loss, memory="256MiB")(weights))  # of the last, with five classes
    gap = np.abs(top[5] - dense.flip(0)[: len(top[5])].numpy()).max()
    print(f"{len(top[5])} eigenvalues by products and by the dense Hessian differ by at most {gap:.0e}")
    at, width = torch.linspace(-0.1, 0.7, 700, dtype=torch.float64), 0.01
    draw(top, dense, at, density(loss, weights, at, width), width).savefig(picture, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
