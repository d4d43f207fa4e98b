"""The demonstration from beginning to end, as it appears on the terminal.

Its own words keep to ASCII: the output may go to a file or a pipe of any encoding.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jacfn._demo.compare import CAPTION, RUNS, compare, table
from jacfn._demo.fit import Fit, Step, fit
from jacfn._demo.picture import save
from jacfn._demo.problems import Problem, load


def run(data: str, memory: str, steps: int, out: Path, seed: int, device: str) -> None:
    """Compare the transforms, fit the network, save the picture."""
    console = Console(highlight=False)
    problem = load(data, seed, device)
    console.print(f"{problem.about} ({device}, float64)", soft_wrap=True)
    with console.status("one Jacobian by four methods", spinner="line", refresh_per_second=4):
        rows = compare(problem, memory)
    console.print(table(rows))
    console.print(CAPTION.format(runs=RUNS, memory=memory), end="\n\n", soft_wrap=True)

    fitted = _fit(console, problem, steps, memory)
    tried = fitted.steps[-1].number
    if tried < steps:
        console.print(f"stopped after {tried} steps: no decrease is left that rounding would not hide")
    console.print(_verdict(problem, fitted))
    save(fitted, problem.about, out)
    console.print(f"picture: {out}", soft_wrap=True)


def _fit(console: Console, problem: Problem, steps: int, memory: str) -> Fit:
    """Fit with a progress bar; where there is no terminal to draw it on, with a few lines instead."""
    progress = Progress(
        BarColumn(bar_width=10),  # narrow, for all of the line to fit in 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def report(step: Step) -> None:
        progress.update(task, completed=step.number, description=_line(problem, step))
        if not console.is_terminal and (step.number % 5 == 0 or step.number == steps):
            console.print(f"step {step.number:3d}  {_line(problem, step)}")

    with progress:
        task = progress.add_task("", total=steps)
        return fit(problem, steps, memory, report)


def _line(problem: Problem, step: Step) -> str:
    held_out = f"held-out {problem.score_name} {_score(problem, step.score)}"
    return f"loss {step.loss:.4f} damping {step.damping:.1e} {held_out}"


def _verdict(problem: Problem, fitted: Fit) -> str:
    """The held-out score of the fit beside those that need no network."""
    scores = {"network": fitted.steps[-1].score, **problem.baselines}
    return f"held-out {problem.score_name}: " + ", ".join(
        f"{name} {_score(problem, value)}" for name, value in scores.items()
    )


def _score(problem: Problem, value: float) -> str:
    return f"{value:.1%}" if problem.score_name == "accuracy" else f"{value:.2f}"
