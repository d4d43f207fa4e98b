"""The two problems of the demonstration: real data that scikit-learn ships, and a small network for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

DTYPE = torch.float64  # so that the table shows the differences that rounding leaves, and no others


@dataclass(frozen=True)
class Problem:
    """Data, split, with the network that is to fit it.

    Attributes:
        about: The data in words.
        network: The network, at its starting weights.
        inputs: What it is fitted on, samples on axis 0.
        targets: What it should answer there, ``(N, K)``.
        held_inputs: Samples it never sees.
        held_targets: What it should answer there.
        weight_decay: The factor of half the squared norm of the weights in what is minimised.
        score_name: What ``score`` measures.
        score: ``score(answers, targets)``, in the units of the data.
        baselines: The scores on the held-out samples of what needs no network, by name.
    """

    about: str
    network: nn.Module
    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor
    weight_decay: float
    score_name: str
    score: Callable[[Tensor, Tensor], float]
    baselines: dict[str, float]


def load(name: str, seed: int, device: str) -> Problem:
    """The problem ``name``; ``seed`` draws its split and its starting weights."""
    return PROBLEMS[name](seed, device)


def diabetes(seed: int, device: str) -> Problem:
    """A year's disease progression of 442 patients from ten measurements; an MLP with 897 weights."""
    data = load_diabetes()
    inputs, held_inputs = _split(data.data, 309, seed, device)
    targets, held_targets = _split(data.target[:, None], 309, seed, device)
    spread = targets.std().item()

    # Standardised by what the training samples tell, so that nothing leaks from the held-out ones.
    inputs, held_inputs = _standardise(inputs, held_inputs)
    targets, held_targets = _standardise(targets, held_targets)

    def rmse(answers: Tensor, wanted: Tensor) -> float:
        return spread * (answers - wanted).square().mean().sqrt().item()

    with _seeded(seed):
        network = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1))
    return Problem(
        about="diabetes: 442 patients, 10 measurements, disease progression after a year",
        network=network.to(device, DTYPE),
        inputs=inputs,
        targets=targets,
        held_inputs=held_inputs,
        held_targets=held_targets,
        weight_decay=10.0,
        score_name="RMSE",
        score=rmse,
        baselines=_baselines(rmse, inputs, targets, held_inputs, held_targets),
    )


def digits(seed: int, device: str) -> Problem:
    """1797 handwritten digits of 8x8 pixels, fitted by squared error on 400; a CNN with 920 weights."""
    data = load_digits()
    inputs, held_inputs = _split(data.images[:, None] / 16 - 0.5, 400, seed, device)
    targets, held_targets = _split(np.eye(10)[data.target] - 0.1, 400, seed, device)  # centred one-hot

    def accuracy(answers: Tensor, wanted: Tensor) -> float:
        return (answers.argmax(1) == wanted.argmax(1)).to(DTYPE).mean().item()

    with _seeded(seed):
        network = nn.Sequential(
            nn.Conv2d(1, 5, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(5, 10, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(40, 10),
        )
    return Problem(
        about="digits: 1797 handwritten digits, 8x8 pixels, one-hot targets",
        network=network.to(device, DTYPE),
        inputs=inputs,
        targets=targets,
        held_inputs=held_inputs,
        held_targets=held_targets,
        weight_decay=0.1,
        score_name="accuracy",
        score=accuracy,
        baselines=_baselines(accuracy, inputs, targets, held_inputs, held_targets),
    )


PROBLEMS: dict[str, Callable[[int, str], Problem]] = {"diabetes": diabetes, "digits": digits}


def _split(array: np.ndarray, train: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """``train`` rows drawn at random, and the rest; the same rows for the same seed."""
    order = np.random.default_rng(seed).permutation(len(array))
    tensor = torch.as_tensor(array[order], dtype=DTYPE, device=device)
    return tensor[:train], tensor[train:]


def _standardise(train: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with the mean of each column of ``train`` subtracted and its deviation divided out."""
    mean, spread = train.mean(0), train.std(0)
    return (train - mean) / spread, (held - mean) / spread


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` inside; outside, they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _baselines(
    score: Callable[[Tensor, Tensor], float], inputs: Tensor, targets: Tensor, held: Tensor, wanted: Tensor
) -> dict[str, float]:
    """What a linear model and a constant reach on the held-out samples."""
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(inputs.flatten(1).cpu(), targets.cpu())
    linear = torch.as_tensor(ridge.predict(held.flatten(1).cpu())).reshape(wanted.shape)
    return {
        "ridge regression": score(linear.to(wanted), wanted),
        "training mean": score(targets.mean(0).expand_as(wanted), wanted),
    }
