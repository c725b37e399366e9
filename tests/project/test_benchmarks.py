"""Each benchmark runs without errors on a small scale. The figures are not checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import MICRO, NAMES, ON_REQUEST

ROOT = Path(__file__).parents[2]

QUICK = (*MICRO, "lookups", "choices", "ingest", "memory", "growth")


def run(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "SKYFAST_BENCH_SCALE": "2000",
            "SKYFAST_BENCH_RESULTS": str(directory),
            "PROM_SKY_CON": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_benchmark_writes_its_figures(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, name)
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["question"].endswith("?")
    assert written["scale"] == 2000
    assert written["rows"]
    for row in written["rows"]:
        assert min(row["samples"]) <= row["median"] <= max(row["samples"])
        assert row["what"] in result.stdout


def test_unknown_benchmark_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path, "decoed")
    assert result.returncode == 2
    assert "unknown benchmark decoed; known: all decode" in result.stdout


def test_every_benchmark_file_is_listed() -> None:
    directory = ROOT / "benchmarks"
    micro = {path.stem.removeprefix("test_") for path in directory.glob("micro/test_*.py")}
    others = {path.stem.removeprefix("bench_") for path in directory.glob("bench_*.py")}
    assert micro == set(MICRO)
    assert micro | others == {*NAMES, *ON_REQUEST}
