"""The fit in one call (L4)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

from jacfn._binding import check_positive
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._memory import Budget
from jacfn.least_squares import damping as dampings
from jacfn.least_squares import scaling as scalings
from jacfn.least_squares import solvers
from jacfn.least_squares.history import Record
from jacfn.least_squares.loops import Limits, on_batches, on_many, on_one
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.solution import Solution
from jacfn.least_squares.state import State
from jacfn.least_squares.steps import LevenbergMarquardt
from jacfn.operator.build import Method


def levenberg_marquardt(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    in_dims: Any = None,
    max_steps: int = 1000,
    max_evaluations: int | None = None,
    max_time: float | None = None,
    solver: solvers.Name = "auto",
    damping: dampings.Name = "nielsen",
    scaling: scalings.Scaling = "more",
    initial_damping: float = 1e-3,
    geodesic: bool = False,
    weights: Any = None,
    frozen: Iterable[str] | Callable[[str], bool] | None = None,
    ftol: float | None = None,
    xtol: float | None = None,
    gtol: float | None = None,
    solver_tolerance: float | None = None,
    solver_steps: int | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    memory: Budget = None,
    batches: Iterable[Any] | None = None,
    callback: Callable[[State], Any] | None = None,
) -> Solution:
    """Minimise ``½ Σ w fn(params, *args)²`` over ``params``: damped Gauss-Newton steps with exact Jacobians.

    A step ``h`` solves ``(JᵀJ + λ D²) h = -Jᵀ r`` with column scales ``D``; it is taken where it lowers the cost, and
    ``λ`` follows the gain ratio. A rejected step costs one evaluation of ``fn`` and no Jacobian.

    Args:
        fn: ``fn(params, *args) -> residuals``, pure: a pytree of tensors; of one sample where ``in_dims`` says so.
        params: where to start: a pytree of float32 or float64 tensors, all of one dtype and device.
        *args: further arguments of ``fn``.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`: ``(None, 0)`` for residuals of single
            samples that share ``params``. With an axis for ``params``, such as ``(0, 0)``, every entry along it is a
            problem of its own, with its own ``λ`` and its own end.
        max_steps: the most trial steps.
        max_evaluations: the most evaluations of ``fn``.
        max_time: the most seconds; a step that has begun is finished.
        solver: how the damped system is solved: ``"qr"`` (most accurate), ``"cholesky"`` of the normal matrix,
            ``"dual"`` by the Gram matrix (fewer residuals than parameters), ``"cg"`` or ``"lsmr"`` by products alone;
            ``"auto"`` goes by shape, conditioning and budget.
        damping: ``"nielsen"``, ``"marquardt"`` or ``"trust-region"``.
        scaling: of the columns: ``"more"`` (the largest norm so far), ``"jacobi"`` (that of now) or ``"none"``.
        initial_damping: ``λ`` at the start, relative to the largest diagonal element of the scaled normal matrix; 0 for
            an undamped first step.
        geodesic: bend steps along the curvature of the residuals: by the rules of :func:`jacfn.laplacian`, or where
            those do not cover ``fn``, by a difference of values; counted as one more evaluation a step.
        weights: ``w``, with the structure of the residuals or flat.
        frozen: names of leaves that keep their values, or a function of a name; ``"0.weight"`` as in a ``state_dict``.
        ftol: end when the cost changes by less than this part of it.
        xtol: end when a step is shorter than this part of the parameters.
        gtol: end when the cosine of the angle between residuals and columns is at most this. Tolerances default to ten
            rounding units of the dtype.
        solver_tolerance: of ``"cg"`` and ``"lsmr"``, relative to the gradient (default: the root of the rounding unit).
        solver_steps: the most iterations of these.
        method: how the Jacobian is taken, as in :func:`jacfn.jacobian_operator`.
        chunk_size: as there.
        memory: a budget for all that is allocated, such as ``"1GiB"``: the solver goes by it, too.
        batches: tuples of arguments instead of ``args``, one for each step, which is tried on its own batch: for data
            that come in pieces. Tests of convergence are off; it ends with the batches or with ``max_steps``.
        callback: called with the :class:`~jacfn.least_squares.state.State` after each step; True ends the fit.

    Returns:
        A :class:`jacfn.Solution`.

    Raises:
        JacfnError: an argument does not fit, or residuals or Jacobian are not finite at the start; the message says so.

    Cost: a Jacobian for each accepted step, and for a step ``2 M P²`` operations (``"qr"``), half of that
    (``"cholesky"``), or a product with ``J`` and one with ``Jᵀ`` for each iteration (``"cg"``, ``"lsmr"``).

    Example:
        >>> import torch
        >>> from jacfn import levenberg_marquardt
        >>> t = torch.linspace(0, 4, 30, dtype=torch.float64)
        >>> y = 3 * torch.exp(-1.5 * t) + 0.5
        >>> def residual(p, t, y):
        ...     return p["height"] * torch.exp(-p["rate"] * t) + p["floor"] - y
        >>> start = {name: torch.ones((), dtype=torch.float64) for name in ("height", "rate", "floor")}
        >>> fit = levenberg_marquardt(residual, start, t, y, in_dims=(None, 0, 0))
        >>> {name: round(leaf.item(), 6) for name, leaf in fit.params.items()}
        {'height': 3.0, 'rate': 1.5, 'floor': 0.5}

    Moré, "The Levenberg-Marquardt algorithm: implementation and theory" (1978); Madsen, Nielsen and Tingleff, "Methods
    for non-linear least squares problems" (2004).
    """
    started = time.perf_counter()
    for name, value in (("max_steps", max_steps), ("max_evaluations", max_evaluations)):
        check_positive(name, value)
    if batches is not None and args:
        raise JacfnValueError(f"batches replace args: got both, batches and {len(args)} further argument(s)")
    if batches is not None and weights is not None:
        raise JacfnValueError("weights belong to one set of residuals: with batches, multiply inside fn")
    if max_steps is None:
        raise JacfnValueError("max_steps must be a positive int, got None")
    if max_time is not None and (not isinstance(max_time, Real) or not max_time >= 0):
        raise JacfnValueError(f"max_time must be a number of seconds that is at least 0, or None, got {max_time!r}")
    if callback is not None and not callable(callback):
        raise JacfnTypeError(f"callback must be callable, got {type(callback).__name__}")
    if batches is not None and not isinstance(batches, Iterable):
        raise JacfnTypeError(f"batches must be an iterable of tuples of arguments, got {type(batches).__name__}")
    none = 0.0 if batches is not None else None
    fit = LevenbergMarquardt(
        fn,
        in_dims=in_dims,
        solver=solver,
        damping=damping,
        scaling=scaling,
        initial_damping=initial_damping,
        geodesic=geodesic,
        frozen=frozen,
        ftol=none if ftol is None else ftol,
        xtol=none if xtol is None else xtol,
        gtol=none if gtol is None else gtol,
        solver_tolerance=solver_tolerance,
        solver_steps=solver_steps,
        method=method,
        chunk_size=chunk_size,
        memory=memory,
    )
    limits = Limits(max_steps, max_evaluations, max_time, started, callback, 2 if geodesic else 1)
    if batches is not None:
        run = on_batches(fit, params, iter(batches), limits)
    else:
        state = limits.affordable(fit.init(params, *args, weights=weights))
        run = on_many(fit, state, limits) if state.problem.lead else on_one(fit, state, limits)
    history: list[Record] = []
    for state, numbers in run:  # noqa: B007 (the last one is the result)
        history.append(numbers.record(len(history), time.perf_counter() - started))
    if batches is not None:
        state = dataclasses.replace(state, code=state.code.masked_fill(state.running, Reason.BATCHES))
    return Solution(state, tuple(history), time.perf_counter() - started)
