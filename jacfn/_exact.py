"""Operations that PyTorch differentiates wrongly, slowly or not at all under transforms, put right (L0).

``fn`` runs inside :func:`exact_kernels`. Most of the table are operations whose *second* derivative is silently wrong
when one of the two is taken under vmap or by forward mode: their derivative formulas take what was saved from the
forward pass (statistics, an LU factorisation) for constants. Where more than one derivative is under way they are
replaced by the elementary operations that define them. The tests hold every entry against finite differences, and
show that PyTorch alone still fails, so an entry goes when PyTorch mends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from jacfn._errors import JacfnError
from jacfn._torch import derivative_levels

Replacement = Callable[..., Any]

_SignAndLog: Any = type(torch.linalg.slogdet(torch.ones(1, 1)))  # the named tuple that PyTorch returns

NESTED: dict[Callable[..., Any], Replacement] = {}  # where two or more derivatives are under way
MAPPED: dict[Callable[..., Any], Replacement] = {}  # there, and where a derivative is mapped over samples
ALWAYS: dict[Callable[..., Any], Replacement] = {}


@contextlib.contextmanager
def exact_kernels() -> Iterator[None]:
    """The replacements, and attention by the MATH backend: its fused kernels have no batching rules and no jvps."""
    with _no_fast_path(), sdpa_kernel(SDPBackend.MATH), ExactKernels():
        yield


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Transformer layers by their parts, which their fused inference kernel would hide."""
    if torch.compiler.is_compiling():  # refuses to trace the switch; what is compiled has no fast path
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class ExactKernels(TorchFunctionMode):
    """Puts the replacements in the place of the calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call, or what replaces it."""
        kwargs = kwargs or {}
        replacement = ALWAYS.get(func)
        if func in NESTED and derivative_levels((*args, *kwargs.values())) > 1:
            replacement = NESTED[func]
        if func in MAPPED and derivative_levels((*args, *kwargs.values()), mapped=True) > 1:
            replacement = MAPPED[func]
        return (replacement or func)(*args, **kwargs)


def _replaces(
    table: dict[Callable[..., Any], Replacement], *operations: Callable[..., Any]
) -> Callable[[Replacement], Replacement]:
    def register(replacement: Replacement) -> Replacement:
        table.update(dict.fromkeys(operations, replacement))
        return replacement

    return register


@_replaces(ALWAYS, F.prelu, torch.prelu)
def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    """The batching rule of its backward raises."""
    if weight.numel() > 1 and input.ndim > 1:
        weight = weight.view(-1, *(1,) * (input.ndim - 2))
    return torch.where(input > 0, input, weight * input)


@_replaces(NESTED, F.layer_norm, torch.layer_norm)
def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardise(input, axes, eps), weight, bias)


@_replaces(NESTED, F.batch_norm)
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training and running_mean is not None:
        raise JacfnError("batch_norm in training mode changes its running statistics: call module.eval() first")
    columns = [None if p is None else _as_channels(p, input) for p in (weight, bias)]
    if running_mean is None or running_var is None:
        return _affine(_standardise(input, (0, *range(2, input.ndim)), eps), *columns)
    centred = input - _as_channels(running_mean, input)
    return _affine(centred * torch.rsqrt(_as_channels(running_var, input) + eps), *columns)


@_replaces(NESTED, F.instance_norm)
def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None or running_var is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    columns = [None if p is None else _as_channels(p, input) for p in (weight, bias)]
    return _affine(_standardise(input, tuple(range(2, input.ndim)), eps), *columns)


@_replaces(MAPPED, torch.slogdet, torch.linalg.slogdet, Tensor.slogdet)
def _slogdet(matrix: Tensor) -> Any:
    return _SignAndLog(_sign_and_log(matrix))


@_replaces(MAPPED, torch.logdet, Tensor.logdet)
def _logdet(matrix: Tensor) -> Tensor:
    sign, value = _sign_and_log(matrix)
    return torch.where(sign < 0, torch.nan, value)


