"""What the machine does to the process: names, clocks, pauses, descriptors, ports, signals."""

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
from tests.faults.trial import FLOWS, SOME, Trial, beside_the_others, trial
from tests.support.analyzer import FakeAnalyzer
from tests.support.paths import ROOT

TIMEOUT_S = 8.0
PAUSE_S = 9.0
"""Longer than the 5 s from which on a pause is one to `skyfast.runtime.clock`, and than
TIMEOUT_S."""
HOUR_S = 3600
FEW = 3
"""Descriptors; every skyfast has more than these."""

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
"""The wall clock, with as many seconds added as the file says that CLOCK_AHEAD names."""


def reconnects(reason: str) -> tuple[str, str]:
    return ("skyfast_reconnects_total", reason)


def misdated(reason: str) -> tuple[str, str]:
    return ("skyfast_flows_misdated_total", reason)


# Names ---------------------------------------------------------------------------------------

# Its own /etc/hosts, and nobody else to ask.
OWN_NAMES = """
mount --bind "$0" /etc/hosts
mount --bind "$1" /etc/nsswitch.conf
shift
exec "$@"
"""


def can_have_own_names() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_have_own_names(), reason="no user or mount namespaces are permitted")
@beside_the_others
async def test_the_analyzers_name_is_lost_and_found(directory: Path) -> None:
    names, order = directory / "hosts", directory / "nsswitch.conf"
    names.write_text("127.0.0.1 analyzer.example\n")
    order.write_text("hosts: files\n")
    through = ("unshare", "-rm", "sh", "-ec", OWN_NAMES, str(names), str(order))
    async with trial(directory, host="analyzer.example", through=through) as on_trial:
        names.write_text("")
        await on_trial.subscriber.close()
        await on_trial.has_counted(reconnects("unresolved"))
        assert await on_trial.status("/-/ready") == 503
        names.write_text("127.0.0.1 analyzer.example\n")
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("unresolved"): SOME},
            logged=["cannot resolve the host name"],
        )


# Time ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@beside_the_others
async def test_the_clock_jumps_an_hour_both_ways(directory: Path) -> None:
    source, library, ahead = (directory / name for name in ("clock.c", "clock.so", "ahead"))
    source.write_text(CLOCK)
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)

    def jump(to_s: int) -> None:
        with ahead.open("r+b") as file:
            file.write(struct.pack("@l", to_s))

    ahead.write_bytes(bytes(struct.calcsize("@l")))
    environ = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)}
    async with trial(directory, environ=environ) as on_trial:
        expired = (await on_trial.skyfast.self_metrics())["skyfast_connections_expired_total"]
        for to_s in (HOUR_S, 0, -HOUR_S, 0):
            jump(to_s)
            await on_trial.report()
            await on_trial.has_page()
            metrics = await on_trial.skyfast.self_metrics()
            shown_s = metrics[on_trial.series("skyfast_last_message_timestamp_seconds")]
            assert abs(shown_s - time.time() - to_s) < HOUR_S / 2
            assert metrics["skyfast_connections_expired_total"] == expired
        # To it, the flows' own times are wrong by an hour, once each way.
        await on_trial.has_recovered(
            counted={misdated("ahead"): FLOWS, misdated("behind"): FLOWS},
            logged=[
                "a flow from node_tid node is 3600 s ahead of the local clock",
                "a flow from node_tid node is 3600 s behind the local clock",
            ],
        )


