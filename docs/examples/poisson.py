"""A Poisson equation on the unit square by a network; ``python3 docs/examples/poisson.py picture.png``."""

import math
import sys

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import vmap

import jacfn


def solution(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x[..., 0]) * torch.sin(2 * math.pi * x[..., 1])


def source(x: Tensor) -> Tensor:
    return 5 * math.pi**2 * solution(x)  # -Δ of the solution


torch.manual_seed(0)
net, start = jacfn.make_functional(nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).double())


def u(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x * (1 - x)).prod() * net(params, x)[0]  # zero on the edge, whatever the weights


def residual(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return jacfn.laplacian(u, argnums=1)(params, x) + source(x)


def grid(count: int) -> Tensor:
    """The centres of ``count`` times ``count`` cells."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(places, places)


def difference(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return vmap(u, (None, 0))(params, x) - solution(x)


def error(params: dict[str, Tensor]) -> float:
    """In the L2 norm, relative to the solution, at places that the fit has not seen."""
    x = grid(50)
    return float(difference(params, x).norm() / solution(x).norm())


def solve(count: int, steps: int) -> tuple[jacfn.Solution, list[float]]:
    """The fit, and the error after each step."""
    errors: list[float] = []
    fit = jacfn.levenberg_marquardt(
        residual,
        start,
        grid(count),
        in_dims=(None, 0),
        max_steps=steps,
        callback=lambda state: errors.append(error(state.params)),
    )
    return fit, errors


def draw(params: dict[str, Tensor], errors: list[float]) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    x = grid(100)
    values, wrong = vmap(u, (None, 0))(params, x), difference(params, x)
    for axes, field, title, colors in (
        (left, values, "Network", "viridis"),
        (middle, wrong, "Network minus solution", "RdBu"),
    ):
        most = field.abs().max().item()
        image = axes.imshow(
            field.view(100, 100).T.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap=colors, vmin=-most, vmax=most
        )
        axes.set(title=title, xlabel="x", ylabel="y")
        figure.colorbar(image, ax=axes)
    right.semilogy(range(1, len(errors) + 1), errors, color="#1f6fb2")
    right.set(title="Relative error", xlabel="step")
    right.spines[["top", "right"]].set_visible(False)
    right.grid(alpha=0.25)
    return figure


def main(picture: str) -> None:
    fit, errors = solve(16, 120)
    x = grid(100)
    print(
        f"{sum(leaf.numel() for leaf in start.values())} weights, 256 points, {fit.steps} steps, {fit.njev} Jacobians"
    )
    print(f"relative error {errors[-1]:.1e}, largest {difference(fit.params, x).abs().max():.1e}")
    draw(fit.params, errors).savefig(picture, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
