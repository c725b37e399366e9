"""Benchmarks. Each file answers one question; `docs/benchmarks.md` explains the results.

python -m benchmarks [all | decode | filters | table | lookups | choices | ingest | bursts | scrape
                      | memory | dormant | stall | status | growth | names | own_names | start
                      | storage]
"""
