"""The time of a step: the same one by jacfn, by hand and by torch-levenberg-marquardt, and jacfn's own defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

import jacfn

from .. import timing
from ..methods import Method, Run
from ..operators.compare import Compared, Part, at_least, compare, over
from ..operators.compare import section as section_of
from ..peers import torch_levenberg_marquardt as peer
from ..works import Work
from . import problems
from .problems import IN_DIMS, Problem

#: λ over the number of samples: what torch-levenberg-marquardt starts with.
DAMPING = 1e-3

OURS, DEFAULT, BY_HAND = "jacfn, the same step", "jacfn, default options", "by hand, vmap(jacrev)"
CHOLESKY, QR = "torch-levenberg-marquardt, cholesky", "torch-levenberg-marquardt, qr"

# --- the ways -------------------------------------------------------------------------------------


def _problem(work: Work) -> Problem:
    """That of a work; only the targets are made anew."""
    y = torch.sinc(10 * work.x) if work.name == "sinc" else problems.wide().y
    return Problem(work, y)


def _step(work: Work, **options: Any) -> Run:
    """The first step that is accepted; what the linearisation has reduced for an earlier call is forgotten."""
    problem = _problem(work)
    fit = jacfn.LevenbergMarquardt(problem.residual, in_dims=IN_DIMS, **options)
    state = fit.init(work.params, *problem.data)
    while not bool((new := fit.step(state)).accepted):  # only λ grows
        state = new

    def run() -> dict[str, Tensor]:
        new = fit.step(dataclasses.replace(state, model=dataclasses.replace(state.model)))
        assert bool(new.accepted)
        return {"weights": new.x}

    return run


def _ours(work: Work) -> Run:
    """With the damping of torch-levenberg-marquardt, here a multiple of the largest diagonal element of JᵀJ."""
    problem = _problem(work)
    start = jacfn.LevenbergMarquardt(problem.residual, in_dims=IN_DIMS, scaling="none")
    largest = float(start.init(work.params, *problem.data).model.largest)
    damping = DAMPING * len(work.x) / largest
    return _step(work, scaling="none", solver=_solver(work), initial_damping=damping)


def _solver(work: Work) -> str:
    return "dual" if work.rows < work.columns else "cholesky"


def _by_hand(work: Work) -> Run:
    """The same with torch.func alone: a dense Jacobian, and the smaller of JᵀJ and J Jᵀ."""
    problem = _problem(work)
    dense = vmap(jacrev(problem.residual), IN_DIMS)
    start, damping = problem.start, DAMPING * len(work.x)

    def run() -> dict[str, Tensor]:
        leaves = dense(work.params, *problem.data).values()
        rows = torch.cat([leaf.reshape(work.rows, -1) for leaf in leaves], 1)
        r = problem.residuals(start)
        if work.rows < work.columns:
            h = rows.T @ _solved(rows @ rows.T, damping, r)
        else:
            h = _solved(rows.T @ rows, damping, rows.T @ r)
        new = start - h
        assert problem.residuals(new).norm() < r.norm()
        return {"weights": new}

    return run


def _solved(matrix: Tensor, damping: float, right: Tensor) -> Tensor:
    matrix.diagonal().add_(damping)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(matrix))[:, 0]


def _theirs(solve_method: str) -> Any:
    return lambda work: peer.step(_problem(work), solve_method)


SAME = (
    Method(OURS, _ours, ours=True),
    Method(CHOLESKY, _theirs("cholesky"), skip=peer.missing),
    Method(QR, _theirs("qr"), skip=peer.missing),
    Method(BY_HAND, _by_hand),
)
ALONE = (Method(DEFAULT, _step, ours=True),)

# --- the parts ------------------------------------------------------------------------------------

HOW = """\
From the weights that the network has at first, with float32 data. A step is: a Jacobian, the smaller of JᵀJ and J Jᵀ,
its factorisation with λ added to the diagonal, the step, the residuals there; all are accepted at the first attempt.
All ways but the last make the same step: no scaling of the columns, the λ that torch-levenberg-marquardt starts with;
the weights after it are compared with those by hand. jacfn sums and factors matrices of up to 1024 columns in float64,
the others in float32. jacfn's Jacobian is that at the end of the step, theirs that at its start. default options: with
column scales and jacfn's own λ and choice of the solver, so the weights after it are others. qr: torch-levenberg-
marquardt's default, a QR factorisation of the same matrix."""


def _part(name: str, title: str, wanted: float) -> Part:
    def targets(measured: Compared) -> Iterator[list[str]]:
        for ours in (OURS, DEFAULT):
            text = f"{name}: time of {CHOLESKY} / {ours}"
            yield at_least(text, wanted, over(measured, CHOLESKY, ours))

    return Part(name, title, HOW, (name,), (*SAME, *ALONE), BY_HAND, OURS, targets)


SINC = _part("sinc", "A step on sinc(10 x): 20,000 residuals, 61 weights", 3)
WIDE = _part("wide", "A step of an over-parameterised network: 640 residuals, 235,146 weights", 50)


def measure(part: Part, work: Work, seconds: float) -> Compared:
    """Compare and time the ways to the same step, then time jacfn's defaults."""
    measured = compare(dataclasses.replace(part, methods=SAME), work, seconds)
    runs = {method.name: method.make(work) for method in ALONE}
    measured.seconds |= timing.both_orders(runs, seconds)
    return measured


def section(part: Part, measured: Compared) -> str:
    """The table and the targets."""
    return section_of(part, [measured])
