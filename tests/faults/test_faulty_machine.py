"""Faults of the machine, from which skyfast must recover: names, clocks, pauses and descriptors."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyfast.skydive.reporting_gap import INCIDENT_UPDATES
from tests.faults.trial import FLOWS, SOME, Trial, concurrent_trial, start_trial
from tests.support.analyzer import FakeAnalyzer
from tests.support.paths import ROOT

TIMEOUT_S = 8.0
PAUSE_S = 9.0
"""Longer than ``TIMEOUT_S``. skyfast's clock stops during a pause, so connections do not expire."""
HOUR_S = 3600
FEW = 3
"""A small number of file descriptors: every skyfast process has more than three open."""

SHORT = {"prom_sky_con": {"connection_timeout": TIMEOUT_S, "connection_grace": 0}}

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static volatile const long *ahead_s;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    ahead_s = mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (!failed && clock == CLOCK_REALTIME) time->tv_sec += *ahead_s;
    return failed;
}
"""
"""A library that adds the seconds in the file ``$CLOCK_AHEAD`` to the wall clock."""


def reconnects(reason: str) -> tuple[str, str]:
    return ("skyfast_reconnects_total", reason)


def misdated(reason: str) -> tuple[str, str]:
    return ("skyfast_flows_misdated_total", reason)


# Host names ----------------------------------------------------------------------------------

# With these commands, a process uses only its own /etc/hosts to resolve host names.
BIND_NAMES = """
mount --bind "$0" /etc/hosts
mount --bind "$1" /etc/nsswitch.conf
shift
exec "$@"
"""


def can_bind_names() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_bind_names(), reason="no user or mount namespaces are permitted")
@concurrent_trial
async def test_analyzer_name_disappears_and_returns(directory: Path) -> None:
    names, order = directory / "hosts", directory / "nsswitch.conf"
    names.write_text("127.0.0.1 analyzer.example\n")
    order.write_text("hosts: files\n")
    through = ("unshare", "-rm", "sh", "-ec", BIND_NAMES, str(names), str(order))
    async with start_trial(directory, host="analyzer.example", through=through) as trial:
        names.write_text("")
        await trial.subscriber.close()
        await trial.wait_for_counts(reconnects("unresolved"))
        assert await trial.status("/-/ready") == 503
        names.write_text("127.0.0.1 analyzer.example\n")
        await trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("unresolved"): SOME},
            logged=["cannot resolve the host name"],
        )


# Time ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@concurrent_trial
async def test_wall_clock_jumps_forward_and_back_by_an_hour(directory: Path) -> None:
    source, library, ahead = (directory / name for name in ("clock.c", "clock.so", "ahead"))
    source.write_text(CLOCK)
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)

    def jump(to_s: int) -> None:
        with ahead.open("r+b") as file:
            file.write(struct.pack("@l", to_s))

    ahead.write_bytes(bytes(struct.calcsize("@l")))
    environ = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)}
    async with start_trial(directory, environ=environ) as trial:
        expired = (await trial.skyfast.self_metrics())["skyfast_connections_expired_total"]
        for to_s in (HOUR_S, 0, -HOUR_S, 0):
            jump(to_s)
            await trial.report()
            await trial.wait_for_page()
            metrics = await trial.skyfast.self_metrics()
            shown_s = metrics[trial.series("skyfast_last_message_timestamp_seconds")]
            assert abs(shown_s - time.time() - to_s) < HOUR_S / 2
            assert metrics["skyfast_connections_expired_total"] == expired
        # While skyfast's clock was an hour ahead, the times of flows were behind, and vice versa.
        await trial.has_recovered(
            counted={misdated("ahead"): FLOWS, misdated("behind"): FLOWS},
            logged=[
                "a flow from node_tid node is dated 3600 s ahead of the local clock",
                "a flow from node_tid node is dated 3600 s behind the local clock",
            ],
        )


async def pause(trial: Trial, seconds: float) -> None:
    os.kill(trial.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(trial.pid, signal.SIGCONT)


@concurrent_trial
async def test_process_continues_after_a_pause(directory: Path) -> None:
    async with start_trial(directory, settings=SHORT) as trial:
        await pause(trial, PAUSE_S)
        await trial.wait_for_page()
        await trial.has_recovered(counted={}, logged=["process paused for "])


@pytest.mark.nightly
@concurrent_trial
async def test_analyzer_disconnects_during_long_pause(directory: Path) -> None:
    analyzer = FakeAnalyzer()
    analyzer.checks_pongs = True
    async with start_trial(directory, analyzer=analyzer) as trial:
        await pause(trial, 30)
        await trial.wait_for_page()
        await trial.has_recovered(
            counted={reconnects("overload"): 1},
            logged=["process paused for 3", "too slowly: the analyzer waited 3"],
        )


@pytest.mark.nightly
@concurrent_trial
async def test_connections_of_a_lost_analyzer_expire_with_default_timeouts(directory: Path) -> None:
    """`test_connections_of_a_lost_analyzer_expire` is the same test with shorter timeouts."""
    async with start_trial(directory) as trial:
        await check_expiry(trial, within_s=95 + INCIDENT_UPDATES * 60)


@concurrent_trial
async def test_connections_of_a_lost_analyzer_expire(directory: Path) -> None:
    async with start_trial(directory, settings=SHORT, environ={"FLOW_UPDATE_S": "2"}) as trial:
        await check_expiry(trial, within_s=40, update_s=2.0)


async def check_expiry(trial: Trial, *, within_s: float, update_s: float = 60.0) -> None:
    """Check that connections expire while the analyzer is down, and reappear after its restart.

    Before they expire, skyfast holds the clock of its table for four times ``flow.update``.
    """
    connections = len(trial.totals)
    before = await trial.skyfast.self_metrics()
    await trial.analyzer.stop()
    await trial.wait_for_up(0)
    assert await trial.status("/-/ready") == 503
    async with asyncio.timeout(within_s):
        while await trial.totals_on_page():
            metrics = await trial.skyfast.self_metrics()
            assert metrics[trial.series("skyfast_up")] == 0
            await asyncio.sleep(0.2)
    await trial.until(lambda metrics: metrics["skyfast_connections"] == 0)
    metrics = await trial.skyfast.self_metrics()
    last_message = trial.series("skyfast_last_message_timestamp_seconds")
    assert before[last_message] <= metrics[last_message] < time.time() - TIMEOUT_S + 1
    assert metrics["skyfast_clock_held"] == 0
    limit_s = INCIDENT_UPDATES * update_s
    assert limit_s - 1 < metrics["skyfast_clock_held_seconds_total"] < limit_s + 2
    expired = "skyfast_connections_expired_total"
    assert metrics[expired] - before[expired] == connections
    await trial.analyzer.start()
    await trial.has_recovered(counted={reconnects("closed"): 1, reconnects("refused"): SOME})


# Descriptors ---------------------------------------------------------------------------------


@concurrent_trial
async def test_http_clients_use_all_file_descriptors(directory: Path) -> None:
    async with start_trial(directory) as trial:
        limits = resource.prlimit(trial.pid, resource.RLIMIT_NOFILE)
        max_descriptors = trial.base.descriptors.total() + FEW
        resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, (max_descriptors, limits[1]))
        clients = [await asyncio.open_connection("127.0.0.1", trial.port) for _ in range(10 * FEW)]
        subscriber = trial.subscriber
        await trial.report()  # the subscription still works
        await trial.wait_for_log("(LimitNOFILE) are free; when none is left")
        # Wait until all clients are disconnected, including those for which no descriptor was free.
        async with asyncio.timeout(5):
            for _, writer in clients:
                with contextlib.suppress(OSError):
                    writer.write_eof()
            for reader, writer in clients:
                with contextlib.suppress(OSError):
                    await reader.read()
                writer.close()
            while len(trial.descriptors()) >= max_descriptors:  # noqa: ASYNC110 - polls another process
                await asyncio.sleep(0.05)
        await trial.wait_for_page()
        assert subscriber is trial.subscriber
        resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, limits)
        await trial.has_recovered(counted={})


@concurrent_trial
async def test_no_file_descriptor_is_left_for_a_subscription(directory: Path) -> None:
    async with start_trial(directory) as trial:
        limits = resource.prlimit(trial.pid, resource.RLIMIT_NOFILE)
        # With this limit, open descriptors stay open, but skyfast cannot open new descriptors.
        resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, (FEW, limits[1]))
        await trial.subscriber.close()
        await trial.wait_for_log("too many open files")
        resource.prlimit(trial.pid, resource.RLIMIT_NOFILE, limits)
        await trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("error"): SOME},
            logged=["subscription failed: too many open files"],
        )


# Ports and signals ---------------------------------------------------------------------------


@concurrent_trial
async def test_second_process_on_the_same_port_fails(directory: Path) -> None:
    async with start_trial(directory) as trial:
        config = directory / "second.yml"
        text = (directory / "prom_sky_con.yml").read_text()
        assert "port: 0" in text
        config.write_text(text.replace("port: 0", f"port: {trial.port}"))
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skyfast", str(config)),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        async with asyncio.timeout(20):
            _, log = await second.communicate()
        assert second.returncode == 1
        (line,) = [line for line in log.decode().splitlines() if " ERROR " in line]
        assert f":{trial.port}" in line
        assert "in use" in line
        await trial.has_recovered(counted={})


@concurrent_trial
async def test_page_truncated_by_sigterm_does_not_look_complete(directory: Path) -> None:
    async with start_trial(directory, flows=20_000) as trial:
        readers = []
        for version in ("1.0", "1.1"):
            client = socket.create_connection(("127.0.0.1", trial.port))
            client.settimeout(10)
            client.sendall(f"GET /metrics HTTP/{version}\r\nHost: skyfast\r\n\r\n".encode())
            readers.append((version, client, await asyncio.to_thread(client.recv, 1000)))
        os.kill(trial.pid, signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await trial.skyfast.process.wait() == 0
        for version, client, received in readers:
            assert received.startswith(f"HTTP/{version} 200 OK\r\n".encode())
            with client:
                looks_complete = await asyncio.to_thread(read_rest, client, received)
            assert not looks_complete, f"a truncated page looks complete in HTTP/{version}"


def read_rest(client: socket.socket, received: bytes) -> bool:
    """Return whether the response looks complete."""
    try:
        while data := client.recv(1 << 20):
            received += data
    except ConnectionResetError:
        return False
    chunked = b"Transfer-Encoding: chunked" in received.partition(b"\r\n\r\n")[0]
    return not chunked or received.endswith(b"0\r\n\r\n")
