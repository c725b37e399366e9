"""How long does it take until the first page, and how much of this time do imports take?

Not measured: a cold disk.

As after an installation with pip, the bytecode of all modules is cached.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import programs
from benchmarks.harness import Report, ratio_at_most

REPEATS = 7
POLL_S = 0.002

IMPORTS = (
    "asyncio, logging, ssl, uvloop, yaml, msgspec, websockets.asyncio.client, aiohttp.web,"
    " isal.isal_zlib, skyfast._table"
)
"""The imports that the first page needs."""

_DONE = "; print(len(__import__('sys').modules), flush=True)"


def run(report: Report) -> None:
    bare, imports, starts, modules = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="skyfast-bench-") as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(1 + REPEATS):
            bare.append(_import("sys", environment)[0])
            ms, count = _import(IMPORTS, environment)
            imports.append(ms)
            modules.append(count)
            starts.append(_start(environment))
    # The first round also writes the bytecode.
    bare, imports, starts, modules = bare[1:], imports[1:], starts[1:], modules[1:]
    report.add("Python only", bare, "ms")
    report.add("imports for the first page", imports, "ms")
    report.add("imported modules", modules, "")
    ratio = ratio_at_most(1.5)
    what = "skyfast, until the first page"
    report.add(what, starts, "ms", to="imports", over=imports, target=ratio)


def _import(names: str, environment: Mapping[str, str]) -> tuple[float, int]:
    """Return the ms to start Python and import ``names``, and the number of loaded modules."""
    began_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", f"import {names}{_DONE}"], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began_s
    return seconds * 1e3, int(line)


def _start(environment: Mapping[str, str]) -> float:
    """Return the ms from the start of skyfast, without an analyzer, to its first page."""
    port, unused_port = programs.free_port(), programs.free_port()
    with tempfile.TemporaryDirectory(prefix="skyfast-bench-") as directory:
        path = Path(directory) / "prom_sky_con.yml"
        path.write_text(
            programs.CONFIG.format(
                analyzer=unused_port, analyzers=f"127.0.0.1:{unused_port}", port=port
            )
        )
        began_s = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "skyfast", path], stderr=subprocess.DEVNULL, env=environment
        ) as process:
            try:
                programs.wait_for_server(port, POLL_S)
                programs.get(port, "/metrics")
                return (time.perf_counter() - began_s) * 1e3
            finally:
                process.terminate()
