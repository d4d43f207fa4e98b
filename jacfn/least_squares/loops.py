"""Steps until something ends the fit (L4)."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from jacfn._errors import JacfnTypeError, JacfnValueError
from jacfn.least_squares import many
from jacfn.least_squares.history import Numbers
from jacfn.least_squares.problem import ManyProblems
from jacfn.least_squares.reason import Reason
from jacfn.least_squares.state import State
from jacfn.least_squares.steps import LevenbergMarquardt


@dataclasses.dataclass(frozen=True)
class Limits:
    """What ends a fit beside its tests."""

    max_steps: int
    max_evaluations: int | None
    max_time: float | None
    started: float
    callback: Callable[[State], Any] | None
    each: int = 1

    def affordable(self, state: State, more: int = 0) -> State:
        """With the code of those that have no evaluations left for a step, and ``more`` before it."""
        if self.max_evaluations is None:
            return state
        full = state.running & (state.nfev + self.each + more > self.max_evaluations)
        return dataclasses.replace(state, code=state.code.masked_fill(full, Reason.MAX_EVALUATIONS))

    def applied(self, state: State, shown: Callable[[], State] | None = None, more: int = 0) -> State:
        """With the codes of the limits that are reached; ``shown`` makes what the callback sees."""
        state = self.affordable(state, more)
        code, running = state.code, state.running
        code = code.masked_fill(running & (state.steps >= self.max_steps), Reason.MAX_STEPS)
        if self.max_time is not None and time.perf_counter() - self.started > self.max_time:
            code = code.masked_fill(running, Reason.MAX_TIME)
        if self.callback is not None and self._stops(state if shown is None else shown()):
            code = code.masked_fill(running, Reason.CALLBACK)
        return dataclasses.replace(state, code=code)

    def _stops(self, state: State) -> bool:
        assert self.callback is not None
        answer = self.callback(state)
        if isinstance(answer, Tensor) and answer.numel() != 1:
            raise JacfnTypeError(
                f"callback must return whether to stop the whole fit, got a tensor of shape {tuple(answer.shape)}: "
                "take its any() or all()"
            )
        return bool(answer)


Run = Iterator[tuple[State, Numbers]]


def on_one(fit: LevenbergMarquardt, state: State, limits: Limits) -> Run:
    """Of one problem."""
    yield state, Numbers.of(state)
    while bool(state.running):
        state = limits.applied(fit.step(state))
        yield state, Numbers.of(state)


def on_many(fit: LevenbergMarquardt, whole: State, limits: Limits) -> Run:
    """Of many problems; when half of those at work have ended, they are set aside.

    Only the last state that is given is up to date; the numbers always are.
    """
    part, active = whole, torch.arange(len(whole.code), device=whole.code.device)
    numbers = Numbers.of(whole)
    yield whole, numbers
    while len(active):
        part = fit.step(part)
        part = limits.applied(part, functools.partial(_put, whole, active, part))
        numbers = many.put(numbers, active, Numbers.of(part))
        left = part.running.nonzero()[:, 0]
        if 2 * len(left) <= len(active):
            whole = _put(whole, active, part)
            part, active = _take(part, left), active[left]
        yield whole, numbers


def on_batches(fit: LevenbergMarquardt, params: Any, batches: Iterator[Any], limits: Limits) -> Run:
    """A step on each batch."""
    state: State | None = None
    for batch in batches:
        if not isinstance(batch, tuple):
            raise JacfnTypeError(f"batches must give tuples of arguments for fn, got {type(batch).__name__}")
        if state is None:
            state = limits.affordable(fit.init(params, *batch))
            yield state, Numbers.of(state)
            if bool((state.code == Reason.MAX_EVALUATIONS).all()):
                return
        else:
            state = fit.renew(state, *batch)
        before, state = state, fit.step(state)
        state = dataclasses.replace(state, steps=before.steps + 1)  # also where a batch leaves nothing to gain
        ended = (state.code == Reason.DAMPING) | (state.code == Reason.NON_FINITE)
        state = dataclasses.replace(state, code=torch.where(ended, state.code, Reason.RUNNING))
        state = limits.applied(state, more=1)  # the next batch has to be evaluated, too
        yield state, Numbers.of(state)
        if not bool(state.running.any()):
            return
    if state is None:
        raise JacfnValueError("batches must give at least one tuple of arguments for fn, got none")


def _take(state: State, index: Tensor) -> State:
    assert isinstance(state.problem, ManyProblems)
    return dataclasses.replace(many.take(_bare(state), index), problem=state.problem.take(index))


def _put(state: State, index: Tensor, part: State) -> State:
    return dataclasses.replace(many.put(_bare(state), index, _bare(part)), problem=state.problem)


def _bare(state: State) -> State:
    """Without the problem, which knows itself what belongs to each of its samples."""
    return dataclasses.replace(state, problem=None)  # type: ignore[arg-type]
