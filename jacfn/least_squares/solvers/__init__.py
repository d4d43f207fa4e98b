"""The ways to solve a damped, scaled linear least-squares problem (L4)."""

from jacfn.least_squares.solvers.choose import KRYLOV, NAMES, Name, choose, make, planned
from jacfn.least_squares.solvers.linear import Damped, Solver, System

__all__ = ["KRYLOV", "NAMES", "Damped", "Name", "Solver", "System", "choose", "make", "planned"]
