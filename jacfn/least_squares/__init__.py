"""Levenberg-Marquardt on :class:`jacfn.JacobianOperator` (L4)."""

from jacfn.least_squares.levenberg_marquardt import levenberg_marquardt
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.solution import Solution
from jacfn.least_squares.state import State
from jacfn.least_squares.steps import LevenbergMarquardt

__all__ = ["LevenbergMarquardt", "Reason", "Solution", "State", "levenberg_marquardt"]
