"""The process needs no privileges, and discloses no secrets in its memory or output."""

import asyncio
import base64
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from skyfast.runtime import memory
from tests.support.analyzer import FakeAnalyzer
from tests.support.messages import flow, message
from tests.support.paths import ROOT
from tests.support.process import run, running

UNPRIVILEGED_UID = 61_234
"""A user ID without a name, a home directory, a group or any files."""

PASSWORD = "hunter2-of-the-rights"
COOKIE = "c00kie-of-the-rights"
IN_URL = "swordfish-of-the-rights"
CONFIG = (
    f"analyzer.auth.cluster: {{{{username: prom, password: {PASSWORD}}}}}\n"
    f"http.cookie: {{{{zone: {COOKIE}}}}}\n"
    "pipeline.subscriber.urls: [{urls}]\n"
    "pipeline.store.prom_sky_con: {{port: 0, listen_address: 127.0.0.1, interfaces_interval: 1}}\n"
)
WORLD_WRITABLE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))

STANDARD = (0, 1, 2)

AS_UNPRIVILEGED = (
    *("setpriv", f"--reuid={UNPRIVILEGED_UID}", f"--regid={UNPRIVILEGED_UID}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)

DUMPABLE = """
import ctypes
from skyfast.runtime import memory
prctl = ctypes.CDLL(None).prctl
print(prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
memory.disable_core_dumps()
print(prctl(3, 0, 0, 0, 0))
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to start a process as another user",
)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A directory that all users may read, but not write, for a configuration file.

    Other users cannot read pytest's temporary directories.
    """
    directory = Path(tempfile.mkdtemp(prefix="skyfast-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def write_config(directory: Path, *urls: str) -> Path:
    path = directory / "prom_sky_con.yml"
    path.write_text(CONFIG.format(urls=", ".join(urls)))
    path.chmod(0o444)
    directory.chmod(0o555)
    return path


def run_unprivileged(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*AS_UNPRIVILEGED, *command], capture_output=True, timeout=20)


def check(config: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "skyfast", "--check", str(config)]
    return subprocess.run(command, capture_output=True, check=True, timeout=20, cwd=ROOT)


def unprivileged_files() -> list[Path]:
    return [
        path
        for directory in WORLD_WRITABLE
        for path in directory.glob("*")
        if path.lstat().st_uid == UNPRIVILEGED_UID
    ]


def written_files(pid: int) -> list[str]:
    """Return the regular files that a process has open for writing, except standard streams."""
    process = Path(f"/proc/{pid}")
    written = []
    for path in (process / "fd").iterdir():
        if int(path.name) <= max(STANDARD):
            continue
        # The file can be closed in the meantime.
        with contextlib.suppress(FileNotFoundError):
            info = (process / "fdinfo" / path.name).read_text()
            flags = int(re.search(r"flags:\s*(\d+)", info)[1], 8)
            if flags & os.O_ACCMODE != os.O_RDONLY and path.is_file():
                written.append(str(path.readlink()))
    return written


def status(pid: int) -> dict[str, str]:
    """Map the fields of ``/proc/PID/status`` to their values, as text."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines())


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer(username="prom", password=PASSWORD) as analyzer:
        yield analyzer


@needs_root
async def test_skyfast_needs_neither_privileges_nor_writable_files(
    analyzer: FakeAnalyzer, read_only: Path
) -> None:
    """skyfast runs as a user without files of its own, in a directory that nobody may write to."""
    config = write_config(read_only, analyzer.url)
    started = run_unprivileged(sys.executable, "-c", f"open({str(ROOT / 'README.md')!r})")
    if started.returncode:
        pytest.skip(f"other users cannot read Python or this directory: {started.stderr!r}")
    assert not unprivileged_files()
    # During `make coverage`, these variables would make skyfast write a data file.
    without_coverage = ("--unset=COVERAGE_PROCESS_CONFIG", "--unset=COVERAGE_PROCESS_START")
    through = (
        "env",
        *without_coverage,
        f"--chdir={read_only}",
        "HOME=/nonexistent",
        *AS_UNPRIVILEGED,
    )
    async with running(config, through=through, PYTHONPATH=str(ROOT)) as skyfast:
        pid = skyfast.process.pid
        assert status(pid)["Uid"].split() == [str(UNPRIVILEGED_UID)] * 4
        assert {status(pid)[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        await (await analyzer.subscriber()).send(message(flow()))
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert metrics["process_open_fds"] > 0
        assert b"skydive_network_connection_total_bytes" in await skyfast.get("/metrics")
        assert not written_files(pid)

        # Not even the same user can read the memory or the environment of skyfast.
        for part in ("environ", "maps", "mem"):
            result = run_unprivileged("head", "-c1", f"/proc/{pid}/{part}")
            assert result.returncode
            assert b"Permission denied" in result.stderr
    assert not unprivileged_files()
    assert os.listdir(read_only) == [config.name]  # noqa: PTH208


async def test_no_core_dump_is_written(analyzer: FakeAnalyzer, tmp_path: Path) -> None:
    through = ("sh", "-c", 'ulimit -S -c "$(ulimit -H -c)" && exec "$@"', "sh")
    async with running(write_config(tmp_path, analyzer.url), through=through) as skyfast:
        assert resource.prlimit(skyfast.process.pid, resource.RLIMIT_CORE)[0] == 0


def test_process_is_not_dumpable() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DUMPABLE], capture_output=True, text=True, check=True, timeout=20
    )
    assert result.stdout.split() == ["1", "0"]


@needs_root
async def test_debug_variable_allows_core_dumps_and_debuggers(
    analyzer: FakeAnalyzer, read_only: Path
) -> None:
    """skyfast warns that other processes of the user can now read its memory."""
    config = write_config(read_only, analyzer.url)
    if run_unprivileged(sys.executable, "-c", f"open({str(ROOT / 'README.md')!r})").returncode:
        pytest.skip("other users cannot read Python or this directory")
    raise_limit = ("sh", "-c", 'ulimit -S -c "$(ulimit -H -c)" && exec "$@"', "sh")
    through = (*raise_limit, "env", f"--chdir={read_only}", "HOME=/nonexistent", *AS_UNPRIVILEGED)
    variables = {"PYTHONPATH": str(ROOT), "SKYFAST_DEBUG": "1"}
    async with running(config, quiet=False, through=through, **variables) as skyfast:
        pid = skyfast.process.pid
        limits = run_unprivileged("cat", f"/proc/{pid}/limits").stdout.decode()
        assert re.search(r"(?m)^Max core file size +(\w+) +\1 ", limits)
        for part in ("environ", "maps"):
            assert run_unprivileged("head", "-c1", f"/proc/{pid}/{part}").returncode == 0
        await skyfast.logged("WARNING skyfast.cli: core dumps and debuggers are allowed")


@pytest.mark.parametrize(("text", "is_allowed"), [("", False), ("0", False), ("1", True)])
def test_debugging_is_allowed_only_if_the_variable_is_1(text: str, is_allowed: bool) -> None:
    assert memory.is_debug_allowed({memory.DEBUG_VARIABLE: text}) is is_allowed
    assert not memory.is_debug_allowed({})


def test_debug_variable_must_be_0_or_1() -> None:
    result = run("--demo", "--check", SKYFAST_DEBUG="yes")
    assert (result.returncode, result.stderr) == (
        2,
        "skyfast: SKYFAST_DEBUG: 'yes' is not 0 or 1\n",
    )


async def test_output_contains_no_secrets(analyzer: FakeAnalyzer, tmp_path: Path) -> None:
    """The output: pages, log, ``--check``, and errors about a password that an analyzer rejects."""
    async with FakeAnalyzer(username="prom", password="another") as rejecting:
        in_url = rejecting.url.replace("ws://", f"ws://prom:{IN_URL}@")
        config = write_config(tmp_path, analyzer.url, in_url)
        async with running(config, "--log-level=debug", quiet=False) as skyfast:
            await skyfast.logged("401")
            await (await analyzer.subscriber()).send(message(flow()))
            await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
            links = re.findall(r'href="([a-z/-]+)"', (await skyfast.get("/")).decode())
            assert len(links) > 5
            paths = {"/", "/api/status", "/api/top?by=bytes", *(f"/{link}" for link in links)}
            pages = [await skyfast.get(path) for path in sorted(paths)]
        checked = await asyncio.to_thread(check, config)
    assert analyzer.topology_requests[-1].basic == ("prom", PASSWORD)
    outputs = [*pages, "\n".join(skyfast.log).encode(), checked.stdout, checked.stderr]
    for secret in (PASSWORD, IN_URL, COOKIE):
        for encoding in (secret, base64.b64encode(f"prom:{secret}".encode()).decode()):
            assert not [output for output in outputs if encoding.encode() in output]
