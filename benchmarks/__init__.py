"""Benchmarks. Each file answers one question; `docs/benchmarks.md` explains the results.

python -m benchmarks [all | decode | filters | table | choices | ingest | scrape | memory | stall
                      | growth | start | storage]
"""
