"""Benchmarks of jacfn: ``python -m benchmarks.dense``, ``benchmarks.quasilinear`` and ``benchmarks.memory``."""
