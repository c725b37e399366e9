"""Benchmarks. Each benchmark answers a question: see `docs/benchmarks.md`.

python -m benchmarks [all | decode | filters | table | lookups | choices | ingest | bursts | scrape
                      | memory | dormant | stall | status | growth | names | own_names | start
                      | storage]
"""
