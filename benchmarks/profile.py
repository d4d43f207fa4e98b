"""Where the time of one call goes: ``python -m benchmarks.profile WORK``."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from . import timing
from .methods import COMPILED, METHODS, OURS
from .works import WORKS, build


def main(argv: Sequence[str] | None = None) -> None:
    """Print the time and the page faults of a call, then its operations by the time that they take themselves."""
    methods = {method.name: method for method in (*METHODS, *COMPILED)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--method", choices=methods, default=OURS, help=f"default {OURS}")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--rows", type=int, default=25, help="operations to show (default 25)")
    parser.add_argument("--shapes", action="store_true", help="tell operations apart by the shapes of their inputs")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    with sdpa_kernel(SDPBackend.MATH):
        run = methods[options.method].make(build(options.work))
        for _ in range(3):
            run()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _, seconds = timing.once(run)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        with profile(activities=[ProfilerActivity.CPU], record_shapes=options.shapes) as record:
            run()
    events = record.key_averages(group_by_input_shape=options.shapes)
    print(events.table(sort_by="self_cpu_time_total", row_limit=options.rows, max_name_column_width=48))
    print(f"{options.method} on {options.work}: {seconds * 1e3:.2f} ms, {faults} page faults, without the profiler")


if __name__ == "__main__":
    main()
