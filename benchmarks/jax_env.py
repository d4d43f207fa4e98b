"""Environments for JAX, apart from PyTorch's: ``python -m benchmarks.jax_env`` makes them.

There are two, since neural-tangents does not work with the present JAX.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

#: Where the environments are unless a folder is named: out of version control's sight.
FOLDER = Path("build/benchmarks")
#: Environment to what is installed there.
ENVIRONMENTS = {"jax": "jax_requirements.txt", "neural-tangents": "neural_tangents_requirements.txt"}


def interpreter(folder: Path, name: str) -> Path:
    """The Python of an environment, whether or not it is there."""
    return folder / name / "bin" / "python"


def main(argv: Sequence[str] | None = None) -> None:
    """Make the environments anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_env", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"default {FOLDER}")
    options = parser.parse_args(argv)
    for name, requirements in ENVIRONMENTS.items():
        print(f"{name}: {options.folder / name}", flush=True)
        venv.create(options.folder / name, clear=True, with_pip=True)
        listed = Path(__file__).parent / "peers" / requirements
        pip = [
            str(interpreter(options.folder, name)),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "-r",
            str(listed),
        ]
        if subprocess.run(pip, check=False).returncode:
            print(f"{name} could not be made; the benchmark will leave it out", file=sys.stderr)


if __name__ == "__main__":
    main()
