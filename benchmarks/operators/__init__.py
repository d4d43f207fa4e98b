"""The parts of ``python -m benchmarks.operator``, a file each."""
