"""Benchmarks: one question a file, `harness` for all of them; `docs/benchmarks.md` explains them.

python -m benchmarks [all | decode | filters | table | choices | ingest | scrape | memory | stall
                      | growth | start | storage]
"""
