"""Notifications to a service manager, over a real datagram socket."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyfast.runtime.systemd import Notifier
from tests.support.process import Skyfast, running, write_config
from tests.support.waiting import WAIT_S

pytestmark = pytest.mark.xdist_group("timing")

WATCHDOG_S = 0.4


class FakeServiceManager:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": address}

    async def next(self) -> dict[str, str]:
        """Return the variables of the next message that is not a watchdog message."""
        while (message := await self.message()) == {"WATCHDOG": "1"}:
            pass
        return message

    async def message(self) -> dict[str, str]:
        async with asyncio.timeout(WAIT_S):
            data = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return dict(line.split("=", 1) for line in data.decode().split("\n"))

    def waiting(self) -> list[bytes]:
        messages = []
        try:
            while True:
                messages.append(self.socket.recv(4096))
        except BlockingIOError:
            return messages


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeServiceManager]:
    name = str(tmp_path / "notify")
    listener = FakeServiceManager("@" + name if request.param == "abstract" else name)
    yield listener
    listener.socket.close()


async def is_healthy(skyfast: Skyfast) -> bool:
    return b"healthy" in await skyfast.get("/-/healthy")


async def test_service_manager_is_notified_of_start_reloads_and_stop(
    tmp_path: Path, listener: FakeServiceManager
) -> None:
    config = write_config(tmp_path)
    async with running(config, quiet=False, **listener.environ) as skyfast:
        ready = await listener.next()
        port = skyfast.url.rpartition(":")[2]
        assert ready == {
            "READY": "1",
            "STATUS": f"listening on 127.0.0.1:{port} ({skyfast.url}/)",
        }
        assert await is_healthy(skyfast)

        before_us = time.monotonic_ns() // 1000
        skyfast.process.send_signal(signal.SIGHUP)
        reloading = await listener.next()
        assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert await listener.next() == ready

        config.write_text("pipeline: {store: {type: nothing}}\n")
        skyfast.process.send_signal(signal.SIGHUP)
        assert (await listener.next())["RELOADING"] == "1"
        failed = await listener.next()
        assert failed["READY"] == "1"
        assert failed["STATUS"].startswith(f"{ready['STATUS']}; not reloaded: ")
        assert await is_healthy(skyfast)

        skyfast.process.terminate()
        assert await listener.next() == {"STOPPING": "1", "STATUS": "stopping"}


async def test_no_ready_message_is_sent_if_the_port_is_in_use(
    tmp_path: Path, listener: FakeServiceManager
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        config = write_config(tmp_path, port=occupied.getsockname()[1])
        with pytest.raises(AssertionError):
            async with running(config, quiet=False, **listener.environ):
                pass
    assert not [data for data in listener.waiting() if b"READY" in data]


async def test_hanging_process_sends_no_watchdog_message(
    tmp_path: Path, listener: FakeServiceManager
) -> None:
    watchdog = {"WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6))}
    async with running(
        write_config(tmp_path), quiet=False, **listener.environ, **watchdog
    ) as skyfast:
        assert "READY" in await listener.message()
        for _ in range(2):
            assert await listener.message() == {"WATCHDOG": "1"}

        skyfast.process.send_signal(signal.SIGSTOP)
        listener.waiting()
        await asyncio.sleep(2 * WATCHDOG_S)
        assert len(listener.waiting()) <= 1  # sent before SIGSTOP
        skyfast.process.send_signal(signal.SIGCONT)
        assert await listener.message() == {"WATCHDOG": "1"}


async def test_two_watchdog_messages_are_sent_per_interval(
    listener: FakeServiceManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []

    async def sleep(pause_s: float) -> None:
        assert len(listener.waiting()) == 1
        pauses_s.append(pause_s)
        if len(pauses_s) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("skyfast.runtime.systemd.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await Notifier({**listener.environ, "WATCHDOG_USEC": "60000000"}).watchdog()
    assert pauses_s == [30.0] * 3


async def test_blocked_event_loop_sends_no_watchdog_message(listener: FakeServiceManager) -> None:
    manager = Notifier({**listener.environ, "WATCHDOG_USEC": "50000"})
    task = asyncio.create_task(manager.watchdog())
    assert await listener.message() == {"WATCHDOG": "1"}
    listener.waiting()
    time.sleep(0.2)  # noqa: ASYNC251 - blocks the loop on purpose
    assert listener.waiting() == []
    assert await listener.message() == {"WATCHDOG": "1"}
    task.cancel()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},  # another process
    ],
)
async def test_no_watchdog_message_is_sent_without_valid_variables(
    variables: dict[str, str], listener: FakeServiceManager
) -> None:
    manager = Notifier({**listener.environ, **variables})
    await asyncio.wait_for(manager.watchdog(), WAIT_S)
    assert listener.waiting() == []


async def test_watchdog_messages_are_sent_if_the_variable_has_the_pid_of_skyfast(
    listener: FakeServiceManager,
) -> None:
    variables = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    task = asyncio.create_task(Notifier({**listener.environ, **variables}).watchdog())
    assert await listener.message() == {"WATCHDOG": "1"}
    task.cancel()


async def test_nothing_is_sent_without_notify_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a socket was created")

    manager = Notifier({"WATCHDOG_USEC": "1000"})
    monkeypatch.setattr(socket, "socket", refused)
    manager.ready("serving")
    manager.reloading()
    manager.reloaded(None)
    manager.stopping()
    await manager.watchdog()
    assert not caplog.records


def test_service_manager_is_not_notified_of_reloads_before_start_or_after_stop(
    listener: FakeServiceManager,
) -> None:
    manager = Notifier(listener.environ)
    manager.reloading()
    manager.reloaded(None)
    assert listener.waiting() == []
    manager.ready("serving")
    manager.stopping()
    listener.waiting()
    manager.reloading()
    manager.reloaded(None)
    assert listener.waiting() == []


def test_status_is_escaped_to_one_line(listener: FakeServiceManager) -> None:
    manager = Notifier(listener.environ)
    manager.ready("serving\nMAINPID=1")
    assert listener.waiting() == [b"READY=1\nSTATUS=serving\\nMAINPID=1"]


def test_missing_service_manager_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    manager.ready("serving")
    manager.stopping()
    (record,) = caplog.records
    assert "READY=1" in record.getMessage()


def test_unread_socket_does_not_block(
    listener: FakeServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Notifier(listener.environ)
    for _ in range(5000):
        manager.ready("serving")
        if caplog.records:
            break
    assert "cannot send" in caplog.text


def test_unsupported_socket_type_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).ready("serving")
    assert [record.getMessage() for record in caplog.records] == [
        "NOTIFY_SOCKET is not a path: vsock:2:1234"
    ]
