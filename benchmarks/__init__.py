"""Benchmarks of jacfn: ``python -m benchmarks.dense`` and ``python -m benchmarks.memory``."""
