"""The rules: which operations are linear in which arguments, one short function each (L2).

A rule gets the arguments of the call, under the names of the operation, and returns the form of each argument that
it can claim, with the tensor that the form needs beside the cotangent. An expansion says of which simpler operations
an operation consists. Registering either is enough.
"""

from jacfn.quasilinear.rules import attention, bag, convolution, elementwise, linear, norm, product, recurrent, table
from jacfn.quasilinear.rules._registry import CASES, EXPANSIONS, RULES, Place, Rule, Use, expansion, find, rule

__all__ = [
    "CASES",
    "EXPANSIONS",
    "RULES",
    "Place",
    "Rule",
    "Use",
    "attention",
    "bag",
    "convolution",
    "elementwise",
    "expansion",
    "find",
    "linear",
    "norm",
    "product",
    "recurrent",
    "rule",
    "table",
]
