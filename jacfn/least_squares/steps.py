"""One step at a time (L4), as pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn.least_squares import many, termination
from jacfn.least_squares.damping import STRATEGIES, Damping, Gain, Level
from jacfn.least_squares.geodesic import bent
from jacfn.least_squares.model import Model, half_square, linearised, norm
from jacfn.least_squares.options import Options
from jacfn.least_squares.passes import Passes
from jacfn.least_squares.problem import ManyProblems, Problem, make_problem, renewed_dims
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.rows import StackedRows
from jacfn.least_squares.solvers import KRYLOV
from jacfn.least_squares.state import State

_ENOUGH = 1e-4  # of what was promised: a step that gains less is rejected


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """A step that was tried: its damping, what was promised, where it leads, the cost there, and what it took."""

    level: Level
    trial: termination.Trial
    x: Tensor
    cost: Tensor
    trusted: Tensor  # whether the expansion along it may be
    evaluations: int


class LevenbergMarquardt:
    """The method of :func:`jacfn.levenberg_marquardt` for loops of one's own: ``init``, ``step`` and ``renew``.

    Each returns a new :class:`~jacfn.least_squares.state.State` and changes nothing. ``state.params``, ``state.cost``,
    ``state.accepted``, ``state.damping`` say where the fit stands; ``state.running`` turns False when a test of
    convergence is met.

    Args:
        fn: ``fn(params, *args) -> residuals``, pure.
        **options: ``in_dims``, ``solver``, ``damping``, ``scaling``, ``initial_damping``, ``geodesic``, ``frozen``,
            ``ftol``, ``xtol``, ``gtol``, ``solver_tolerance``, ``solver_steps``, ``method``, ``chunk_size`` and
            ``memory`` as in :func:`jacfn.levenberg_marquardt`.

    Example:
        >>> import torch
        >>> from jacfn import LevenbergMarquardt
        >>> def rosenbrock(x):
        ...     return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
        >>> fit = LevenbergMarquardt(rosenbrock)
        >>> state = fit.init(torch.tensor([-1.2, 1.0], dtype=torch.float64))
        >>> while state.running:
        ...     state = fit.step(state)
        >>> state.params
        tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        known = {field.name for field in dataclasses.fields(Options)}
        if unknown := sorted(set(options) - known):
            raise JacfnTypeError(f"LevenbergMarquardt has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
        self.fn = fn
        self.options = Options(**options)
        self._strategy: Damping = STRATEGIES[self.options.damping]

    def init(self, params: Any, *args: Any, weights: Any = None) -> State:
        """The state before the first step: ``fn`` and its Jacobian at ``params``.

        Args:
            params: a pytree of floating-point tensors of one dtype.
            *args: further arguments of ``fn``.
            weights: of the squared residuals, with their structure or flat.
        """
        problem = self._problem(params, args, weights, self.options.in_dims)
        x = problem.start
        model, code = self._linearised(problem, x, None)
        if not problem.lead:
            _check_start(model, problem)
        count = torch.ones_like(model.cost, dtype=torch.int64)
        level = self._strategy.start(self.options.initial_damping, model.largest, model.length(x))
        none = torch.full_like(model.cost, torch.nan)
        return State(
            problem=problem,
            x=x,
            model=model,
            level=level,
            steps=0 * count,
            nfev=count,
            njev=count,
            accepted=torch.zeros_like(count, dtype=torch.bool),
            ratio=none,
            first=_no_trial(none),
            code=code,
        )

    def renew(self, state: State, *args: Any, weights: Any = None) -> State:
        """The same parameters and damping on other data, such as the next batch."""
        dims = renewed_dims(self.options.in_dims, state.problem.bound, len(args))
        problem = self._problem(state.params, args, weights, dims)
        model, code = self._linearised(problem, state.x, state.model.scale)
        return dataclasses.replace(
            state,
            problem=problem,
            model=model,
            nfev=state.nfev + 1,
            njev=state.njev + 1,
            first=_no_trial(model.cost),
            code=code,
        )

    def step(self, state: State) -> State:
        """One trial step: taken where it lowers the cost enough, else ``λ`` grows and the Jacobian is kept."""
        model, running = state.model, state.running
        attempt = self._attempt(state)
        actual, trial = model.cost - attempt.cost, attempt.trial
        ratio = actual / trial.promised
        good = attempt.cost.isfinite() & (trial.promised > 0) & (ratio > _ENOUGH)
        tried = running & attempt.trusted & good
        taken, new, arrival = self._moved(state.problem, attempt.x, model, tried)
        level = self._level(attempt.level, model, ratio, trial, taken)
        first = many.where(state.first.promised.isnan(), trial, state.first)
        outcome = termination.Outcome(
            taken,
            model.cost,
            actual,
            trial,
            first,
            model.length(state.x),
            attempt.level.value,
            level.value,
            model.largest,
        )
        code = termination.after_step(outcome, self.options, state.x.dtype)
        code = torch.where(arrival > 0, arrival, code)
        x = torch.where(taken.unsqueeze(-1), attempt.x, state.x)
        return State(
            problem=state.problem,
            x=x,
            model=new,
            level=many.where(running, level, state.level),
            steps=state.steps + running,
            nfev=state.nfev + attempt.evaluations * running,
            njev=state.njev + tried,
            accepted=taken,
            ratio=torch.where(running, ratio, state.ratio),
            first=many.where(taken, _no_trial(ratio), first),
            code=torch.where(running, code, state.code),
        )

    def _attempt(self, state: State) -> _Attempt:
        """A step, and the cost where it leads."""
        model = state.model
        level, damped, z = self._strategy.damp(state.level, model.solver, model.scaled_gradient)
        trial = termination.Trial(model.promised(z, level.value), norm(z))
        trusted, evaluations = torch.ones_like(state.accepted), 1
        if self.options.geodesic:
            z, trusted = bent(state.problem, state.x, model, damped, z)
            evaluations = 2
        x = state.x + model.system.unscale(z).to(state.x.dtype)
        return _Attempt(level, trial, x, half_square(state.problem.residuals(x)), trusted, evaluations)

    def _level(self, level: Level, model: Model, ratio: Tensor, trial: termination.Trial, taken: Tensor) -> Level:
        """The damping of the next step."""
        gain = Gain(ratio, trial.promised, trial.length, model.largest)
        return many.where(taken, self._strategy.accepted(level, gain), self._strategy.rejected(level, gain))

    def _problem(self, params: Any, args: tuple[Any, ...], weights: Any, in_dims: Any) -> Problem:
        options = self.options
        passes = Passes(options.method, options.chunk_size, options.memory)
        problem = make_problem(self.fn, params, args, in_dims, options.frozen, weights, passes)
        if isinstance(problem, ManyProblems) and options.solver in KRYLOV:
            raise JacfnValueError(
                f"solver={options.solver!r} takes one problem, and in_dims has an axis of them for params: "
                "use 'auto', 'qr', 'cholesky' or 'dual'"
            )
        return problem

    def _moved(self, problem: Problem, x: Tensor, model: Model, tried: Tensor) -> tuple[Tensor, Model, Tensor]:
        """What is taken of the trials, the linearisation where that leads, and codes for it.

        A step whose cost is not good enough costs no linearisation. One to where that is not finite is not taken
        either: no step could follow.
        """
        none = torch.zeros_like(tried, dtype=torch.int64)
        if not bool(tried.any()):
            return tried, model, none
        if not isinstance(problem, ManyProblems):
            new, code = self._linearised(problem, x, model.scale)
            return (torch.zeros_like(tried), model, none) if code == Reason.NON_FINITE else (tried, new, code)
        index = tried.nonzero()[:, 0]
        scale = None if model.scale is None else model.scale[index]
        new, code = self._linearised(problem.take(index), x[index], scale)
        good = (code != Reason.NON_FINITE).nonzero()[:, 0]
        index = index[good]
        if len(index) < len(x):
            new = many.put(model, index, many.take(new, good))
        return torch.zeros_like(tried).index_fill(0, index, True), new, none.index_copy(0, index, code[good])

    def _linearised(self, problem: Problem, x: Tensor, scale: Tensor | None) -> tuple[Model, Tensor]:
        """At new points, with codes for them."""
        model = linearised(problem, x, self.options, scale)
        code = termination.at_point(model, self.options)
        return (_without_nonsense(model) if problem.lead else model), code


def _no_trial(like: Tensor) -> termination.Trial:
    none = torch.full_like(like, torch.nan)
    return termination.Trial(none, none)


def _check_start(model: Model, problem: Problem) -> None:
    """Residuals and Jacobian must be finite."""
    wrong = int((~model.residual.isfinite()).sum())
    if wrong:
        raise JacfnValueError(
            f"params: the residuals at the start are not finite ({wrong} of {model.residual.numel()}); start "
            "elsewhere, or mend fn"
        )
    if not bool(model.finite):
        bad = torch.split(~model.norms.isfinite(), [kind.size for kind in problem.kinds])
        names = [problem.names[i] or "params" for i, part in zip(problem.free, bad, strict=True) if bool(part.any())]
        raise JacfnValueError(
            f"params: the Jacobian at the start is not finite, in {', '.join(names) or 'its products'}; start "
            "elsewhere (a square root or a norm has no derivative at zero), or mend fn"
        )


def _without_nonsense(model: Model) -> Model:
    """Zeros in the place of problems that are not finite: matrices are factored for all problems at once.

    The cost stays as it is.
    """
    finite = model.finite
    if bool(finite.all()):
        return model
    assert isinstance(model.rows, StackedRows)

    def kept(x: Tensor, other: float = 0.0) -> Tensor:
        return torch.where(finite.reshape(-1, *(1,) * (x.ndim - 1)), x, other)

    return dataclasses.replace(
        model,
        residual=kept(model.residual),
        rows=StackedRows(kept(model.rows.dense)),
        gradient=kept(model.gradient),
        norms=kept(model.norms),
        scale=None if model.scale is None else kept(model.scale, 1.0),
    )
