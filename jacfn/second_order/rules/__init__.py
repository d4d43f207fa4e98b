"""Rules for jets, by elementary operation (L3)."""

from jacfn.second_order.rules import (  # noqa: F401  (fill the tables)
    activations,
    binary,
    direct,
    distances,
    factors,
    indexing,
    linalg,
    linear,
    normalise,
    products,
    reductions,
    sampling,
    structure,
    unary,
    windows,
)
from jacfn.second_order.rules.table import CONSTANT, RULES

__all__ = ["CONSTANT", "RULES"]
