"""Published architectures in a few hundred to a few thousand weights, each with samples of its data."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from torch import Tensor, nn


class Example(NamedTuple):
    """A module in double precision, and the arguments of its forward, which lead with the samples."""

    module: nn.Module
    inputs: tuple[Tensor, ...]


NAMES = (
    "resnet",
    "unet",
    "mixer",
    "vit plain",
    "vit torchvision",
    "gcn",
    "siren value",
    "siren residual",
    "fourier",
    "bert classifier eager",
    "bert classifier sdpa",
    "bert words eager",
    "bert words sdpa",
    "gpt2 classifier eager",
    "gpt2 classifier sdpa",
    "gpt2 words eager",
    "gpt2 words sdpa",
)


def build(name: str) -> Example:
    """The example of that name: a file of this folder, and options for its ``build``."""
    file, *options = name.split()
    example: Example = importlib.import_module(f"models.{file}").build(*options)
    return Example(example.module.double(), example.inputs)
