"""Hydrogen and helium by variational Monte Carlo: ``python3 docs/examples/wavefunctions.py picture.png``."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import vmap

import jacfn

Params = dict[str, Tensor]
LogPsi = Callable[[Params, Tensor], Tensor]  # log|ψ| where the electrons of one walker are, (n, 3)


def exponential(params: Params, x: Tensor) -> Tensor:
    return -params["zeta"] * x.norm(dim=-1).sum()


def gaussian(params: Params, x: Tensor) -> Tensor:
    return -params["alpha"] * x.square().sum()


def correlated(params: Params, x: Tensor) -> Tensor:
    r12 = (x[0] - x[1]).norm()
    b = params["log_b"].exp()  # stays positive
    return -2 * x.norm(dim=-1).sum() + r12 / (2 * (1 + b * r12))


torch.manual_seed(0)
net, weights = jacfn.make_functional(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double())


def neural(params: Params, x: Tensor) -> Tensor:
    r1, r2 = x.norm(dim=-1)
    r12 = (x[0] - x[1]).norm()
    return -2 * (r1 + r2) + r12 / (2 * (1 + r12)) + net(params, torch.stack([r1 + r2, (r1 - r2) ** 2, r12]))[0]


def potential(x: Tensor) -> Tensor:
    """Of neutral atoms, ``(N,)`` from ``(N, n, 3)``: as many protons in the nucleus as there are electrons."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (1 / (x[:, i] - x[:, j]).norm(dim=-1)).sum(1) - x.shape[1] * (1 / x.norm(dim=-1)).sum(1)


def local_energy(log_psi: LogPsi, params: Params, x: Tensor) -> Tensor:
    """``(N,)``."""
    transformed = jacfn.laplacian(log_psi, argnums=1, in_dims=(None, 0), return_value=True)
    laplacian, (_, gradient) = transformed(params, x)
    return potential(x) - (laplacian + gradient.square().sum((1, 2))) / 2


def metropolis(log_psi: LogPsi, params: Params, x: Tensor, steps: int, width: float = 0.5) -> Tensor:
    """Where walkers are some steps later; in the long run their density is ``ψ²``."""
    log_psis = vmap(log_psi, (None, 0))
    now = log_psis(params, x)
    for _ in range(steps):
        tried = x + width * torch.randn_like(x)
        then = log_psis(params, tried)
        taken = torch.rand_like(now).log() < 2 * (then - now)
        x, now = torch.where(taken[:, None, None], tried, x), torch.where(taken, then, now)
    return x


def walkers(log_psi: LogPsi, params: Params, electrons: int, count: int) -> Tensor:
    """That have forgotten where they started."""
    return metropolis(log_psi, params, torch.randn(count, electrons, 3, dtype=torch.float64), 200)


@dataclass(frozen=True)
class Energy:
    """The mean of local energies ``(times, N)``, its standard error, and their standard deviation."""

    mean: float
    error: float
    spread: float

    @staticmethod
    def of(local: Tensor) -> "Energy":
        """Walkers are independent of each other; where one is at several times is not."""
        of_walker = local.mean(0)
        error = of_walker.std() / math.sqrt(len(of_walker))
        return Energy(local.mean().item(), error.item(), local.std().item())


def measure(log_psi: LogPsi, params: Params, x: Tensor, times: int) -> Energy:
    local = []
    for _ in range(times):
        x = metropolis(log_psi, params, x, 10)
        local.append(local_energy(log_psi, params, x))
    return Energy.of(torch.stack(local))


def optimise(
    log_psi: LogPsi, params: Params, x: Tensor, steps: int, rate: float = 0.1, damping: float = 1e-3
) -> tuple[Params, Tensor, list[Energy]]:
    """By stochastic reconfiguration: the parameters, the walkers and the energies on the way."""
    path = []
    for _ in range(steps):
        x = metropolis(log_psi, params, x, 10)
        local = local_energy(log_psi, params, x)
        path.append(Energy.of(local[None]))
        J = jacfn.jacobian_operator(log_psi, params, x, in_dims=(None, 0)).materialize()  # (N, P)
        J = J - J.mean(0)
        S = J.T @ J / len(x) + damping * torch.eye(J.shape[1], dtype=J.dtype)
        step = torch.linalg.solve(S, J.T @ (local - local.mean()) / len(x))
        parts = step.split([leaf.numel() for leaf in params.values()])
        params = {
            name: params[name] - rate * part.view_as(params[name]) for name, part in zip(params, parts, strict=True)
        }
    return params, x, path


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def line(name: str, energy: Energy, exact: float) -> None:
    print(f"{name:20} {energy.mean:9.5f} ± {energy.error:.5f}   {exact:8.5f}   {energy.spread:.4f}")


def draw(scan: dict[float, Energy], paths: dict[str, list[Energy]]) -> Figure:
    blue, orange, grey = "#1f6fb2", "#d9741a", "#8a8a8a"
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.4])
    zeta, energies = torch.linspace(min(scan), max(scan), 200), scan.values()
    left.plot(zeta, zeta**2 / 2 - zeta, color=grey, label="exact: ζ²/2 − ζ")
    left.errorbar(list(scan), [e.mean for e in energies], [e.error for e in energies], fmt="o", color=blue, ms=4)
    left.set(title="Hydrogen, exp(−ζr): energy", xlabel="ζ", ylabel="hartree")
    middle.plot(zeta, (zeta - 1).abs() * zeta, color=grey, label="exact: |ζ − 1| ζ")
    middle.plot(list(scan), [e.spread for e in energies], "o", color=blue, ms=4)
    middle.set(title="Spread of its local energies", xlabel="ζ", ylabel="hartree")
    for (name, path), color in zip(paths.items(), (blue, orange), strict=True):
        means, errors = [e.mean for e in path], [e.error for e in path]
        right.errorbar(range(len(path)), means, errors, fmt=".", color=color, lw=0.8, label=name)
    right.axhline(-2.86168, color=grey, ls=":", label="Hartree-Fock")
    right.axhline(-2.903724, color="black", lw=0.8, label="exact")
    right.set(title="Helium: energy while optimising", xlabel="step", ylabel="hartree", ylim=(-2.93, -2.8))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def main(picture: str) -> None:
    torch.manual_seed(1)
    print(f"{'':20} {'energy, hartree':>19}   {'exact':>8}   spread")
    scan = {}
    for zeta in torch.linspace(0.6, 1.4, 9).tolist():
        params = {"zeta": scalar(zeta)}
        scan[zeta] = measure(exponential, params, walkers(exponential, params, 1, 2000), 20)
    line("hydrogen, exp(-r)", scan[1.0], -0.5)
    for name, log_psi, params, electrons, exact in (
        ("hydrogen, Gaussian", gaussian, {"alpha": scalar(8 / (9 * math.pi))}, 1, -4 / (3 * math.pi)),
        ("helium, product", exponential, {"zeta": scalar(27 / 16)}, 2, -((27 / 16) ** 2)),
    ):
        line(name, measure(log_psi, params, walkers(log_psi, params, electrons, 2000), 60), exact)
    paths = {}
    for name, log_psi, params, exact in (
        ("correlated", correlated, {"log_b": scalar(0.0)}, -2.878196),
        ("neural", neural, weights, -2.903724),
    ):
        params, x, paths[name] = optimise(log_psi, params, walkers(log_psi, params, 2, 2000), 40)
        line(f"helium, {name}", measure(log_psi, params, x, 60), exact)
    draw(scan, paths).savefig(picture, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
