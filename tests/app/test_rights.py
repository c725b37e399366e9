"""What the process needs from the system, and what others there can learn from it."""

import asyncio
import base64
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

from tests.support.analyzer import FakeAnalyzer
from tests.support.messages import flow, message
from tests.support.paths import ROOT
from tests.support.process import running

STRANGER = 61_234
"""A user without a name, a home, a group or a file."""

PASSWORD = "hunter2-of-the-rights"
COOKIE = "c00kie-of-the-rights"
IN_URL = "swordfish-of-the-rights"
CONFIG = (
    f"analyzer.auth.cluster: {{{{username: prom, password: {PASSWORD}}}}}\n"
    f"http.cookie: {{{{zone: {COOKIE}}}}}\n"
    "pipeline.subscriber.urls: [{urls}]\n"
    "pipeline.store.prom_sky_con: {{port: 0, listen_address: 127.0.0.1, interfaces_interval: 1}}\n"
)
EVERYBODYS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
"""Where anybody may write."""

STANDARD = (0, 1, 2)

AS_STRANGER = (
    *("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"),
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
    reason="only root can start a process as another user, by setpriv",
)


@pytest.fixture
def bare() -> Iterator[Path]:
    """A directory that everybody may read and nobody may write, with one configuration file.

    Not below pytest's own, which are the user's alone.
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


def as_stranger(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*AS_STRANGER, *command], capture_output=True, timeout=20)


def check(config: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "skyfast", "--check", str(config)]
    return subprocess.run(command, capture_output=True, check=True, timeout=20, cwd=ROOT)


def strangers_files() -> list[Path]:
    return [
        path for place in EVERYBODYS for path in place.glob("*") if path.lstat().st_uid == STRANGER
    ]


def written_files(pid: int) -> list[str]:
    """Return the regular files that a process can write to, but for its standard streams."""
    flags = {
        path.name: int(re.search(r"flags:\s*(\d+)", path.read_text())[1], 8)
        for path in Path(f"/proc/{pid}/fdinfo").iterdir()
    }
    files = {
        number: Path(f"/proc/{pid}/fd/{number}") for number in flags if int(number) > max(STANDARD)
    }
    return [
        str(path.readlink())
        for number, path in files.items()
        if flags[number] & os.O_ACCMODE != os.O_RDONLY and path.is_file()
    ]


def status(pid: int) -> dict[str, str]:
    """Return the lines of proc(5)'s status, by name."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines())


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer(username="prom", password=PASSWORD) as analyzer:
        yield analyzer


@needs_root
async def test_it_needs_no_privilege_and_no_file_that_it_may_write(
    analyzer: FakeAnalyzer, bare: Path
) -> None:
    """It runs as a user who owns nothing, from a directory that nobody may write to."""
    config = write_config(bare, analyzer.url)
    started = as_stranger(sys.executable, "-c", f"open({str(ROOT / 'README.md')!r})")
    if started.returncode:
        pytest.skip(f"other users cannot read Python or this directory: {started.stderr!r}")
    assert not strangers_files()
    # Counting lines, in `make coverage`, writes a file.
    uncounted = ("--unset=COVERAGE_PROCESS_CONFIG", "--unset=COVERAGE_PROCESS_START")
    through = ("env", *uncounted, f"--chdir={bare}", "HOME=/nonexistent", *AS_STRANGER)
    async with running(config, through=through, PYTHONPATH=str(ROOT)) as skyfast:
        pid = skyfast.process.pid
        assert status(pid)["Uid"].split() == [str(STRANGER)] * 4
        assert {status(pid)[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        await (await analyzer.subscriber()).send(message(flow()))
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert metrics["process_open_fds"] > 0
        assert b"skydive_network_connection_total_bytes" in await skyfast.get("/metrics")
        assert not written_files(pid)

        # Nor can others of the same user look into it: not at its memory, not at its environment.
        for part in ("environ", "maps", "mem"):
            looked = as_stranger("head", "-c1", f"/proc/{pid}/{part}")
            assert looked.returncode
            assert b"Permission denied" in looked.stderr
    assert not strangers_files()
    assert os.listdir(bare) == [config.name]  # noqa: PTH208


async def test_no_core_dump_is_written(analyzer: FakeAnalyzer, tmp_path: Path) -> None:
    through = ("sh", "-c", 'ulimit -S -c "$(ulimit -H -c)" && exec "$@"', "sh")
    async with running(write_config(tmp_path, analyzer.url), through=through) as skyfast:
        assert resource.prlimit(skyfast.process.pid, resource.RLIMIT_CORE)[0] == 0


def test_no_program_is_handed_a_core_dump() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DUMPABLE], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.split() == ["1", "0"]


async def test_nothing_that_comes_out_tells_a_secret(
    analyzer: FakeAnalyzer, tmp_path: Path
) -> None:
    """No page, no log line and not ``--check``; one of the analyzers refuses the password."""
    async with FakeAnalyzer(username="prom", password="another") as refusing:
        in_url = refusing.url.replace("ws://", f"ws://prom:{IN_URL}@")
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
        for spelled in (secret, base64.b64encode(f"prom:{secret}".encode()).decode()):
            assert not [output for output in outputs if spelled.encode() in output]
