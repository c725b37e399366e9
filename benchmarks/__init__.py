"""Benchmarks: each file answers one question, and `docs/benchmarks.md` explains them.

python -m benchmarks [all | decode | filters | table | choices | ingest | scrape | memory | stall
                      | growth | start | storage]
"""