async def pause(on_trial: Trial, for_s: float) -> None:
    os.kill(on_trial.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(for_s)
    finally:
        os.kill(on_trial.pid, signal.SIGCONT)


@beside_the_others
async def test_it_is_stopped_and_goes_on(directory: Path) -> None:
    async with trial(directory, settings=SHORT) as on_trial:
        await pause(on_trial, PAUSE_S)
        await on_trial.has_page()
        await on_trial.has_recovered(counted={}, logged=["paused for "])


@pytest.mark.nightly
@beside_the_others
async def test_it_is_stopped_for_so_long_that_it_is_given_up(directory: Path) -> None:
    analyzer = FakeAnalyzer()
    analyzer.checks_pongs = True
    async with trial(directory, analyzer=analyzer) as on_trial:
        await pause(on_trial, 30)
        await on_trial.has_page()
        await on_trial.has_recovered(
            counted={reconnects("overload"): 1},
            logged=["paused for 3", "too slowly: the analyzer waited 3"],
        )


@pytest.mark.nightly
@beside_the_others
async def test_nothing_arrives_and_nothing_is_shown_as_if_it_did(directory: Path) -> None:
    """The same as below, with the times that users have."""
    async with trial(directory) as on_trial:
        await leaves(on_trial, within_s=95 + INCIDENT_UPDATES * 60)


@beside_the_others
async def test_a_page_is_not_older_than_it_looks(directory: Path) -> None:
    async with trial(directory, settings=SHORT, environ={"FLOW_UPDATE_S": "2"}) as on_trial:
        await leaves(on_trial, within_s=40, update_s=2.0)


async def leaves(on_trial: Trial, *, within_s: float, update_s: float = 60.0) -> None:
    """Check that connections leave when their analyzer does, and come again with it.

    Not before the bound of what may be missing, for which the page says that it may.
    """
    connections = len(on_trial.totals)
    before = await on_trial.skyfast.self_metrics()
    await on_trial.analyzer.stop()
    await on_trial.is_up(0)
    assert await on_trial.status("/-/ready") == 503
    async with asyncio.timeout(within_s):
        while await on_trial.totals_on_page():
            metrics = await on_trial.skyfast.self_metrics()
            assert metrics[on_trial.series("skyfast_up")] == 0
            await asyncio.sleep(0.2)
    await on_trial.until(lambda metrics: metrics["skyfast_connections"] == 0)
    metrics = await on_trial.skyfast.self_metrics()
    heard = on_trial.series("skyfast_last_message_timestamp_seconds")
    assert before[heard] <= metrics[heard] < time.time() - TIMEOUT_S + 1
    assert metrics["skyfast_clock_held"] == 0
    bound_s = INCIDENT_UPDATES * update_s
    assert bound_s - 1 < metrics["skyfast_clock_held_seconds_total"] < bound_s + 2
    expired = "skyfast_connections_expired_total"
    assert metrics[expired] - before[expired] == connections
    await on_trial.analyzer.start()
    await on_trial.has_recovered(counted={reconnects("closed"): 1, reconnects("refused"): SOME})


# Descriptors ---------------------------------------------------------------------------------


@beside_the_others
async def test_clients_take_all_descriptors(directory: Path) -> None:
    async with trial(directory) as on_trial:
        limits = resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE)
        enough = on_trial.base.descriptors.total() + FEW
        resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE, (enough, limits[1]))
        crowd = [await asyncio.open_connection("127.0.0.1", on_trial.port) for _ in range(10 * FEW)]
        subscriber = on_trial.subscriber
        await on_trial.report()  # its subscription is not harmed
        await on_trial.has_logged("file descriptors left (LimitNOFILE)")
        # All of them must be gone: without a descriptor, whoever still waits is closed with them.
        async with asyncio.timeout(5):
            for _, writer in crowd:
                with contextlib.suppress(OSError):
                    writer.write_eof()
            for reader, writer in crowd:
                with contextlib.suppress(OSError):
                    await reader.read()
                writer.close()
            while len(on_trial.descriptors()) >= enough:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        await on_trial.has_page()
        assert subscriber is on_trial.subscriber
        resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE, limits)
        await on_trial.has_recovered(counted={})


@beside_the_others
async def test_there_is_no_descriptor_for_a_subscription(directory: Path) -> None:
    async with trial(directory) as on_trial:
        limits = resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE)
        # What is open stays so, and nothing more can be opened.
        resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE, (FEW, limits[1]))
        await on_trial.subscriber.close()
        await on_trial.has_logged("Too many open files")
        resource.prlimit(on_trial.pid, resource.RLIMIT_NOFILE, limits)
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("error"): SOME},
            logged=["subscription failed: [Errno 24] Too many open files"],
        )


# Ports and signals ---------------------------------------------------------------------------


@beside_the_others
async def test_another_one_on_the_same_port_does_no_harm(directory: Path) -> None:
    async with trial(directory) as on_trial:
        config = directory / "another.yml"
        text = (directory / "prom_sky_con.yml").read_text()
        assert "port: 0" in text
        config.write_text(text.replace("port: 0", f"port: {on_trial.port}"))
        another = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skyfast", str(config)),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        async with asyncio.timeout(20):
            _, log = await another.communicate()
        assert another.returncode == 1
        (line,) = [line for line in log.decode().splitlines() if " ERROR " in line]
        assert f":{on_trial.port}/metrics" in line
        assert "in use" in line
        await on_trial.has_recovered(counted={})


@beside_the_others
async def test_sigterm_in_the_middle_of_a_page_never_leaves_a_short_one(directory: Path) -> None:
    async with trial(directory, flows=20_000) as on_trial:
        readers = []
        for version in ("1.0", "1.1"):
            client = socket.create_connection(("127.0.0.1", on_trial.port))
            client.settimeout(10)
            client.sendall(f"GET /metrics HTTP/{version}\r\nHost: skyfast\r\n\r\n".encode())
            readers.append((version, client, await asyncio.to_thread(client.recv, 1000)))
        os.kill(on_trial.pid, signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await on_trial.skyfast.process.wait() == 0
        for version, client, received in readers:
            assert received.startswith(f"HTTP/{version} 200 OK\r\n".encode())
            with client:
                whole = await asyncio.to_thread(rest, client, received)
            assert not whole, f"a page by HTTP/{version} ended as if it was whole"


def rest(client: socket.socket, received: bytes) -> bool:
    """Read to the end; return whether the client takes what it got for a whole page."""
    try:
        while data := client.recv(1 << 20):
            received += data
    except ConnectionResetError:
        return False
    chunked = b"Transfer-Encoding: chunked" in received.partition(b"\r\n\r\n")[0]
    return not chunked or received.endswith(b"0\r\n\r\n")
