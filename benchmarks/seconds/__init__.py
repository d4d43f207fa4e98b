"""The parts of ``python -m benchmarks.second_order``."""
