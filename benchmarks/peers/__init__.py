"""Other packages' ways to per-sample gradients, one file each, imported only where they run."""

from .backpack import BACKPACK
from .opacus import OPACUS
from .pytorch_jacobian import PYTORCH_JACOBIAN

PEERS = (BACKPACK, OPACUS, PYTORCH_JACOBIAN)

__all__ = ["BACKPACK", "OPACUS", "PEERS", "PYTORCH_JACOBIAN"]