@_replaces(MAPPED, torch.det, torch.linalg.det, Tensor.det)
def _det(matrix: Tensor) -> Tensor:
    sign, diagonal = _triangle(matrix)
    return sign * diagonal.prod(-1)


@_replaces(MAPPED, torch.linalg.solve)
def _solve(matrix: Tensor, other: Tensor, *, left: bool = True) -> Tensor:
    inverse: Tensor = torch.linalg.inv(matrix)
    if not left:
        return other @ inverse
    if other.ndim == 1 or (other.ndim + 1 == matrix.ndim and other.shape == matrix.shape[:-1]):
        return (inverse @ other.unsqueeze(-1)).squeeze(-1)
    return inverse @ other


@_replaces(MAPPED, torch.linalg.lu_solve)
def _lu_solve(factors: Tensor, pivots: Tensor, other: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    if not left or adjoint:
        raise JacfnError(
            "torch.linalg.lu_solve with left=False or adjoint=True is silently wrong in PyTorch where it is "
            "differentiated twice: use torch.linalg.solve"
        )
    permutation, lower, upper = torch.lu_unpack(factors, pivots)
    half = torch.linalg.solve_triangular(lower, permutation.mT @ other, upper=False, unitriangular=True)
    solution: Tensor = torch.linalg.solve_triangular(upper, half, upper=True)
    return solution


@_replaces(MAPPED, torch.cholesky_solve)
def _cholesky_solve(other: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    half = torch.linalg.solve_triangular(lower, other, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return solution


@_replaces(ALWAYS, torch.cholesky_inverse)
def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    inverse: Tensor = torch.linalg.inv(factor.mT @ factor if upper else factor @ factor.mT)
    return inverse


@_replaces(ALWAYS, torch.cdist)
def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """Its backward is wrong under vmap, and it has no jvp."""
    distance: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return distance


def _refused(name: str, instead: str) -> Replacement:
    """For what nobody needs under two derivatives, and PyTorch gets silently wrong there."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise JacfnError(f"{name} is silently wrong in PyTorch under these transforms: use {instead}")

    return refuse


NESTED[torch.native_layer_norm] = _refused("torch.native_layer_norm", "torch.nn.functional.layer_norm")
NESTED[torch.batch_norm] = _refused("torch.batch_norm", "torch.nn.functional.batch_norm")
NESTED[torch.native_batch_norm] = _refused("torch.native_batch_norm", "torch.nn.functional.batch_norm")
NESTED[torch.instance_norm] = _refused("torch.instance_norm", "torch.nn.functional.instance_norm")
MAPPED[torch.linalg.solve_ex] = _refused("torch.linalg.solve_ex", "torch.linalg.solve")
MAPPED[torch.linalg.tensorsolve] = _refused("torch.linalg.tensorsolve", "torch.linalg.solve and reshapes")
MAPPED[torch.linalg.householder_product] = _refused("torch.linalg.householder_product", "torch.linalg.qr")


@_replaces(NESTED, F.glu)
def _glu(input: Tensor, dim: int = -1) -> Tensor:
    """Its jvp has no derivatives."""
    first, second = input.chunk(2, dim)
    return first * torch.sigmoid(second)


def _standardise(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _as_channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *(1,) * (x.ndim - 2))


def _sign_and_log(matrix: Tensor) -> tuple[Tensor, Tensor]:
    sign, diagonal = _triangle(matrix)
    return sign * diagonal.detach().sign().prod(-1), diagonal.abs().log().sum(-1)


def _triangle(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The determinant of Q and the diagonal of R: a determinant without the formula of its own."""
    orthogonal, upper = torch.linalg.qr(matrix)
    return torch.linalg.det(orthogonal.detach()).round(), upper.diagonal(dim1=-2, dim2=-1)
