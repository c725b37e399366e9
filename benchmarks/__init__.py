"""Benchmarks: one question a file, `harness` for all of them; `docs/benchmarks.md` explains them.

python -m benchmarks [all | decode | table | ingest | scrape | memory | stall | growth | start]
"""
