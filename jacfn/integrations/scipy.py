"""SciPy's least-squares solvers with exact Jacobians (L5)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jacfn import _tree
from jacfn._binding import bind
from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn._memory import Budget
from jacfn.integrations._missing import MissingPackageError
from jacfn.operator.build import Method, jacobian_operator
from jacfn.operator.jacobian import JacobianOperator

try:
    from scipy import optimize
    from scipy.sparse.linalg import LinearOperator
except ImportError as error:
    raise MissingPackageError("SciPy", "pip install 'jacfn[scipy]'") from error

Array = NDArray[np.float64]


@dataclasses.dataclass
class _Point:
    """What is known at one vector."""

    x: Array
    value: Array | None = None
    jacobian: JacobianOperator | None = None


class Residuals:
    """A function of pytrees and its Jacobian as SciPy wants them: functions of one flat NumPy vector.

    What was evaluated at the latest vector is kept: its residuals are evaluated once, by ``fun`` or in the pass that
    makes the Jacobian, whichever is asked for first.

    Args:
        fn: ``fn(params, *args) -> residuals``, pure; a pytree of tensors of the dtype of ``params``.
        params: the start, a pytree of tensors.
        args: what ``fn`` takes besides.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`; ``params`` are shared by them.
        jac_method: how the Jacobian is made, as ``method`` of :func:`jacfn.jacobian_operator`.
        operator: hand over a :class:`scipy.sparse.linalg.LinearOperator` in place of a dense matrix.
        memory: a budget for what is allocated beyond inputs and results, as in :func:`jacfn.jacobian_operator`.

    Attributes:
        x0: ``params`` as a flat vector ``(P,)``.

    Raises:
        JacfnError: an argument does not fit; the message names it.

    Computed in the dtype and on the device of ``params``; vectors and matrices are float64 on the side of SciPy.

    Example:
        >>> import scipy.optimize, torch
        >>> from jacfn.integrations.scipy import Residuals
        >>> def circle(p, angle):
        ...     return torch.stack([p["radius"] * angle.cos() - 3, p["radius"] * angle.sin() - 4])
        >>> problem = Residuals(circle, {"radius": torch.tensor(1.0).double()}, torch.tensor(0.9).double())
        >>> found, _ = scipy.optimize.leastsq(problem.fun, problem.x0, Dfun=problem.jac)
        >>> problem.params(found)
        {'radius': tensor(4.9981, dtype=torch.float64)}
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,
        *args: Any,
        in_dims: Any = None,
        jac_method: Method = "auto",
        operator: bool = False,
        memory: Budget = None,
    ) -> None:
        self._bound = bind(fn, 0, (params, *args), {}, in_dims=in_dims).detach()
        if any(self._bound.leaves_mapped):
            raise JacfnValueError(
                "in_dims maps params over samples, which makes as many problems, and SciPy solves one at a time: give "
                "None for params, or call it for each sample"
            )
        self._fn, self._args, self._operator = fn, args, operator
        self._options: dict[str, Any] = {"in_dims": in_dims, "method": jac_method, "memory": memory}
        self.x0 = np.concatenate([_numpy(leaf).reshape(-1) for leaf in self._bound.leaves])
        self._point = _Point(np.empty(0))

    def params(self, x: Any) -> Any:
        """The vector in the structure, dtype and on the device of the start."""
        kinds = self._bound.leaf_types
        parts = np.split(np.asarray(x, float), np.cumsum([kind.size for kind in kinds])[:-1])
        leaves = [
            torch.tensor(part, dtype=kind.dtype, device=kind.device).reshape(kind.shape)
            for part, kind in zip(parts, kinds, strict=True)
        ]
        return _tree.unflatten(self._bound.spec, leaves)

    def fun(self, x: Any) -> Array:
        """The residuals at ``x``, ``(M,)``: samples outermost."""
        point = self._at(x)
        if point.value is None:
            bound = self._bound.replace(_tree.flatten(self.params(x))[0], self._bound.data, self._bound.samples)
            with torch.no_grad():
                point.value = self._rows(bound.vmapped(bound.call, "error")(bound.leaves, bound.data)[0])
        return point.value.copy()  # robust losses are applied in place

    def jac(self, x: Any) -> Any:
        """Their Jacobian at ``x``, ``(M, P)``: an array of its own at each call, or an operator."""
        point = self._at(x)
        if point.jacobian is None:
            point.jacobian = jacobian_operator(
                self._fn, self.params(x), *self._args, **self._options, differentiable=False
            )
            point.value = self._rows(_tree.flatten(point.jacobian.value)[0])
        return _double(point.jacobian) if self._operator else _numpy(point.jacobian.materialize())

    def _at(self, x: Any) -> _Point:
        if not np.array_equal(x, self._point.x):
            self._point = _Point(np.array(x, float))
        return self._point

    def _rows(self, leaves: list[Tensor]) -> Array:
        """``(M,)``, in the order of the rows."""
        n = 1 if self._bound.samples is None else self._bound.samples
        return _numpy(torch.cat([leaf.reshape(n, -1) for leaf in leaves], 1).reshape(-1))


def least_squares(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    in_dims: Any = None,
    jac_method: Method = "auto",
    operator: bool = False,
    memory: Budget = None,
    **options: Any,
) -> Any:
    """Minimise ``½ Σ rho(fn(params, *args)²)`` by :func:`scipy.optimize.least_squares`.

    Args:
        fn: ``fn(params, *args) -> residuals``, pure; a pytree of tensors of the dtype of ``params``.
        params: the start, a pytree of tensors.
        args: what ``fn`` takes besides.
        in_dims: which arguments carry samples, as in :func:`torch.func.vmap`; ``params`` are shared by them.
        jac_method: how the Jacobian is made, as ``method`` of :func:`jacfn.jacobian_operator`.
        operator: give SciPy products with the Jacobian, which is never formed; ``trf`` and ``dogbox`` then solve for
            their steps by LSMR.
        memory: a budget for what is allocated beyond inputs and results, as in :func:`jacfn.jacobian_operator`.
        options: those of SciPy: ``method``, ``loss``, ``f_scale``, ``ftol``, ``max_nfev`` and so on. ``bounds`` is a
            pair, and each of the two, as ``x_scale``, is a number, a flat vector, or a pytree that is a prefix of the
            structure of ``params`` and holds numbers, tensors of the leaves' shapes, or None where there is no bound.

    Returns:
        SciPy's :class:`scipy.optimize.OptimizeResult`, with one entry more: ``params``, the minimiser in the structure
        and dtype of the start (``x`` is the flat vector).

    Raises:
        JacfnError: an argument does not fit, or SciPy's method has no room for it; the message says what does.

    Cost: an evaluation of ``fn`` for each trial step and a Jacobian for each accepted one. With ``operator`` a step
    takes a product ``J v`` and a product ``Jᵀ u`` for each iteration of LSMR, and SciPy holds no ``(M, P)`` matrix.

    ``fn`` is computed in the dtype of ``params``, SciPy's part in float64. In float32 residuals are good to seven
    digits: SciPy's tolerances of 1e-8 are then below what can be reached, and 1e-6 is a fair choice.

    Example:
        >>> import torch
        >>> from jacfn.integrations.scipy import least_squares
        >>> t = torch.linspace(0, 3, 30, dtype=torch.float64)
        >>> y = 2 * torch.exp(-0.7 * t)
        >>> y[4] += 10  # an outlier
        >>> def residual(p, t, y):
        ...     return p["height"] * torch.exp(-p["rate"] * t) - y
        >>> start = {"height": torch.tensor(1.0).double(), "rate": torch.tensor(1.0).double()}
        >>> options = {"loss": "cauchy", "f_scale": 0.01, "bounds": (0, None)}
        >>> fit = least_squares(residual, start, t, y, in_dims=(None, 0, 0), **options)
        >>> fit.success, {name: round(value.item(), 4) for name, value in fit.params.items()}
        (True, {'height': 2.0, 'rate': 0.7})

    See Branch, Coleman and Li (1999, doi:10.1137/S1064827595289108) on ``trf``.
    """
    problem = Residuals(fn, params, *args, in_dims=in_dims, jac_method=jac_method, operator=operator, memory=memory)
    _refuse("least_squares", options, ("jac", "diff_step", "jac_sparsity", "workers", "args", "kwargs"))
    if "bounds" in options:
        lower, upper = _pair(options["bounds"])
        options["bounds"] = _flat(lower, params, "bounds[0]", -np.inf), _flat(upper, params, "bounds[1]", np.inf)
    if not isinstance(options.get("x_scale"), str | None):
        options["x_scale"] = _flat(options["x_scale"], params, "x_scale", 1.0)
    _check(options, operator)
    result = optimize.least_squares(problem.fun, problem.x0, problem.jac, **options)
    result.params = problem.params(result.x)
    return result


def curve_fit(
    f: Callable[..., Tensor],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    in_dims: int | None = None,
    jac_method: Method | None = None,
    **options: Any,
) -> Any:
    """Fit ``ydata`` by ``f(xdata, *parameters)`` with :func:`scipy.optimize.curve_fit` and the exact Jacobian.

    Args:
        f: written in torch: takes ``xdata`` as a float64 tensor and each parameter as a 0-d one, and returns ``(M,)``,
            or one number for all points; with ``in_dims``, a function of one point.
        xdata: where the data were taken, a tensor or what SciPy takes.
        ydata: the data, ``(M,)``.
        p0: the start, ``(P,)``; None: ones, as many as ``f`` has parameters (inside the bounds, if there are any).
        sigma: the standard deviations of ``ydata``, ``(M,)``, or their covariance matrix ``(M, M)``.
        absolute_sigma: False: ``sigma`` holds relative weights, and the covariance is scaled by the residual variance.
        in_dims: the axis of ``xdata`` along which the points stand. All of them then share one backward pass, which
            makes the Jacobian of many points several times cheaper. A formula that takes each point by itself may stay
            as it is.
        jac_method: how the Jacobian is made, as ``method`` of :func:`jacfn.jacobian_operator`; None: ``"fwd"``, and
            ``"rev"`` with ``in_dims``.
        options: those of SciPy: ``bounds``, ``method``, ``loss``, ``nan_policy``, ``full_output`` and so on.

    Returns:
        ``(popt, pcov)``, NumPy arrays ``(P,)`` and ``(P, P)``; with ``full_output``, what SciPy returns then.

    Raises:
        JacfnTypeError: ``jac`` is among the options.
        RuntimeError: SciPy found no minimum.

    Cost: an evaluation of ``f`` for each trial step. For a Jacobian one forward-mode pass for each parameter, or one
    backward pass with ``in_dims``, and one or two milliseconds: formulas of few points are fitted faster by SciPy's
    own differences.

    Example:
        >>> import torch
        >>> from jacfn.integrations.scipy import curve_fit
        >>> x = torch.linspace(0, 4, 50, dtype=torch.float64)
        >>> y = 2.5 * torch.exp(-1.3 * x) + 0.5
        >>> popt, pcov = curve_fit(lambda x, a, b, c: a * torch.exp(-b * x) + c, x, y)
        >>> popt.round(6), pcov.shape
        (array([2.5, 1.3, 0.5]), (3, 3))
    """
    _refuse("curve_fit", options, ("jac",))
    device = xdata.device if isinstance(xdata, Tensor) else None
    given = [_numpy(data) if isinstance(data, Tensor) else data for data in (xdata, ydata, p0, sigma)]
    problem: Residuals | None = None

    def at(x: Any, count: int) -> Residuals:  # SciPy hands over the same x each time, rid of NaN where asked
        nonlocal problem
        if problem is None:
            data = torch.as_tensor(x, device=device) if isinstance(x, np.ndarray) else x
            start = torch.ones(count, dtype=torch.float64, device=device)
            dims = None if in_dims is None else (None, in_dims)
            method = jac_method or ("fwd" if in_dims is None else "rev")
            # SciPy leaves points out along the last axis.
            points = np.size(given[1]) if np.shape(x) == np.shape(given[0]) else np.shape(x)[-1]

            def model(p: Tensor, x: Any) -> Tensor:
                value = f(x, *p.unbind())
                constant = in_dims is None and isinstance(value, Tensor) and value.numel() == 1
                return value.reshape(1).expand(points) if constant else value

            problem = Residuals(model, start, data, in_dims=dims, jac_method=method)
        return problem

    @functools.wraps(f)  # for SciPy counts its parameters
    def values(x: Any, *p: float) -> Array:
        return at(x, len(p)).fun(p)

    def derivatives(x: Any, *p: float) -> Any:
        return at(x, len(p)).jac(p)

    return optimize.curve_fit(values, *given, absolute_sigma=absolute_sigma, jac=derivatives, **options)


def _refuse(function: str, options: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in options:
            raise JacfnTypeError(
                f"{name} cannot be given: the Jacobian here is exact and jacfn's, and fn takes its arguments by "
                f"position; call scipy.optimize.{function} for another one"
            )


def _check(options: dict[str, Any], operator: bool) -> None:
    """Refuse what SciPy refuses, and say what goes instead."""
    if options.get("method") == "lm":
        if operator:
            raise JacfnValueError(
                "operator=True: SciPy's method 'lm' needs the dense Jacobian; take 'trf' or 'dogbox', or operator=False"
            )
        if any(np.isfinite(side).any() for side in options.get("bounds", ())):
            raise JacfnValueError("bounds: SciPy's method 'lm' has none; take 'trf' or 'dogbox'")
        if options.get("loss", "linear") != "linear":
            raise JacfnValueError(
                f"loss={options['loss']!r}: SciPy's method 'lm' minimises plain squares; take 'trf' or 'dogbox'"
            )
    if operator and options.get("tr_solver") == "exact":
        raise JacfnValueError("tr_solver='exact' decomposes the dense Jacobian: take 'lsmr', or operator=False")
    if operator and options.get("x_scale") == "jac":
        raise JacfnValueError(
            "x_scale='jac' reads the columns of the Jacobian, which operator=True does not form: give numbers, such as "
            "1 / jacobian_operator(fn, params, ...).column_norms()"
        )


def _pair(bounds: Any) -> tuple[Any, Any]:
    if isinstance(bounds, optimize.Bounds):
        return bounds.lb, bounds.ub
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise JacfnTypeError(f"bounds must be a pair (lower, upper), got {bounds!r}")
    return bounds[0], bounds[1]


def _flat(given: Any, params: Any, what: str, default: float) -> Array:
    """``(P,)`` from a number, a flat vector, or a prefix of the structure of ``params``; None is ``default``."""
    leaves = _tree.flatten(params)[0]
    size = sum(leaf.numel() for leaf in leaves)
    if _is_vector(given, size):
        return np.array([_number(entry, default) for entry in given], float)
    parts = []
    for entry, leaf in zip(_tree.broadcast_prefix(given, params, what), leaves, strict=True):
        part = np.asarray(_number(entry, default), float)
        if part.shape not in ((), tuple(leaf.shape)):
            raise JacfnValueError(
                f"{what} must hold numbers or tensors of the shapes of the leaves, or be flat, of shape ({size},); got "
                f"the shape {part.shape} for a leaf of shape {tuple(leaf.shape)}"
            )
        parts.append(np.broadcast_to(part, leaf.shape).reshape(-1))
    return np.concatenate(parts)


def _is_vector(given: Any, size: int) -> bool:
    if isinstance(given, list | tuple):
        return len(given) == size and all(entry is None or np.ndim(entry) == 0 for entry in given)
    return isinstance(given, np.ndarray | Tensor) and tuple(given.shape) == (size,)


def _number(entry: Any, default: float) -> Any:
    return default if entry is None else _numpy(entry) if isinstance(entry, Tensor) else entry


def _numpy(tensor: Tensor) -> Array:
    """In double precision, on the same memory where that is possible."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array


def _double(operator: JacobianOperator) -> Any:
    """For SciPy, with vectors in double precision."""
    inner = operator.as_scipy()
    if inner.dtype == np.float64:
        return inner

    def with_double(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda v: product(v).astype(np.float64)

    return LinearOperator(
        inner.shape,
        matvec=with_double(inner.matvec),
        rmatvec=with_double(inner.rmatvec),
        matmat=with_double(inner.matmat),
        rmatmat=with_double(inner.rmatmat),
        dtype=np.float64,
    )
