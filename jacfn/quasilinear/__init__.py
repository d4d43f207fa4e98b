"""Closed forms for parameters that enter their operations linearly (L2).

What a rule for an operation of one's own is made of, see :func:`jacfn.register_rule`.
"""

from jacfn.quasilinear.factors import Gather, Layout, Matmul, Scale, Shift
from jacfn.quasilinear.rules._contraction import contraction
from jacfn.quasilinear.rules._registry import Use

__all__ = ["Gather", "Layout", "Matmul", "Scale", "Shift", "Use", "contraction"]
