"""Sphinx: the site is built from this tree, and every example in it is run (builder ``doctest``)."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "jacfn"
author = "The jacfn developers"
project_copyright = "2026, The jacfn developers"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
extensions += ["coverage_table", "jet_rules", "trap_table", "worked_example"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jacfn {release}"

default_role = "py:obj"
add_module_names = False
autodoc_typehints = "none"  # the docstrings say what an argument may be
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

doctest_global_setup = "import torch, jacfn\ntorch.manual_seed(0)"

# Names of other projects have no target here.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|optree|numpy|scipy)(\..*)?"),
    ("py:class", r"jacfn\._explain\.records\..*"),  # their fields stand in the docstring of Plan
]
