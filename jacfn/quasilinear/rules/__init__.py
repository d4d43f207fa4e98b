"""The rules: which operations are linear in which arguments, one short function each (L2).

A rule gets the arguments of the call, under the names of the operation, and returns the form of each argument that
it can claim, with the tensor that the form needs beside the cotangent. Registering it is enough.
"""

from jacfn.quasilinear.rules import convolution, linear
from jacfn.quasilinear.rules._registry import RULES, Rule, Use, rule

__all__ = ["RULES", "Rule", "Use", "convolution", "linear", "rule"]
