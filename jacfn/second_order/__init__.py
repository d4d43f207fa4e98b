"""Second derivatives (L3)."""

from jacfn.second_order.diagonal import hessian_diag
from jacfn.second_order.hessian import hessian
from jacfn.second_order.products import hvp

__all__ = ["hessian", "hessian_diag", "hvp"]
