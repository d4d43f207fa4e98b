"""The method of ChenAo-Phys/pytorch-Jacobian: index tables of quasi-linear layers.

A layer is quasi-linear if its output is ``y[k] = Σ M[k, i, j] W[i] x[j]`` with M of zeros and ones. A table lists
the triples (i, j, k) where M is one; the gradients of all samples are then ``Σ x[j] δ[k]`` over the triples of
each weight i, with the inputs x and the cotangents δ of the layer's outputs caught by hooks.

That package finds its tables by probing every layer with one-hot weights. Here index arithmetic gives the same
tables, since probing takes minutes on the larger networks; neither would be timed. As there, layers with weights
must be the network's immediate children, and inputs vectors or images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..methods import Jacobian, Method, Run
from ..works import Work
from ._rows import gather

#: Indices of the weights, of the inputs and of the outputs that meet.
Table = tuple[Tensor, Tensor, Tensor]


def _table(layer: nn.Module, x: Tensor, y: Tensor) -> Table:
    """The triples of a layer's weight, for one sample's input and output."""
    inputs = torch.arange(x.numel()).reshape(x.shape)
    if isinstance(layer, nn.Linear) and x.ndim == 1:
        windows = inputs[:, None, None]  # (I, kernel, places)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        windows = _windows(layer, inputs)
    else:
        raise NotImplementedError(f"no table for {layer} on an input of shape {tuple(x.shape)}")
    fan_out, (fan_in, kernel, places) = len(layer.weight), windows.shape
    shape = fan_out, fan_in, kernel, places
    weights = torch.arange(fan_out * fan_in * kernel).reshape(fan_out, fan_in, kernel, 1).expand(shape)
    outputs = torch.arange(y.numel()).reshape(fan_out, 1, 1, places).expand(shape)
    windows = windows.expand(shape)
    inside = windows >= 0
    return weights[inside], windows[inside], outputs[inside]


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """The input index that each place of a kernel meets at each place of the output; -1 in the padding."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise NotImplementedError(f"no table for {layer}")
    windows = F.pad(inputs, [side for size in reversed(layer.padding) for side in (size, size)], value=-1)
    for axis, (size, stride, step) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        windows = windows.unfold(axis + 1, step * (size - 1) + 1, stride)[..., ::step]
    dims = len(layer.kernel_size)
    return windows.flatten(-dims).flatten(1, dims).transpose(1, 2)  # (I, kernel, places) <- (I, *places, *kernel)


class _Layer:
    """A layer with its table and what it saw last."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.x: Tensor
        self.y: Tensor
        self.table: Table

    def keep(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """The forward hook."""
        self.x, self.y = inputs[0].detach(), output

    def set_up(self) -> None:
        """Make the table for the shapes that the layer saw."""
        self.table = _table(self.layer, self.x[0], self.y[0])

    def gradients(self, delta: Tensor) -> list[Tensor]:
        """Gradients ``(N, *shape)`` of the weight and of the bias, from cotangents of the layer's output."""
        samples, weight = len(delta), self.layer.weight
        at_weight, at_input, at_output = self.table
        products = delta.reshape(samples, -1)[:, at_output] * self.x.reshape(samples, -1)[:, at_input]
        sums = delta.new_zeros(samples, weight.numel()).index_add_(1, at_weight, products)
        bias = [] if self.layer.bias is None else [delta.flatten(2).sum(2) if delta.ndim > 2 else delta]
        return [sums.reshape(samples, *weight.shape), *bias]


def _layers(net: nn.Module) -> list[_Layer]:
    layers = [_Layer(child) for child in net.children() if any(True for _ in child.parameters())]
    names = [
        f"{name}.{leaf}" for name, child in net.named_children() for leaf, _ in child.named_parameters(recurse=False)
    ]
    if names != [name for name, _ in net.named_parameters()]:
        raise NotImplementedError("layers with weights must be immediate children of the network")
    return layers


def _forward(net: nn.Module, layers: list[_Layer], x: Tensor) -> Tensor:
    """The network's outputs; the layers see their inputs and outputs."""
    handles = [layer.layer.register_forward_hook(layer.keep) for layer in layers]
    outputs: Tensor = net(x)
    for handle in handles:
        handle.remove()
    return outputs


def _make(work: Work) -> Run:
    """One forward pass, then for each output one backward pass to the layers' outputs and a sum by table."""
    layers = _layers(work.net)
    _forward(work.net, layers, work.x[:1])
    for layer in layers:
        layer.set_up()

    def run() -> Jacobian:
        outputs = _forward(work.net, layers, work.x).reshape(len(work.x), -1)

        def row(k: int) -> Sequence[Tensor]:
            deltas = torch.autograd.grad(outputs[:, k].sum(), [layer.y for layer in layers], retain_graph=True)
            found = zip(layers, deltas, strict=True)
            return [gradient for layer, delta in found for gradient in layer.gradients(delta)]

        jac = gather(work, row)
        for layer in layers:
            del layer.x, layer.y
        return jac

    return run


PYTORCH_JACOBIAN = Method("pytorch-Jacobian's method", _make)
