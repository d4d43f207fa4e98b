"""The Jacobian as an object, and the neural tangent kernel (L3)."""

from jacfn.operator.build import jacobian_operator
from jacfn.operator.jacobian import JacobianOperator
from jacfn.operator.ntk import ntk

__all__ = ["JacobianOperator", "jacobian_operator", "ntk"]
