"""Second derivatives by PyTorch alone: of a function of samples, along each coordinate of a sample twice, ``(B, D)``.

``fn`` takes a batch ``(B, *in)`` and gives ``(B,)``, or takes one sample and gives a number; parameters that it closes
over may be differentiated afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

Fn = Callable[[Tensor], Tensor]

# --- the whole Hessian ----------------------------------------------------------------------------


def by_hessian(sample_fn: Fn, x: Tensor) -> Tensor:
    """``torch.func.hessian`` of each sample: forward over reverse."""
    return vmap(lambda sample: _diagonal(hessian(sample_fn)(sample), sample))(x)


def by_reverse_over_reverse(sample_fn: Fn, x: Tensor) -> Tensor:
    """The Hessian of each sample by reverse mode twice."""
    return vmap(lambda sample: _diagonal(jacrev(grad(sample_fn))(sample), sample))(x)


def _diagonal(matrix: Tensor, sample: Tensor) -> Tensor:
    return matrix.reshape(sample.numel(), sample.numel()).diagonal()


# --- double backward ------------------------------------------------------------------------------


def double_backward(fn: Fn, x: Tensor, *, record: bool = False) -> Tensor:
    """One graph of the gradient for all samples, and a backward pass through it for each coordinate.

    ``record`` keeps the graph of the result.
    """
    x, slope = _slope(fn, x)
    columns = []
    for i in range(slope.shape[1]):
        (row,) = torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True, create_graph=record)
        columns.append(row.flatten(1)[:, i])
    return torch.stack(columns, 1)


def double_backward_mapped(fn: Fn, x: Tensor) -> Tensor:
    """The same with all backward passes vmapped into one."""
    x, slope = _slope(fn, x)
    size = slope.shape[1]
    cotangents = torch.eye(size).unsqueeze(1).expand(size, *slope.shape)
    (rows,) = torch.autograd.grad(slope, x, cotangents, is_grads_batched=True)
    return rows.flatten(2).diagonal(dim1=0, dim2=2)


def _slope(fn: Fn, x: Tensor) -> tuple[Tensor, Tensor]:
    """The batch, and the gradients ``(B, D)`` as a function of it."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(fn(x).sum(), x, create_graph=True)
    return x, slope.flatten(1)


# --- jvp of the gradient --------------------------------------------------------------------------


def forward_over_reverse(fn: Fn, x: Tensor, *, at_once: int | None = None) -> Tensor:
    """Directions vmapped around the gradient of all samples, some ``at_once``."""
    size = x[0].numel()
    return torch.cat([_along(fn, x, part) for part in torch.arange(size).split(at_once or size)], 1)


def forward_over_reverse_loop(fn: Fn, x: Tensor) -> Tensor:
    """One direction after the other."""
    return forward_over_reverse(fn, x, at_once=1)


def _along(fn: Fn, x: Tensor, coordinates: Tensor) -> Tensor:
    """``(B, C)`` of ``C`` coordinates; a single one is not vmapped."""
    slope = grad(lambda batch: fn(batch).sum())
    size = x[0].numel()

    def second(direction: Tensor) -> Tensor:
        tangent = direction.reshape(x.shape[1:]).expand_as(x)
        return (jvp(slope, (x,), (tangent,))[1] * tangent).flatten(1).sum(1)

    directions = x.new_zeros(len(coordinates), size)
    directions[torch.arange(len(coordinates)), coordinates] = 1
    return second(directions[0])[:, None] if len(directions) == 1 else vmap(second, out_dims=1)(directions)


def forward_over_reverse_inside(sample_fn: Fn, x: Tensor) -> Tensor:
    """Samples vmapped around the directions of one."""
    directions = torch.eye(x[0].numel()).reshape(-1, *x.shape[1:])

    def of(sample: Tensor) -> Tensor:
        def second(direction: Tensor) -> Tensor:
            return (jvp(grad(sample_fn), (sample,), (direction,))[1] * direction).sum()

        return vmap(second)(directions)

    return vmap(of)(x)
