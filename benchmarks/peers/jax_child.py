"""The works in JAX, timed in a process of its own: it has no PyTorch, and this file imports nothing of the project.

``python jax_child.py FOLDER`` reads ``task.json`` and ``data.npz`` there, saves a result of each method for the
other side to check, and prints the times as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Weights = dict[str, Any]
Run = Callable[[], Any]


def main(folder: Path) -> None:
    """Run the methods that are asked for."""
    task = json.loads((folder / "task.json").read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])  # JAX takes a thread for each core
    import jax
    import numpy as np

    data = np.load(folder / "data.npz")
    weights = {name: jax.numpy.asarray(data[f"weight {name}"]) for name in task["weights"]}
    x = jax.numpy.asarray(data["x"])
    probe = jax.numpy.asarray(data["probe"]) if "probe" in data else None
    runs: dict[str, Run] = {}
    methods: dict[str, Any] = {}
    for number, (name, kind, prepare) in enumerate(_methods(task["net"], task["kinds"])):
        try:
            run = prepare(weights, x)
            result = jax.block_until_ready(run())
            np.save(folder / f"{number}.npy", result @ probe if kind == "flat" else result)
        except Exception as error:
            said = str(error).splitlines()[0].partition(" (/")[0]  # without the path of a file
            methods[name] = {"kind": kind, "error": f"{type(error).__name__}: {said}"}
            continue
        methods[name] = {"kind": kind, "saved": f"{number}.npy"}
        runs[name] = lambda run=run: jax.block_until_ready(run())
    there = {name: _median(run, task["seconds"]) for name, run in runs.items()}
    back = {name: _median(runs[name], task["seconds"]) for name in reversed(list(runs))}
    for name in runs:
        methods[name]["seconds"] = [there[name], back[name]]
    print(json.dumps({"version": jax.__version__, "methods": methods}))


def _median(run: Run, seconds: float) -> float:
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- the methods ----------------------------------------------------------------------------------


def _methods(net: str, kinds: list[str]) -> Iterator[tuple[str, str, Callable[[Weights, Any], Run]]]:
    """Name, kind, and a function from weights and batch to a call."""
    import jax
    import jax.numpy as jnp

    batched = NETWORKS[net]

    def rows(weights: Weights, x: Any) -> list[Any]:
        """The Jacobian's leaves as matrices with samples and outputs outermost."""
        names = list(weights)  # JAX would sort the keys of a dict

        def outputs(leaves: list[Any], sample: Any) -> Any:
            return batched(dict(zip(names, leaves, strict=True)), sample[None])[0]

        leaves = jax.vmap(jax.jacrev(outputs), (None, 0))(list(weights.values()), x)
        return [leaf.reshape(-1, weight.size) for leaf, weight in zip(leaves, weights.values(), strict=True)]

    def compiled(function: Callable[[Weights, Any], Any]) -> Callable[[Weights, Any], Run]:
        def prepare(weights: Weights, x: Any) -> Run:
            names = list(weights)
            call = jax.jit(lambda leaves, x: function(dict(zip(names, leaves, strict=True)), x))
            return lambda: call(list(weights.values()), x)

        return prepare

    def flat(weights: Weights, x: Any) -> Any:
        return jnp.concatenate(rows(weights, x), 1)

    def ntk(weights: Weights, x: Any) -> Any:
        n = len(x)
        gram = sum(leaf @ leaf.T for leaf in rows(weights, x))
        return gram.reshape(n, -1, n, len(gram) // n).transpose(0, 2, 1, 3)

    if "flat" in kinds:
        yield "jit of vmap(jacrev), concatenated", "flat", compiled(flat)
    if "ntk" in kinds:
        yield "jit of vmap(jacrev), J @ J.T of each leaf", "ntk", compiled(ntk)
    if "laplacian" in kinds:

        def of_sample(weights: Weights) -> Callable[[Any], Any]:
            return lambda sample: batched(weights, sample[None])[0, 0]

        def trace(weights: Weights, x: Any) -> Any:
            return jax.vmap(lambda sample: jnp.trace(jax.hessian(of_sample(weights))(sample)))(x)

        def forward(weights: Weights, x: Any) -> Any:
            import folx

            return jax.vmap(lambda sample: folx.forward_laplacian(of_sample(weights))(sample).laplacian)(x)

        yield "jit of vmap(trace of hessian)", "laplacian", compiled(trace)
        yield "jit of vmap(folx.forward_laplacian)", "laplacian", compiled(forward)
    if "neural-tangents" in kinds:
        for name in ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"):

            def prepare(weights: Weights, x: Any, name: str = name) -> Run:
                return _neural_tangents(batched, name, compiled)(weights, x)

            yield f"neural-tangents, {name.lower().replace('_', ' ')}", "ntk", prepare


def _neural_tangents(batched: Any, name: str, compiled: Any) -> Callable[[Weights, Any], Run]:
    # Its experimental part imports TensorFlow, which nothing here needs.
    absent = "neural_tangents.experimental"
    sys.modules.setdefault(absent, types.ModuleType(absent))
    import neural_tangents as nt

    def kernel(weights: Weights, x: Any) -> Any:
        names = list(weights)  # JAX would sort the keys of a dict

        def outputs(leaves: list[Any], x: Any) -> Any:
            return batched(dict(zip(names, leaves, strict=True)), x)

        options = {"trace_axes": (), "vmap_axes": 0, "implementation": nt.NtkImplementation[name]}
        return nt.empirical_ntk_fn(outputs, **options)(x, None, list(weights.values()))

    return compiled(kernel)


# --- the networks, on a batch ---------------------------------------------------------------------


def _layers(weights: Weights) -> list[tuple[Any, Any]]:
    """Weights and biases of a sequential network in order."""
    values = list(weights.values())
    return list(zip(values[::2], values[1::2], strict=True))


def _mlp(weights: Weights, x: Any, activation: str = "maximum") -> Any:
    import jax.numpy as jnp

    *hidden, (weight, bias) = _layers(weights)
    for inner, shift in hidden:
        x = x @ inner.T + shift
        x = jnp.tanh(x) if activation == "tanh" else jnp.maximum(x, 0)
    return x @ weight.T + bias


def _lm(weights: Weights, x: Any) -> Any:
    return _mlp(weights, x, "tanh")


def _cnn(weights: Weights, x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    *convolutions, (weight, bias) = _layers(weights)
    for number, (kernel, shift) in enumerate(convolutions):
        if number:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        axes = ("NCHW", "OIHW", "NCHW")
        x = lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=axes)
        x = jnp.maximum(x + shift[:, None, None], 0)
    return x.mean((2, 3)) @ weight.T + bias


def _transformer(weights: Weights, tokens: Any) -> Any:
    x = weights["embedding.weight"][tokens]
    layers = {int(name.split(".")[1]) for name in weights if name.startswith("layers.")}
    for layer in sorted(layers):
        prefix = f"layers.{layer}."
        x = _encoder({name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}, x)
    return x.mean(1) @ weights["head.weight"].T + weights["head.bias"]


def _encoder(w: Weights, x: Any, heads: int = 4) -> Any:
    import jax
    import jax.numpy as jnp

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    n, t, d = x.shape
    packed = x @ w["self_attn.in_proj_weight"].T + w["self_attn.in_proj_bias"]
    q, k, v = (part.reshape(n, t, heads, -1).transpose(0, 2, 1, 3) for part in jnp.split(packed, 3, -1))
    scores = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / (d // heads) ** 0.5)
    mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(n, t, d)
    x = norm(x + mixed @ w["self_attn.out_proj.weight"].T + w["self_attn.out_proj.bias"], "norm1")
    hidden = jnp.maximum(x @ w["linear1.weight"].T + w["linear1.bias"], 0)
    return norm(x + hidden @ w["linear2.weight"].T + w["linear2.bias"], "norm2")


NETWORKS = {"mlp": _mlp, "lm": _lm, "cnn": _cnn, "transformer": _transformer}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
