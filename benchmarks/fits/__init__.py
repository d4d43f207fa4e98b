"""The parts of benchmarks.least_squares."""
