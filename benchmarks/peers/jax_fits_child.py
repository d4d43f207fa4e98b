"""Fits in JAX, in a process of its own: it has no PyTorch, and this file imports nothing of the project.

``python jax_fits_child.py FOLDER`` reads ``task.json`` and ``data.npz`` there, saves what each solver found, and prints
the rest as JSON. ``sinc``: steps of each solver, with the weights and the seconds after each. ``curves``: all curves at
once by ``vmap``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: From starting weights to an iterator over weights after each step.
Steps = Callable[[Any], Iterator[Any]]


def main(folder: Path) -> None:
    """Run all solvers of the part."""
    task = json.loads((folder / "task.json").read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])  # JAX takes a thread for each core
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", task["part"] == "curves")
    data = {name: jax.numpy.asarray(value) for name, value in np.load(folder / "data.npz").items()}
    ways, run = {"sinc": (sinc, timed_steps), "curves": (curves, timed_calls)}[task["part"]]
    results: dict[str, Any] = {}
    for number, (name, prepare) in enumerate(ways.items()):
        try:
            results[name] = run(prepare(data), data, task, folder / str(number))
        except Exception as error:
            said = next(iter(str(error).splitlines()), "").partition(" (/")[0]  # without the path of a file
            results[name] = {"error": f"{type(error).__name__}: {said}"}
    print(json.dumps({"version": jax.__version__, "results": results}))


# --- steps on one problem -------------------------------------------------------------------------


def timed_steps(steps: Steps, data: dict[str, Any], task: dict[str, Any], path: Path) -> Any:
    """Two runs; the first one compiles."""
    import jax
    import numpy as np

    saved = []
    for number in range(2):
        begin = time.perf_counter()
        seconds, weights = [0.0], [np.asarray(data["start"])]
        for now in steps(data["start"]):
            weights.append(np.asarray(jax.block_until_ready(now)))
            seconds.append(time.perf_counter() - begin)
            if seconds[-1] > task["limit"]:
                break
        saved.append(f"{path.name}-{number}.npz")
        np.savez(path.with_name(saved[-1]), seconds=seconds, weights=weights)
    return {"saved": saved}


def network(weights: Any, x: Any) -> Any:
    """1-20-1 with tanh, flat weights in PyTorch's order."""
    import jax.numpy as jnp

    width = (len(weights) - 1) // 3
    inner, shift, outer, last = jnp.split(weights, [width, 2 * width, 3 * width])
    return jnp.tanh(x * inner + shift) @ outer + last


def _jaxopt_steps(data: dict[str, Any]) -> Steps:
    import jax
    from jaxopt import LevenbergMarquardt

    def residuals(weights: Any) -> Any:
        return network(weights, data["x"]) - data["y"][:, 0]

    solver = LevenbergMarquardt(residuals, materialize_jac=True, solver="cholesky")
    start, update = jax.jit(solver.init_state), jax.jit(solver.update)

    def steps(weights: Any) -> Iterator[Any]:
        state = start(weights)
        while True:
            weights, state = update(weights, state)
            yield weights

    return steps


def _optimistix_steps(data: dict[str, Any]) -> Steps:
    import equinox as eqx
    import jax
    import optimistix as optx

    def residuals(weights: Any, args: Any) -> Any:
        return network(weights, data["x"]) - data["y"][:, 0], None

    solver = optx.LevenbergMarquardt(rtol=0.0, atol=0.0)
    shape = jax.eval_shape(lambda weights: residuals(weights, None)[0], data["start"])
    common = {"fn": residuals, "args": None, "options": {}, "tags": frozenset()}
    start = eqx.filter_jit(eqx.Partial(solver.init, f_struct=shape, aux_struct=None, **common))
    step = eqx.filter_jit(eqx.Partial(solver.step, **common))

    def steps(weights: Any) -> Iterator[Any]:
        state = start(y=weights)
        while True:
            weights, state, _ = step(y=weights, state=state)
            yield weights

    return steps


sinc = {"jaxopt LM (cholesky)": _jaxopt_steps, "optimistix LM (qr)": _optimistix_steps}


# --- many problems at once ------------------------------------------------------------------------


def timed_calls(call: Callable[[], Any], data: dict[str, Any], task: dict[str, Any], path: Path) -> Any:
    """The first call, which compiles, and the fastest of three more."""
    import jax
    import numpy as np

    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    np.save(path.with_suffix(".npy"), result)
    return {"saved": f"{path.name}.npy", "first": seconds[0], "seconds": min(seconds[1:])}


def _decay(p: Any, t: Any, y: Any) -> Any:
    import jax.numpy as jnp

    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def _jaxopt_curves(data: dict[str, Any]) -> Callable[[], Any]:
    import jax
    from jaxopt import LevenbergMarquardt

    tolerance = {"stop_criterion": "madsen-nielsen", "xtol": 1e-8, "gtol": 1e-8}
    solver = LevenbergMarquardt(_decay, materialize_jac=True, solver="cholesky", maxiter=100, **tolerance)
    fit = jax.jit(jax.vmap(lambda start, y: solver.run(start, data["t"], y).params))
    return lambda: fit(data["start"], data["y"])


def _optimistix_curves(data: dict[str, Any]) -> Callable[[], Any]:
    import jax
    import optimistix as optx

    solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    def one(start: Any, y: Any) -> Any:
        found = optx.least_squares(lambda p, y: _decay(p, data["t"], y), solver, start, y, max_steps=100, throw=False)
        return found.value

    fit = jax.jit(jax.vmap(one))
    return lambda: fit(data["start"], data["y"])


curves = {"jaxopt LM, vmap": _jaxopt_curves, "optimistix LM, vmap": _optimistix_curves}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
