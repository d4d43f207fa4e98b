"""The README's examples run as they stand, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[tuple[int, str]]:
    """The fenced blocks of one language, each with the line at which its text begins."""
    fenced = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [(TEXT.count("\n", 0, match.start(1)) + 1, match[1]) for match in fenced]


def test_first_two_commands() -> None:
    _, first = _blocks("sh")[0]
    job, tests = first.splitlines()
    for command in (job, tests):
        assert command.startswith("python3 -m pip install -c constraints.txt ")
    assert job.endswith("&& python3 -m jacfn")
    assert tests.endswith("&& python3 -m pytest")


def test_python_examples() -> None:
    namespace: dict[str, object] = {"__name__": "readme"}
    blocks = _blocks("python")
    assert blocks
    for line, source in blocks:  # in order, in one namespace
        # The blank lines make a traceback name the README's own line.
        exec(compile("\n" * (line - 1) + source, str(ROOT / "README.md"), "exec"), namespace)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT))
def test_link(target: str) -> None:
    assert "://" in target or (ROOT / target).exists()
