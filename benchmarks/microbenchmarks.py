"""Runs a file of benchmarks/micro with pytest, and adds its results to a report."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.flows import FLOWS_PER_MESSAGE
from benchmarks.harness import Report, at_most

ROOT = Path(__file__).parent.parent

OPTIONS = (
    *("-q", "--no-header", "--no-summary", "-p", "no:cacheprovider"),
    *("--benchmark-timer=time.thread_time", "--benchmark-disable-gc", "--benchmark-quiet"),
)


def run(name: str, report: Report) -> None:
    """Run ``benchmarks/micro/test_<name>.py`` in its own process.

    Raises RuntimeError if a benchmark fails.
    """
    # These variables of a pytest-xdist worker would disable pytest-benchmark.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory(prefix="skyfast-bench-") as directory:
        results = Path(directory) / "results.json"
        command = [sys.executable, "-m", "pytest", f"benchmarks/micro/test_{name}.py", *OPTIONS]
        ran = subprocess.run(
            [*command, f"--benchmark-json={results}"],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{ran.stdout}{ran.stderr}")
        _add(json.loads(results.read_text())["benchmarks"], report)


def _add(benchmarks: list[dict[str, Any]], report: Report) -> None:
    figures: dict[str, list[float]] = {}
    for benchmark in benchmarks:
        name, _, identifier = benchmark["name"].removeprefix("test_").partition("[")
        what = name.replace("_", " ")
        if identifier:
            what += f": {identifier.removesuffix(']')}"
        stats, about = benchmark["stats"], benchmark["extra_info"]
        middle = stats["mean" if about["mean"] else "median"]
        figures[what] = [
            seconds / FLOWS_PER_MESSAGE * 1e9 for seconds in (stats["min"], middle, stats["max"])
        ]
    for what, benchmark in zip(figures, benchmarks, strict=True):
        about = benchmark["extra_info"]
        to, limit_ns = about["to"], about["at_most"]
        report.add(
            what,
            figures[what],
            "ns per flow",
            to=to,
            over=figures[to][1:2] if to else None,
            target=None if limit_ns is None else at_most(limit_ns),
        )
