"""Benchmarks of single functions, with pytest-benchmark; see docs/adding-a-benchmark.md."""
