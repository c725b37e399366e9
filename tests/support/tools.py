"""Programs in Go that tests run, from ``make tools`` and ``make otelcol``."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DIRECTORY = ROOT / "build" / "tools"
MUST_RUN = bool(os.environ.get("CI"))
TOOL_S = 60.0


def needs(name: str, *, target: str = "tools") -> pytest.MarkDecorator:
    """Return a mark that skips a test if the program is not installed, except in CI."""
    return pytest.mark.skipif(
        _find(name) is None and not MUST_RUN, reason=f"{name} is not installed: run `make {target}`"
    )


def path(name: str) -> str:
    found = _find(name)
    assert found is not None
    return found


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path(name), *arguments], capture_output=True, text=True, timeout=TOOL_S, check=False
    )


def output(name: str, *arguments: str | Path) -> str:
    result = run(name, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{DIRECTORY}{os.pathsep}{os.environ['PATH']}")
