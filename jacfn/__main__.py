"""The demonstration, ``python -m jacfn``: Jacobians of a small network on real data, and a fit by them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from jacfn._errors import JacfnValueError
from jacfn._memory import parse_budget

EPILOG = """\
examples:
  python -m jacfn                              the diabetes data and an MLP
  python -m jacfn --data digits                the digits and a CNN
  python -m jacfn --memory 8MiB --steps 40     smaller chunks, a longer fit

The data come with scikit-learn: nothing is downloaded. The demonstration needs the extra
"demo"; in a copy of the repository: pip install -c constraints.txt ".[demo]"
"""

DESCRIPTION = """\
Computes the Jacobian of a small network's outputs with respect to its weights by jac_rev,
jac_fwd, jac_quasilinear and torch.autograd.functional.jacobian, compares them in a table,
fits the network by damped Gauss-Newton steps on jac_quasilinear, and saves a picture.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration with these arguments (those of the command line by default)."""
    parser = _parser()
    args = parser.parse_args(argv)
    missing = [name for name in ("rich", "sklearn", "matplotlib") if find_spec(name) is None]
    if missing:
        needed = ", ".join(missing)
        parser.exit(1, f'jacfn: the demo needs {needed}: pip install -c constraints.txt ".[demo]"\n')

    from jacfn._demo.run import run  # imports what is missing without the extra

    try:
        run(args.data, args.memory, args.steps, args.out, args.seed, args.device)
    except JacfnValueError as error:  # a budget too small for one row of one of the Jacobians
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jacfn",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        choices=("diabetes", "digits"),
        default="diabetes",
        help="diabetes: regression by an MLP; digits: ten classes by a CNN (default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        default="256MiB",
        metavar="SIZE",
        help="what a Jacobian may allocate beyond its inputs and its result: bytes, or a number with KiB, "
        "MiB or GiB (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=_count,
        default=20,
        metavar="N",
        help="Gauss-Newton steps to try (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=_png,
        default="jacfn-demo.png",
        metavar="FILE",
        help="where the picture goes, a .png in a folder that exists (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_count,
        default=0,
        metavar="N",
        help="draws the split of the data and the starting weights (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="{auto,cpu,cuda}",
        help="where to compute; auto takes a CUDA device if there is one (default: %(default)s)",
    )
    return parser


def _memory(text: str) -> str:
    try:
        parse_budget(text)
    except JacfnValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}, got {text!r}")
    return int(text)


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must name a .png file, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


def _device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be auto, cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this machine has no CUDA device that PyTorch can use")
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return text


if __name__ == "__main__":
    sys.exit(main())
