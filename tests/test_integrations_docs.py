"""The examples for packages that the test extra does not install run as they stand, where the package is there."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch

from jacfn.integrations import laplace, torch_levenberg_marquardt

PAGE = (Path(__file__).parents[1] / "docs" / "integrations.rst").read_text()
TEXTS = {
    "page": PAGE,
    "LevenbergMarquardtModule": inspect.getdoc(torch_levenberg_marquardt.LevenbergMarquardtModule),
    "JacfnGGN": inspect.getdoc(laplace.JacfnGGN),
}


def blocks(text: str) -> list[str]:
    """The Python blocks of a text."""
    found = re.findall(r"^\.\. code-block:: python\n\n((?:[ ]+.*\n|\n)+)", text + "\n", re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


CASES = [pytest.param(block, id=f"{name}-{i}") for name, text in TEXTS.items() for i, block in enumerate(blocks(text))]


def imported(source: str) -> set[str]:
    """The packages that a block imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("source", CASES)
def test_example_runs(source: str) -> None:
    packages = {"laplace", "torch_levenberg_marquardt"} & imported(source.replace("jacfn.integrations.", ""))
    assert len(packages) == 1
    for package in packages:
        pytest.importorskip(package, reason=f"needs {package}: see docs/integrations.rst", exc_type=ImportError)
    namespace: dict[str, object] = {}
    exec(compile(source, "example", "exec"), namespace)
    if "probabilities" in namespace:
        torch.testing.assert_close(namespace["probabilities"].sum(1), torch.ones(5))
    if "loss" in namespace:
        assert namespace["loss"] < 0.05


def test_every_example_is_found() -> None:
    assert len(CASES) == PAGE.count("code-block:: python") + 2
