"""Runs skyfast processes for tests, as users run them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import WAIT_S

START_S = 15.0
STOP_S = 5.0
"""Maximum time to stop. On an idle machine, skyfast needs at most 2 s."""
POLL_S = 0.02
PROBLEM = re.compile(
    r"^\S+ (WARNING (?!skyfast.clock_skew:|skyfast.config: .* is counted several times;)"
    r"|ERROR |CRITICAL )"
    r"|^Traceback "
)
"""Matches a log line with a problem. Excluded are two warnings that many tests cause: clock skew,
and traffic that is counted several times."""


class Skyfast:
    """A running skyfast process, and its log lines so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.served_at: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.url = ""

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal unless the process has ended.

        `asyncio.subprocess.Process.send_signal` would discard the exit code of a process that has
        just ended.
        """
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    async def get(self, path: str, *, accept: str = "*/*") -> bytes:
        request = urllib.request.Request(self.url + path, headers={"Accept": accept})

        def ask() -> bytes:
            with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                body: bytes = response.read()
                return body

        return await asyncio.to_thread(ask)

    async def self_metrics(self) -> dict[str, float]:
        """Return skyfast's own metrics, by series as written on the page."""
        page = (await self.get("/metrics/self")).decode()
        lines = [line for line in page.splitlines() if not line.startswith("#")]
        return {
            series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)
        }

    async def until(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        async with asyncio.timeout(WAIT_S):
            while True:
                metrics = await self.self_metrics()
                if condition(metrics):
                    return metrics
                await asyncio.sleep(POLL_S)

    async def logged(self, text: str, *, since: int = 0) -> str:
        """Wait for a line with ``text`` after the first ``since`` lines, and return it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if matches := [line for line in self.log[since:] if text in line]:
                    return matches[0]
                await asyncio.sleep(POLL_S)

    async def read_log(self) -> None:
        """Collect log lines, and read the server's URL from them."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            line = raw.decode().rstrip("\n")
            self.log.append(line)
            match = re.search(r"listening on \S+ \((https?://\S+)/\)(\"}|$)", line)
            if match and not self.served_at.done():
                self.served_at.set_result(match[1])
        if not self.served_at.done():
            self.served_at.set_exception(AssertionError(self.log))


def running(
    config: Path, *options: str, quiet: bool = True, through: Sequence[str] = (), **environ: str
) -> AbstractAsyncContextManager[Skyfast]:
    """Run skyfast with a configuration file. Assert that SIGTERM stops it in time with exit code 0.

    ``through`` is a command that executes its arguments, such as ``env``. If ``quiet`` is true, no
    problem may be logged.
    """
    return _started(str(config), *options, quiet=quiet, through=through, **environ)


def demo(
    *config: Path, web_config: Path | None = None, quiet: bool = True, **environ: str
) -> AbstractAsyncContextManager[Skyfast]:
    """Run skyfast with ``--demo`` on a free port, like `running`."""
    arguments = ["--demo", *map(str, config)]
    if web_config:
        arguments.append(f"--web.config.file={web_config}")
    defaults = {"SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT": "0"}
    return _started(*arguments, quiet=quiet, **defaults | environ)


def replay(
    *arguments: object, quiet: bool = True, **environ: str
) -> AbstractAsyncContextManager[Skyfast]:
    """Run skyfast with ``--replay`` on a free port, 300 times as fast as the recording.

    Like `running`, but no connection expires.
    """
    store = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_"
    defaults = {f"{store}PORT": "0", f"{store}CONNECTION_TIMEOUT": "600"}
    speed = "--replay-speed=300"
    return _started(speed, "--replay", *map(str, arguments), quiet=quiet, **defaults | environ)


@asynccontextmanager
async def _started(
    *arguments: str, quiet: bool, through: Sequence[str] = (), **environ: str
) -> AsyncIterator[Skyfast]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("SKYDIVE_")}
    process = await asyncio.create_subprocess_exec(
        *(*through, sys.executable, "-m", "skyfast", *arguments),
        stderr=asyncio.subprocess.PIPE,
        env=inherited | environ,
        cwd=ROOT,
    )
    skyfast = Skyfast(process)
    log = asyncio.create_task(skyfast.read_log())
    try:
        skyfast.url = await asyncio.wait_for(skyfast.served_at, START_S)
        yield skyfast
        if process.returncode is None:  # the test may have stopped the process
            skyfast.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await log
    assert process.returncode == 0, skyfast.log
    if quiet:
        problems = [line for line in skyfast.log if PROBLEM.search(line)]
        assert not problems, problems


STORE = "pipeline: {{subscriber: {{urls: [{url}]}}, store: {{prom_sky_con: {{{store}}}}}}}\n"
NOBODY = "ws://127.0.0.1:9/ws/subscriber/flow"


def write_config(directory: Path, url: str = NOBODY, **store: object) -> Path:
    store = {"port": 0, "listen_address": "127.0.0.1"} | store
    path = directory / "prom_sky_con.yml"
    text = ", ".join(f"{name}: {value}" for name, value in store.items())
    path.write_text(STORE.format(url=url, store=text))
    return path


def run(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skyfast", *arguments],
        input=stdin,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
