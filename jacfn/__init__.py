"""Jacobians as pure-function transforms on ``torch.func``."""

from jacfn._errors import JacfnError, JacfnTypeError, JacfnValueError
from jacfn._explain.explain import explain
from jacfn._explain.plan import Plan
from jacfn._products import pullback, pushforward
from jacfn.auto import jacobian
from jacfn.dense import jac_fwd, jac_rev
from jacfn.functional import make_functional
from jacfn.least_squares import LevenbergMarquardt, Reason, Solution, levenberg_marquardt
from jacfn.operator import JacobianOperator, jacobian_operator, ntk
from jacfn.quasilinear.rules.register import register_expansion, register_rule
from jacfn.quasilinear.transform import jac_quasilinear
from jacfn.second_order import Probes, hessian, hessian_diag, hvp, laplacian, partial

__all__ = [
    "JacfnError",
    "JacfnTypeError",
    "JacfnValueError",
    "JacobianOperator",
    "LevenbergMarquardt",
    "Plan",
    "Probes",
    "Reason",
    "Solution",
    "explain",
    "hessian",
    "hessian_diag",
    "hvp",
    "jac_fwd",
    "jac_quasilinear",
    "jac_rev",
    "jacobian",
    "jacobian_operator",
    "laplacian",
    "levenberg_marquardt",
    "make_functional",
    "ntk",
    "partial",
    "pullback",
    "pushforward",
    "register_expansion",
    "register_rule",
]
__version__ = "0.1.0"
