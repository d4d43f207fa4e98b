"""The ways to a derivative: PyTorch's and jacfn's, each for one point and for samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

import jacfn

Function = Callable[[Tensor], Tensor]
Way = Callable[[Function, Tensor, Tensor], Tensor]  # of the function, at a point, along a direction
VMAP, IN_DIMS = "vmap", "in_dims"


@dataclasses.dataclass(frozen=True)
class Path:
    """``result`` names what comes out: gradient, slope, hessian, product, curvature, diagonal, laplacian, third
    (the derivative of the Laplacian along the direction), mixed (twice by the first number, once by the second).
    """

    name: str
    order: int
    result: str
    way: Way
    samples: bool = False  # the way takes (N, n) instead of (n,), and so does its result

    @property
    def base(self) -> str:
        """Its name, or that of the path that it is for samples."""
        return self.name.partition(", ")[0]

    @property
    def ours(self) -> bool:
        """Whether jacfn answers for it."""
        return "jacfn." in self.name


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def mapped(path: Path) -> Path:
    """Over samples."""

    def way(fn: Function, points: Tensor, v: Tensor) -> Tensor:
        return vmap(lambda x: path.way(fn, x, v))(points)

    return dataclasses.replace(path, name=f"{path.name}, {VMAP}", way=way, samples=True)


def by_in_dims(name: str, order: int, result: str, way: Way) -> Path:
    """Over samples in jacfn's own way."""
    return Path(f"{name}, {IN_DIMS}", order, result, way, samples=True)


def double_backward(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(fn, x)


def triple_backward(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    """The gradient of a Laplacian of which each term is a backward pass through a backward pass."""
    x = x.detach().requires_grad_()
    slopes = torch.autograd.grad(fn(x), x, create_graph=True)[0]
    laplacian = sum(torch.autograd.grad(slopes[i], x, create_graph=True)[0][i] for i in range(len(x)))
    return torch.autograd.grad(laplacian, x)[0] @ v


def jvp_of_jvp(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    return jvp(lambda x: jvp(fn, (x,), (v,))[1], (x,), (v,))[1]


def grad_of_trace_of_hessian(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    return grad(lambda x: trace(hessian(fn)(x)))(x) @ v


def ours_by_trace(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    return grad(lambda x: trace(jacfn.hessian(fn)(x)))(x) @ v


def ours_of_samples(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    return grad(lambda x: jacfn.laplacian(fn, in_dims=0)(x).sum())(x) @ v


def ours_backward(fn: Function, x: Tensor, v: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(jacfn.laplacian(fn)(x), x)[0] @ v


POINTWISE = (
    Path("grad", 1, "gradient", lambda fn, x, v: grad(fn)(x)),
    Path("jvp", 1, "slope", lambda fn, x, v: jvp(fn, (x,), (v,))[1]),
    Path("torch.func.hessian", 2, "hessian", lambda fn, x, v: hessian(fn)(x)),
    Path("jvp of grad", 2, "product", lambda fn, x, v: jvp(grad(fn), (x,), (v,))[1]),
    Path("grad of jvp", 2, "product", lambda fn, x, v: grad(lambda x: jvp(fn, (x,), (v,))[1])(x)),
    Path("jvp of jvp", 2, "curvature", jvp_of_jvp),
    Path("jacrev of jacrev", 2, "hessian", lambda fn, x, v: jacrev(jacrev(fn))(x)),
    Path("grad of trace of hessian", 3, "third", grad_of_trace_of_hessian),
)
STOCK = (
    *POINTWISE,
    *map(mapped, POINTWISE),
    Path("double backward", 2, "hessian", double_backward),
    Path("triple backward", 3, "third", triple_backward),
)
OUR_POINTWISE = (
    Path("jacfn.jac_rev", 1, "gradient", lambda fn, x, v: jacfn.jac_rev(fn)(x)),
    Path("jacfn.jac_fwd", 1, "gradient", lambda fn, x, v: jacfn.jac_fwd(fn)(x)),
    Path("jacfn.hessian", 2, "hessian", lambda fn, x, v: jacfn.hessian(fn)(x)),
    Path("jacfn.hvp", 2, "product", lambda fn, x, v: jacfn.hvp(fn, (x,), (v,))),
    Path("jacfn.hessian_diag", 2, "diagonal", lambda fn, x, v: jacfn.hessian_diag(fn)(x)),
    Path("jacfn.laplacian", 2, "laplacian", lambda fn, x, v: jacfn.laplacian(fn)(x)),
    Path("grad of jacfn.laplacian", 3, "third", lambda fn, x, v: grad(jacfn.laplacian(fn))(x) @ v),
    Path("jvp of jacfn.laplacian", 3, "third", lambda fn, x, v: jvp(jacfn.laplacian(fn), (x,), (v,))[1]),
    Path("grad of trace of jacfn.hessian", 3, "third", ours_by_trace),
    Path("jacfn.partial (third)", 3, "mixed", lambda fn, x, v: jacfn.partial(fn, (0, 0, 1))(x)),
)
OURS = (
    *OUR_POINTWISE,
    *map(mapped, OUR_POINTWISE),
    by_in_dims("jacfn.jac_rev", 1, "gradient", lambda fn, x, v: jacfn.jac_rev(fn, in_dims=0)(x)),
    by_in_dims("jacfn.jac_fwd", 1, "gradient", lambda fn, x, v: jacfn.jac_fwd(fn, in_dims=0)(x)),
    by_in_dims("jacfn.hessian", 2, "hessian", lambda fn, x, v: jacfn.hessian(fn, in_dims=0)(x)),
    by_in_dims("jacfn.hvp", 2, "product", lambda fn, x, v: jacfn.hvp(fn, (x,), (v.expand_as(x),), in_dims=0)),
    by_in_dims("jacfn.hessian_diag", 2, "diagonal", lambda fn, x, v: jacfn.hessian_diag(fn, in_dims=0)(x)),
    by_in_dims("jacfn.laplacian", 2, "laplacian", lambda fn, x, v: jacfn.laplacian(fn, in_dims=0)(x)),
    by_in_dims("grad of jacfn.laplacian", 3, "third", ours_of_samples),
    by_in_dims("jacfn.partial (third)", 3, "mixed", lambda fn, x, v: jacfn.partial(fn, (0, 0, 1), in_dims=0)(x)),
    Path("backward through jacfn.laplacian", 3, "third", ours_backward),
)
_ALL = [*STOCK, *OURS]
_BASES = list(dict.fromkeys(path.base for path in _ALL))
_ALL.sort(key=lambda path: (path.ours, path.order, _BASES.index(path.base)))  # those for samples behind their base
PATHS = {path.name: path for path in _ALL}
