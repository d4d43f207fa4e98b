"""Second derivatives (L3)."""

from jacfn.second_order.diagonal import hessian_diag
from jacfn.second_order.directions import Probes
from jacfn.second_order.hessian import hessian
from jacfn.second_order.laplacian import laplacian
from jacfn.second_order.partial import partial
from jacfn.second_order.products import hvp

__all__ = ["Probes", "hessian", "hessian_diag", "hvp", "laplacian", "partial"]
