"""Settings of the whole suite: threads, hypothesis, seeds, devices."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(2)

# No deadline: what a Jacobian takes depends on what ran before it. The examples are the same in every run, so that a
# failure comes from a change; JACFN_EXAMPLES=1000 draws that many new ones.
_EXAMPLES = os.environ.get("JACFN_EXAMPLES")
settings.register_profile(
    "jacfn",
    deadline=None,
    derandomize=_EXAMPLES is None,
    max_examples=int(_EXAMPLES or 30),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jacfn")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are in double precision, in which Jacobians can be compared closely."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The devices on which a test runs."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)
