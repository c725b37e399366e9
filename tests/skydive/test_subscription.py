"""Subscriptions to a fake analyzer over a real socket, including all failures.

The timeouts and intervals are shorter than by default.
"""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from websockets.exceptions import (
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHeader,
    InvalidMessage,
    InvalidStatus,
)
from websockets.frames import Close

from skyfast.config.yaml_nodes import ConfigError
from skyfast.skydive import subscription
from skyfast.skydive.silence import Activity, SilenceTiming
from skyfast.skydive.subscription import (
    DEFAULT_TIMING,
    SILENCE_JITTER,
    NamelessServerError,
    OverloadError,
    SilenceError,
    backoff,
    classify,
)
from skyfast.skydive.subscriptions import MAX_ADDRESSES, Subscriptions
from skyfast.skydive.websocket import MessageData
from skyfast.stats import RECONNECT_REASONS, AnalyzerStats, Stats
from tests.support.analyzer import FakeAnalyzer, FakeResponse, Fault, frame
from tests.support.certificates import Authority
from tests.support.configs import make_config
from tests.support.subscribing import FAST, FakeResolver, lines, subscribed, two_addresses
from tests.support.waiting import PROMPT_S, WAIT_S, until

pytestmark = pytest.mark.xdist_group("timing")

MESSAGE = b'{"Namespace":"flow","Type":"store","Obj":[]}'


# The request ---------------------------------------------------------------------------------


async def test_request_has_the_headers_of_an_analyzer_client(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url, host_id="probe-7")):
        request = (await analyzer.subscriber()).request
    assert request.target == "/ws/subscriber/flow"
    assert request.get("X-Host-ID") == "probe-7"
    assert request.get("X-Client-Type") == "analyzer"
    assert request.get("X-Client-Protocol") == "json"
    assert request.all("X-Websocket-Namespace") == ["flow", "stats"]
    assert request.get("Host") == analyzer.name
    assert request.get("Authorization") is None
    assert request.get("Cookie") is None
    assert request.get("Sec-WebSocket-Extensions") is None


async def test_capture_id_limits_the_subscription_to_one_capture(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url, capture_id="c0ffee")):
        request = (await analyzer.subscriber()).request
    assert request.all("X-Websocket-Namespace") == ["flow/c0ffee", "stats"]


async def test_username_password_and_cookies_are_sent(analyzer: FakeAnalyzer) -> None:
    analyzer.username, analyzer.password = "prom", "p:ä&="
    config = make_config(
        analyzer.url, username="prom", password="p:ä&=", cookie={"proxy": "a=b", "zone": "z"}
    )
    async with subscribed(config):
        request = (await analyzer.subscriber()).request
    assert request.basic == ("prom", "p:ä&=")
    assert request.all("Cookie") == ["proxy=a=b; zone=z"]


async def test_url_credentials_override_configured_ones(analyzer: FakeAnalyzer) -> None:
    async with FakeAnalyzer() as other:
        url = analyzer.url.replace("ws://", "ws://url%40user:p%3Aw@")
        async with subscribed(make_config(url, other.url, username="cluster", password="secret")):
            assert (await analyzer.subscriber()).request.basic == ("url@user", "p:w")
            assert (await other.subscriber()).request.basic == ("cluster", "secret")


async def test_proxy_environment_variables_are_ignored(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeAnalyzer() as proxy:
        for name in ("http_proxy", "ws_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.http_url)
        analyzer.script.append(401)
        async with subscribed(make_config(analyzer.url, username="prom")):
            await analyzer.subscriber()
        assert not proxy.connections


@pytest.mark.parametrize("setting", ["host_id", "capture_id", "cookie"])
def test_setting_with_invalid_header_characters_is_rejected_at_start(setting: str) -> None:
    value = {"token": "s€cret"} if setting == "cookie" else "s€cret"
    with pytest.raises(ConfigError, match=rf"^test\.yml: .*{setting}.*ASCII") as error:
        Subscriptions(
            config=make_config(**{setting: value}), stats=Stats(), on_message=lambda *_: None
        )
    assert "cret" not in str(error.value)


async def test_log_lines_contain_the_name_of_the_analyzer(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with subscribed(make_config(analyzer.url)):
        await analyzer.subscriber()
        await until(lambda: lines(caplog, logging.INFO))
    (line,) = lines(caplog, logging.INFO)
    assert line == f"analyzer {analyzer.name}: subscribed to analyzer analyzer-1"


async def test_changed_analyzer_name_is_logged_as_warning(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    async with subscribed(make_config(analyzer.url)):
        remote = await analyzer.subscriber()
        analyzer.host_id = "analyzer-2"
        await remote.close()
        await analyzer.subscriber()
        await until(lambda: len(lines(caplog)) == 2)
    assert lines(caplog)[1] == (
        f"analyzer {analyzer.name}: subscribed to analyzer analyzer-2,"
        " previously analyzer analyzer-1"
    )


# Messages ------------------------------------------------------------------------------------


async def test_messages_are_received_unchanged(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await analyzer.subscriber()
        start_s = time.time()
        big = bytes(range(256)) * 8192
        await remote.send(MESSAGE)
        await remote.send(MESSAGE, binary=True)
        await remote.send('"ä€"')
        await remote.send(b'text \xff\xfe with invalid UTF-8 "')
        await remote.send(b"")
        await remote.send(big)
        await remote.send(big, fragments=50)
        # Go's WebSocket library sends a large message as one frame, followed by an empty frame.
        await remote.send_raw(frame(0x1, big, fin=False) + frame(0x0, b""))
        received = [await running.message() for _ in range(8)]
        assert received == [
            MESSAGE,
            MESSAGE,
            '"ä€"'.encode(),
            b'text \xff\xfe with invalid UTF-8 "',
            b"",
            big,
            big,
            big,
        ]
        row = running.row(analyzer)
        assert row.received_bytes == sum(map(len, received))
        assert start_s <= row.last_message_timestamp_s <= time.time()
        assert row.up == 1
        assert running.subscriptions.any_up
        assert not running.reconnects(analyzer)


async def test_pings_between_fragments_are_answered(analyzer: FakeAnalyzer) -> None:
    analyzer.ping_interval_s = 0.02
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await analyzer.subscriber()
        await remote.send_raw(frame(0x1, MESSAGE[:10], fin=False))
        await until(lambda: remote.pongs >= 3)
        await remote.send_raw(frame(0x0, MESSAGE[10:]))
        assert await running.message() == MESSAGE


async def test_counters_are_kept_per_analyzer(analyzer: FakeAnalyzer) -> None:
    async with FakeAnalyzer() as other, subscribed(make_config(analyzer.url, other.url)) as running:
        await (await analyzer.subscriber()).send(b"1")
        await (await other.subscriber()).send(b"22")
        async with asyncio.timeout(WAIT_S):
            received = {await running.messages.get() for _ in range(2)}
        assert received == {(b"1", analyzer.name), (b"22", other.name)}
        assert running.row(analyzer).received_bytes == 1
        assert running.row(other).received_bytes == 2


@pytest.mark.parametrize("fragments", [1, 3])
async def test_oversized_message_ends_only_its_own_subscription(
    analyzer: FakeAnalyzer, fragments: int
) -> None:
    async with FakeAnalyzer() as other:
        config = make_config(analyzer.url, other.url, max_message_bytes=1000)
        async with subscribed(config) as running:
            remote, other_remote = await analyzer.subscriber(), await other.subscriber()
            await remote.send(b"x" * 1000, fragments=fragments)
            assert await running.message() == b"x" * 1000
            assert not running.reconnects(analyzer)
            await remote.send(b"x" * 1001, fragments=fragments)
            new_remote = await analyzer.subscriber()
            assert remote.close_code == 1009
            await new_remote.send(MESSAGE)
            assert await running.message() == MESSAGE
            assert running.reconnects(analyzer) == {"too_big": 1}
            assert running.row(analyzer).errors["too_big"] == 1
            await other_remote.send(b"still here")
            assert await running.message() == b"still here"
            assert not running.reconnects(other)


async def test_exception_in_message_handler_drops_only_that_message(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    handled: asyncio.Queue[bytes] = asyncio.Queue()

    def on_message(data: MessageData, _: AnalyzerStats) -> None:
        if bytes(data).startswith(b"bad"):
            raise ValueError("quoted \x1b[31m\nmessage")
        handled.put_nowait(bytes(data))

    async with subscribed(make_config(analyzer.url), on_message=on_message) as running:
        remote = await analyzer.subscriber()
        for data in (b"bad 1", b"bad 2", b"good"):
            await remote.send(data)
        async with asyncio.timeout(WAIT_S):
            assert await handled.get() == b"good"
        assert not running.reconnects(analyzer)
        assert running.row(analyzer).up == 1
    (line,) = lines(caplog, logging.ERROR)
    assert analyzer.name in line
    assert "in on_message" in caplog.text
    assert "ValueError" in caplog.text
    assert "\x1b" not in caplog.text


async def test_event_loop_runs_while_messages_are_queued(
    analyzer: FakeAnalyzer,
) -> None:
    count, handling_s = 400, 0.001

    def on_message(data: MessageData, stats: AnalyzerStats) -> None:
        time.sleep(handling_s)

    async with subscribed(make_config(analyzer.url), on_message=on_message) as running:
        remote = await analyzer.subscriber()
        # One read from the socket returns all messages.
        await remote.send_raw(frame(0x1, b"x") * count)
        most = handled = 0
        async with asyncio.timeout(WAIT_S):
            while handled < count:
                await asyncio.sleep(0)
                before, handled = handled, running.row(analyzer).received_bytes
                most = max(most, handled - before)
    assert most < count / 2, "the event loop did not run between these messages"


# Failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (401, "unauthorized"),
        (403, "forbidden"),
        (409, "conflict"),
        (426, "upgrade"),
        (200, "handshake"),
        (404, "handshake"),
        (503, "handshake"),
        (Fault.HANG, "timeout"),
        (Fault.EOF, "handshake"),
        (Fault.RESET, "handshake"),
        (Fault.GARBAGE, "handshake"),
        (Fault.CUT, "handshake"),
        (Fault.NAMELESS, "handshake"),
        (Fault.BAD_ACCEPT, "handshake"),
    ],
    ids=str,
)
async def test_failed_attempt_is_counted_logged_and_retried(
    analyzer: FakeAnalyzer,
    caplog: pytest.LogCaptureFixture,
    step: int | Fault,
    reason: str,
) -> None:
    analyzer.script.append(step)
    async with subscribed(make_config(analyzer.url)) as running:
        assert running.row(analyzer).up == 0
        while True:
            # After some faults, the first call returns the subscriber of the failed attempt.
            remote = await analyzer.subscriber()
            if len(analyzer.upgrades) == 2:
                break
        await remote.send(MESSAGE)
        assert await running.message() == MESSAGE
        assert running.reconnects(analyzer) == {reason: 1}
        assert running.row(analyzer).up == 1
    (line,) = lines(caplog)
    assert line.startswith(f"analyzer {analyzer.name}: ")
    assert "next attempt now" in line


async def test_stopped_analyzer_is_retried_until_it_starts(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    await analyzer.stop()
    async with subscribed(make_config(analyzer.url)) as running:
        await until(lambda: running.row(analyzer).reconnects["refused"] >= 3)
        assert not running.subscriptions.any_up
        await analyzer.start()
        await analyzer.subscriber()
        await until(lambda: running.subscriptions.any_up)
    assert set(running.reconnects(analyzer)) == {"refused"}
    assert len(lines(caplog)) == 1


async def test_unknown_host_name_is_counted_as_unresolved(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with subscribed(make_config("ws://unknown.test:8082/ws/subscriber/flow")) as running:
        row = running.stats.analyzers["unknown.test:8082"]
        await until(lambda: row.reconnects["unresolved"] >= 2)
    (line,) = lines(caplog)
    assert "unknown.test:8082: cannot resolve the host name" in line


async def test_addresses_of_a_name_are_tried_in_turn(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def addresses(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    url = f"ws://analyzer.test:{analyzer.port}/ws/subscriber/flow"
    async with subscribed(make_config(url)) as running:
        remote = await analyzer.subscriber()
        assert remote.request.get("Host") == f"analyzer.test:{analyzer.port}"
        (row,) = running.stats.analyzers.values()
        assert not any(row.reconnects.values())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda remote: _do(remote.reset), "closed"),
        (lambda remote: _do(remote.writer.close), "closed"),
        (lambda remote: remote.close(1000), "closed"),
        (lambda remote: remote.close(1001, "going away"), "closed"),
        # The reason is "closed", because skyfast did not send this code itself.
        (lambda remote: remote.close(1009), "closed"),
        (lambda remote: remote.close(1011), "closed"),
        (lambda remote: _cut(remote), "closed"),
        (lambda remote: remote.send_raw(b"HTTP/1.1 200 OK\r\n\r\n" * 10), "error"),
        (lambda remote: remote.send_raw(frame(0xB, b"unknown opcode")), "error"),
        (lambda remote: remote.send_raw(frame(0x0, b"continues nothing")), "error"),
        (lambda remote: remote.send_raw(b"\x81\x84maskmask"), "error"),
        (lambda remote: remote.send_raw(b"\xc1\x04RSV1"), "error"),
    ],
    ids=[
        *("reset", "eof", "close-1000", "close-1001", "close-1009", "close-1011", "cut"),
        *("garbage", "opcode", "continuation", "masked", "reserved-bit"),
    ],
)
async def test_subscription_reconnects_after_its_connection_has_ended(
    analyzer: FakeAnalyzer,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[Any], Awaitable[None]],
    reason: str,
) -> None:
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await analyzer.subscriber()
        await remote.send(b"first")
        assert await running.message() == b"first"
        await end(remote)
        await (await analyzer.subscriber()).send(b"second")
        assert await running.message() == b"second"
        assert running.reconnects(analyzer) == {reason: 1}
    assert len(lines(caplog)) == 1


async def _do(action: Callable[[], None]) -> None:
    action()


async def _cut(remote: Any) -> None:
    await remote.send_raw(frame(0x1, b"x" * 1000)[:500])
    remote.writer.close()


async def test_reconnect_does_not_wait_for_unclosed_socket(
    analyzer: FakeAnalyzer,
) -> None:
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await running.up(analyzer)
        remote.freeze()  # the analyzer does not notice the close
        await remote.send_raw(b"\xff" * 100)
        start_s = time.monotonic()
        await analyzer.subscriber()
        assert time.monotonic() - start_s < PROMPT_S
        assert running.reconnects(analyzer) == {"error": 1}


async def test_half_open_connection_is_detected_by_pings(analyzer: FakeAnalyzer) -> None:
    timing = dataclasses.replace(FAST, ping_interval_s=0.1, ping_timeout_s=0.1)
    async with subscribed(make_config(analyzer.url), timing=timing) as running:
        remote = await running.up(analyzer)
        await asyncio.sleep(0.5)
        assert not running.reconnects(analyzer)  # the analyzer answers pings
        remote.freeze()
        await running.up(analyzer)
        assert running.reconnects(analyzer) == {"timeout": 1}


# Silence -------------------------------------------------------------------------------------


async def test_silent_subscription_reconnects_despite_pings(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    analyzer.ping_interval_s = 0.05
    async with subscribed(make_config(analyzer.url, silence_timeout=0.3)) as running:
        remote = await analyzer.subscriber()
        await remote.send(MESSAGE)
        start_s = time.monotonic()
        await analyzer.subscriber()
        assert time.monotonic() - start_s > 0.25
        assert running.reconnects(analyzer) == {"silent": 1}
        assert remote.pongs >= 3
        await remote.gone()
        assert remote.close_code == 1000  # closed properly: the host ID is free at once
    (line,) = lines(caplog)
    assert "silent" in line


async def test_subscription_that_receives_messages_is_not_silent(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url, silence_timeout=0.2)) as running:
        remote = await analyzer.subscriber()
        for _ in range(8):
            await remote.send(MESSAGE)
            await asyncio.sleep(0.1)
        assert not running.reconnects(analyzer)


async def test_subscription_that_never_delivered_is_not_silent(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url, silence_timeout=0.1)) as running:
        await analyzer.subscriber()
        await asyncio.sleep(0.5)
        assert not running.reconnects(analyzer)


async def test_silence_detection_can_be_disabled(analyzer: FakeAnalyzer) -> None:
    config = make_config(analyzer.url)
    config = dataclasses.replace(
        config, subscriber=dataclasses.replace(config.subscriber, silence_timeout_s=0)
    )
    async with subscribed(config) as running:
        await (await analyzer.subscriber()).send(MESSAGE)
        await asyncio.sleep(0.3)
        assert not running.reconnects(analyzer)


async def test_process_pause_does_not_count_as_silence(
    analyzer: FakeAnalyzer,
) -> None:
    async with subscribed(make_config(analyzer.url, silence_timeout=0.4)) as running:
        remote = await analyzer.subscriber()
        await remote.send(b"before")
        assert await running.message() == b"before"
        time.sleep(1.0)  # noqa: ASYNC251 - stops everything, as SIGSTOP does
        await remote.send(b"after")
        assert await running.message() == b"after"
        assert not running.reconnects(analyzer)


@pytest.mark.parametrize(("behind", "reason"), [(True, "overload"), (False, "closed")])
async def test_disconnect_after_slow_reading_counts_as_overload(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture, behind: bool, reason: str
) -> None:
    timing = dataclasses.replace(FAST, overload_s=1.5)

    def on_message(data: MessageData, stats: AnalyzerStats) -> None:
        time.sleep(0.002)

    async with subscribed(
        make_config(analyzer.url), on_message=on_message, timing=timing
    ) as running:
        remote = await analyzer.subscriber()

        async def send() -> None:
            while True:
                await remote.send_raw(frame(0x1, b"x" * 4096) * (100 if behind else 1))
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send())
        await asyncio.sleep(2 * timing.overload_s)
        sending.cancel()
        remote.reset()
        await until(lambda: running.reconnects(analyzer))
        assert running.reconnects(analyzer) == {reason: 1}
    assert ("too slowly: the analyzer waited " in caplog.text) == behind


async def test_normal_close_does_not_count_as_overload(
    analyzer: FakeAnalyzer,
) -> None:
    timing = dataclasses.replace(FAST, overload_s=0.0)
    async with subscribed(make_config(analyzer.url), timing=timing) as running:
        remote = await analyzer.subscriber()
        await remote.close()
        await until(lambda: running.reconnects(analyzer))
        assert running.reconnects(analyzer) == {"closed": 1}


async def test_reconnect_restores_flows_after_another_subscriber_leaves(
    analyzer: FakeAnalyzer,
) -> None:
    analyzer.stops_after_disconnect = True
    async with subscribed(make_config(analyzer.url, silence_timeout=0.2)) as running:
        await analyzer.subscriber()
        async with subscribed(make_config(analyzer.url, host_id="another")):
            await analyzer.subscriber()
            await analyzer.send(b"1")
            assert await running.message() == b"1"
        await analyzer.send(b"lost")
        await analyzer.subscriber()
        await analyzer.send(b"2")
        assert await running.message() == b"2"
        assert running.reconnects(analyzer) == {"silent": 1}


STATISTICS = b'{"Namespace":"stats","Type":"stats","Obj":{}}'
QUICK = dataclasses.replace(
    FAST,
    tick_s=0.02,
    silence=SilenceTiming(statistics_s=0.1, suspect_s=0.3, silent_s=0.6, slack_s=0.2),
)


class MessageCounter:
    """Callbacks that count messages as `Ingest` does."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.changes = 0

    def on_message(self, data: MessageData, stats: AnalyzerStats) -> None:
        kind = ("stats", "stats") if b"stats" in bytes(data) else ("flow", "store")
        stats.messages[kind] += 1
        if kind == ("stats", "stats"):
            self.activity.reports += 1
            self.activity.changes += 1  # all statistics show that packets arrive

    def on_change(self) -> None:
        self.changes += 1

    @property
    def options(self) -> dict[str, Any]:
        return {
            "on_message": self.on_message,
            "on_change": self.on_change,
            "activity": self.activity,
            "timing": QUICK,
        }


async def _repeat(send: Callable[[bytes], Awaitable[None]], *messages: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            for message in messages:
                await send(message)
            await asyncio.sleep(0.02)


async def test_frequent_statistics_shorten_silence_detection(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    counter = MessageCounter()
    seen: list[tuple[bool, bool, str, dict[str, int]]] = []

    def on_change() -> None:
        subscriptions = running.subscriptions
        seen.append(
            (
                bool(subscriptions.delivering),
                running.row(analyzer).up,
                subscriptions.state(analyzer.name),
                dict(running.reconnects(analyzer)),
            )
        )

    # The estimated number of capture points lasts for 9 * statistics_s. This must be long enough
    # for a busy machine, on which ticks are late.
    silence = dataclasses.replace(QUICK.silence, statistics_s=1.0)
    timing = dataclasses.replace(QUICK, silence=silence)
    options = {**counter.options, "on_change": on_change, "timing": timing}
    async with subscribed(make_config(analyzer.url, silence_timeout=60), **options) as running:
        remote = await running.up(analyzer)
        assert not running.subscriptions.delivering
        sending = asyncio.create_task(_repeat(remote.send, STATISTICS))
        await until(lambda: running.subscriptions.delivering == {analyzer.name})
        assert seen
        await asyncio.sleep(0.5)
        sending.cancel()
        remote = await running.up(analyzer)  # long before the silence timeout
        # The subscription became suspect before it reconnected.
        assert (False, True, "silent", {}) in seen
        assert running.reconnects(analyzer) == {"silent": 1}
        await remote.send(STATISTICS)
        await until(lambda: running.subscriptions.delivering)
    assert re.search(r"subscription fell silent: no message for [1-9] s", caplog.text)


async def test_next_message_ends_the_suspicion_of_silence(analyzer: FakeAnalyzer) -> None:
    counter = MessageCounter()
    timing = dataclasses.replace(QUICK, silence=dataclasses.replace(QUICK.silence, silent_s=60.0))
    options = {**counter.options, "timing": timing}
    async with subscribed(make_config(analyzer.url, silence_timeout=60), **options) as running:
        remote = await running.up(analyzer)
        for _ in range(3):
            await remote.send(STATISTICS)
            changes = counter.changes
            await until(lambda: running.subscriptions.delivering)
            await until(lambda: not running.subscriptions.delivering)
            assert counter.changes >= changes + 2
        assert not running.reconnects(analyzer)


@pytest.mark.parametrize("with_flows", [False, True])
async def test_statistics_without_flows_count_as_silence(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture, with_flows: bool
) -> None:
    """An analyzer sends no flows after one client leaves and another subscribes to statistics."""
    counter = MessageCounter()
    async with subscribed(make_config(analyzer.url), **counter.options) as running:
        running.stats.flow_update_s = 0.3
        remote = await running.up(analyzer)
        await remote.send(MESSAGE)
        more = [MESSAGE] if with_flows else []
        sending = asyncio.create_task(_repeat(remote.send, STATISTICS, *more))
        if with_flows:
            await asyncio.sleep(2)
            assert running.subscriptions.delivering
            assert not running.reconnects(analyzer)
        else:
            await analyzer.subscriber()
            assert running.reconnects(analyzer) == {"silent": 1}
            assert "fell silent: no flows for 1 s, although captures receive packets" in caplog.text
        sending.cancel()


async def test_first_message_counts_as_delivery_if_subscription_ends_at_once(
    analyzer: FakeAnalyzer,
) -> None:
    counter = MessageCounter()
    seen: list[set[str]] = []
    options = {**counter.options, "timing": dataclasses.replace(QUICK, tick_s=60.0)}
    options["on_change"] = lambda: seen.append(running.subscriptions.delivering)
    async with subscribed(make_config(analyzer.url), **options) as running:
        remote = await running.up(analyzer)
        await remote.send(MESSAGE)
        remote.reset()
        await running.up(analyzer)
        assert {analyzer.name} in seen
        assert not running.subscriptions.delivering


async def test_subscribed_and_delivering_analyzers_are_listed() -> None:
    async with FakeAnalyzer() as first, FakeAnalyzer() as second:
        config = make_config(first.url, second.url)
        async with subscribed(config) as running:
            assert not running.subscriptions.subscribed
            remote = await running.up(first)
            await running.up(second)
            assert running.subscriptions.subscribed == {first.name, second.name}
            await remote.send(MESSAGE)
            await until(lambda: running.subscriptions.delivering == {first.name})
            assert running.subscriptions.state(first.name) == "delivering again"
            prepared = running.subscriptions.prepare(make_config(second.url))
            running.subscriptions.configure(prepared)
            await until(lambda: running.subscriptions.subscribed == {second.name})
            assert not running.subscriptions.delivering
            assert running.subscriptions.state(first.name) == "no longer subscribed"
            await second.stop()
            state = running.subscriptions.state
            await until(lambda: state(second.name) == "not subscribed")


def test_silence_is_resolved_before_connections_expire() -> None:
    config = make_config()
    longest_s = (
        config.subscriber.silence_timeout_s * SILENCE_JITTER
        + 2 * DEFAULT_TIMING.tick_s
        + DEFAULT_TIMING.close_timeout_s
        + DEFAULT_TIMING.backoff_first_s
        + 10  # the time until the analyzer flushes its buffered flows
    )
    assert longest_s < config.limits.timeout_s


# Backoff -------------------------------------------------------------------------------------


def test_backoff_has_full_jitter_and_doubles_up_to_limit() -> None:
    ceilings = [0.5, 1, 2, 4, 8, 10, 10, 10]
    tries = [list(itertools.islice(backoff(), len(ceilings))) for _ in range(500)]
    for ceiling, waits in zip(ceilings, zip(*tries, strict=True), strict=True):
        assert 0 <= min(waits) < 0.1 * ceiling
        assert 0.9 * ceiling < max(waits) <= ceiling


async def test_backoff_restarts_after_healthy_subscription(
    analyzer: FakeAnalyzer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscription, "random", SimpleNamespace(uniform=lambda low, high: high))
    timing = dataclasses.replace(
        FAST, backoff_first_s=0.1, backoff_most_s=0.5, healthy_s=0.2, log_interval_s=0.0
    )
    analyzer.script.extend([503, 503])
    async with subscribed(make_config(analyzer.url), timing=timing) as running:
        (await running.up(analyzer)).reset()  # too early to be healthy
        remote = await running.up(analyzer)
        await asyncio.sleep(0.3)
        analyzer.script.append(503)
        remote.reset()
        await analyzer.subscriber()
        assert running.reconnects(analyzer) == {"handshake": 3, "closed": 2}
    waits = [line.rpartition("next attempt in ")[2] for line in lines(caplog)]
    assert waits == ["0.1 s", "0.2 s", "0.4 s", "0.1 s", "0.2 s"]


# The log -------------------------------------------------------------------------------------


async def test_conflict_with_skyfasts_previous_subscription_is_not_a_warning(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    analyzer.unique_host_ids = True
    analyzer.host_id_linger_s = 1.0
    async with subscribed(make_config(analyzer.url)) as running:
        (await running.up(analyzer)).reset()
        await analyzer.subscriber()
        assert running.row(analyzer).reconnects["conflict"] >= 1
    assert not any("HTTP 409" in line for line in lines(caplog))
    assert sum("HTTP 409" in line for line in lines(caplog, logging.INFO)) == 1


async def test_conflict_with_another_client_is_a_warning(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    analyzer.unique_host_ids = True
    timing = dataclasses.replace(FAST, conflict_grace_s=0.0, log_interval_s=0.0)
    async with subscribed(make_config(analyzer.url)) as owner:
        await analyzer.subscriber()
        async with subscribed(make_config(analyzer.url), timing=timing) as late:
            await until(lambda: late.row(analyzer).reconnects["conflict"] >= 2)
            conflict = "another client is subscribed with the same host_id (HTTP 409)"
            assert {conflict in line for line in lines(caplog)} == {True}
            assert not owner.reconnects(analyzer)
            # After the grace period, even a conflict with skyfast's previous subscription is a
            # warning.
            owner.task.cancel()
            remote = await late.up(analyzer)
            caplog.clear()
            analyzer.script.append(409)
            remote.reset()
            await late.up(analyzer)
            assert sum(conflict in line for line in lines(caplog)) == 1
    assert not any("HTTP 409" in line for line in lines(caplog, logging.INFO))


async def test_failures_are_logged_once_per_interval_with_count(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    analyzer.script.extend([503] * 10_000)
    timing = dataclasses.replace(FAST, log_interval_s=0.5)
    counts: dict[str, int] = {}  # for each log line, the number of failures before it

    def count(record: logging.LogRecord) -> bool:
        counts[record.getMessage()] = running.row(analyzer).reconnects["handshake"]
        return True

    async with subscribed(make_config(analyzer.url), timing=timing) as running:
        await until(lambda: len(lines(caplog)) == 1)
        caplog.handler.addFilter(count)
        await until(lambda: len(lines(caplog)) == 2)
        analyzer.script[0] = 403
        await until(lambda: len(lines(caplog)) == 3)
        caplog.handler.removeFilter(count)
    first, second, third = lines(caplog)
    failures = counts[second]
    assert "more suppressed" not in first
    assert failures > 5
    assert second.endswith(f"({failures - 2} more suppressed)")
    assert "still not subscribed" not in first
    assert f"still not subscribed after {failures} attempts: opening handshake failed" in second
    assert "403" in third
    assert "more suppressed" not in third


async def test_last_log_line_shows_current_state(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    """All failures have the same cause, and occur within one interval of the log's rate limit."""
    caplog.set_level(logging.INFO)
    async with subscribed(make_config(analyzer.url)) as running:
        failures = running.row(analyzer).reconnects
        for down in range(1, 4):
            remote = await running.up(analyzer)
            assert "subscribed to analyzer analyzer-1" in caplog.messages[-1]
            analyzer.script.extend([503] * 3)
            remote.reset()
            await until(lambda down=down: failures["handshake"] == 3 * down)
            refused = [line for line in caplog.messages if "HTTP 503" in line]
            assert len(refused) == down  # one line for three failures
            assert ("(2 more suppressed)" in refused[-1]) == (down > 1)
        await running.up(analyzer)
        assert "subscribed to analyzer analyzer-1" in caplog.messages[-1]


async def test_changed_analyzer_name_is_logged_within_the_interval(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    async with subscribed(make_config(analyzer.url)) as running:
        for number in (2, 1, 2):
            remote = await running.up(analyzer)
            analyzer.host_id = f"analyzer-{number}"
            remote.reset()
        await running.up(analyzer)
    renamed = [line for line in lines(caplog) if ", previously" in line]
    assert [line.split()[5].rstrip(",") for line in renamed] == [
        "analyzer-2",
        "analyzer-1",
        "analyzer-2",
    ]


async def test_log_escapes_text_from_the_network(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    analyzer.script.append(Fault.GARBAGE)
    analyzer.host_id = "\x9b\xad" + "h" * 5000
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await running.up(analyzer)
        await remote.close(1001, "\x1b[31m\r\n2026-01-01 forged \u202e\u2028")
        await running.up(analyzer)
        await until(lambda: len(lines(caplog)) == 2)
    logged = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert len(logged) == 4  # two subscriptions and two failures
    assert all(line.isprintable() and len(line) < 600 for line in logged)
    assert any("forged" in line for line in logged)


async def test_secrets_are_not_logged(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    analyzer.username, analyzer.password = "prom", "hunter2"
    analyzer.accepts_basic = False
    analyzer.script.extend([FakeResponse(status=302, headers=(("Location", "/"),)), Fault.GARBAGE])
    url = analyzer.url.replace("ws://", "ws://prom:hunter2@")
    async with subscribed(make_config(url, cookie={"session": "c00kie"})) as running:
        (await running.up(analyzer)).reset()
        analyzer.expire_tokens()
        analyzer.login = Fault.GARBAGE
        await until(lambda: len(analyzer.logins) >= 2)
        analyzer.login = None
        await analyzer.subscriber()
    basic = base64.b64encode(b"prom:hunter2").decode()
    assert caplog.records
    for secret in ("hunter2", basic, "c00kie", "token1", "token2"):
        assert secret not in caplog.text


# Credentials ---------------------------------------------------------------------------------


async def test_login_cookie_is_sent_after_401_until_it_expires(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    analyzer.username, analyzer.password = "prom", "hunter2"
    analyzer.accepts_basic = False
    config = make_config(analyzer.url, username="prom", password="hunter2", cookie={"proxy": "p"})
    async with subscribed(config) as running:
        remote = await running.up(analyzer)
        assert [request.basic for request in analyzer.upgrades] == [("prom", "hunter2"), None]
        assert remote.request.cookies == {"proxy": "p", "authtoken": "token1=="}
        assert running.reconnects(analyzer) == {"unauthorized": 1}

        remote.reset()
        remote = await running.up(analyzer)
        assert remote.request.cookies["authtoken"] == "token1=="
        assert len(analyzer.logins) == 1

        analyzer.expire_tokens()
        remote.reset()
        remote = await running.up(analyzer)
        assert remote.request.cookies["authtoken"] == "token2=="
        assert running.reconnects(analyzer) == {"unauthorized": 2, "closed": 2}
    assert not any("HTTP 401" in line for line in lines(caplog))


async def test_credentials_rejected_by_login_are_a_warning(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    analyzer.username, analyzer.password = "prom", "hunter2"
    async with subscribed(make_config(analyzer.url, username="prom", password="old")) as running:
        await until(lambda: running.row(analyzer).reconnects["unauthorized"] >= 2)
        # After the failed login, Basic auth is tried again.
        assert {request.basic for request in analyzer.upgrades} == {("prom", "old")}
        analyzer.password = "old"
        await analyzer.subscriber()
    (line,) = lines(caplog)
    assert "HTTP 401" in line
    assert "POST /login" in line


async def test_redirect_is_not_followed(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAnalyzer() as elsewhere:
        secret = elsewhere.url.replace("ws://", "ws://prom:hunter2@") + "?token=hunter2"
        target = (("Location", secret),)
        analyzer.script.append(FakeResponse(status=302, headers=target))
        config = make_config(analyzer.url, username="prom", password="hunter2")
        async with subscribed(config) as running:
            await analyzer.subscriber()
            assert running.reconnects(analyzer) == {"handshake": 1}
        assert elsewhere.connections == 0
    (line,) = lines(caplog)
    assert f"HTTP 302, redirect to {elsewhere.url} (not followed); next" in line
    assert "hunter2" not in line


GO = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
NGINX = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"


@pytest.mark.parametrize("response", [GO, NGINX, ALERT, b""], ids=["Go", "nginx", "alert", "none"])
async def test_ws_url_of_a_tls_port_is_explained_in_the_log(
    response: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(response)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with subscribed(make_config(f"ws://127.0.0.1:{port}/ws/subscriber/flow")) as running:
            row = running.stats.analyzers[f"127.0.0.1:{port}"]
            await until(lambda: any(row.reconnects.values()))
    assert "; use wss:// if the analyzer serves TLS; next" in lines(caplog)[0]


async def test_wss_url_of_a_port_without_tls_is_explained_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(NGINX)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with subscribed(make_config(f"wss://127.0.0.1:{port}/ws/subscriber/flow")) as running:
            row = running.stats.analyzers[f"127.0.0.1:{port}"]
            await until(lambda: row.reconnects["handshake"])
    assert "; the port does not serve TLS, use ws://" in lines(caplog)[0]


# Closing -------------------------------------------------------------------------------------


async def test_cancelled_subscription_is_closed_properly(analyzer: FakeAnalyzer) -> None:
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await running.up(analyzer)
    await remote.gone()
    assert remote.close_code == 1000


async def test_closing_does_not_wait_for_unresponsive_analyzer(
    analyzer: FakeAnalyzer,
) -> None:
    assert DEFAULT_TIMING.close_timeout_s <= 1.0
    async with subscribed(make_config(analyzer.url)) as running:
        remote = await running.up(analyzer)
        remote.freeze()
        start_s = time.monotonic()
    assert time.monotonic() - start_s < PROMPT_S


@pytest.mark.parametrize("state", ["connecting", "waiting", "logging in"])
async def test_subscription_can_be_cancelled_in_any_state(
    analyzer: FakeAnalyzer, state: str
) -> None:
    timing = dataclasses.replace(FAST, open_timeout_s=60.0, backoff_first_s=60.0)
    analyzer.script.append(Fault.HANG if state == "connecting" else 401)
    analyzer.login = Fault.HANG
    username = "prom" if state == "logging in" else ""
    async with subscribed(make_config(analyzer.url, username=username), timing=timing) as running:
        await until(lambda: analyzer.upgrades)
        if state == "logging in":
            await until(lambda: analyzer.logins)
        elif state == "waiting":
            await until(lambda: running.reconnects(analyzer))
        start_s = time.monotonic()
    assert time.monotonic() - start_s < PROMPT_S


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("scheme", ["ws", "dns+ws"])
def test_unresponsive_name_server_does_not_block(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], None], scheme: str
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def unanswered(*_: object, **__: object) -> None:
        asked.set()
        answered.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async def scenario() -> None:
        async with subscribed(make_config(f"{scheme}://analyzer.test:8082/ws/subscriber/flow")):
            await until(asked.is_set)

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    start_s = time.monotonic()
    try:
        run(scenario())
        assert time.monotonic() - start_s < PROMPT_S
    finally:
        answered.set()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_subscriptions_work_with_both_event_loops(
    run: Callable[[Any], None], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)

    async def scenario() -> None:
        context = authority.server_context("127.0.0.1")
        async with FakeAnalyzer() as plain, FakeAnalyzer(ssl=context) as secure:
            config = make_config(
                plain.url, secure.url, ca_cert=authority.certificate, silence_timeout=0.2
            )
            async with subscribed(config) as running:
                for analyzer in (plain, secure):
                    remote = await running.up(analyzer)
                    await remote.send(MESSAGE, fragments=2)
                    assert await running.message() == MESSAGE
                    remote.reset()
                    remote = await running.up(analyzer)
                    await remote.send(MESSAGE)
                    assert await running.message() == MESSAGE
                    remote = await analyzer.subscriber()  # reconnected after silence
                    assert running.reconnects(analyzer) == {"closed": 1, "silent": 1}
                    remote.freeze()
                start_s = time.monotonic()
            assert time.monotonic() - start_s < PROMPT_S

    run(scenario())


# TLS -----------------------------------------------------------------------------------------


async def test_client_certificate_is_sent(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client")
    context = authority.server_context("127.0.0.1", ask_clients=True)
    async with FakeAnalyzer(ssl=context) as analyzer:
        config = make_config(
            analyzer.url,
            ca_cert=authority.certificate,
            client_cert=client.certificate,
            client_key=client.key,
        )
        async with subscribed(config) as running:
            remote = await analyzer.subscriber()
            await remote.send(MESSAGE)
            assert await running.message() == MESSAGE
            certificate: Any = remote.writer.get_extra_info("peercert")
            assert (("commonName", "client"),) in certificate["subject"]


async def test_missing_client_certificate_fails_the_handshake(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.server_context("127.0.0.1", ask_clients=True)
    async with FakeAnalyzer(ssl=context) as analyzer:
        async with subscribed(make_config(analyzer.url, ca_cert=authority.certificate)) as running:
            await until(lambda: sum(running.reconnects(analyzer).values()) >= 2)
            assert set(running.reconnects(analyzer)) <= {"handshake", "closed"}
        assert not analyzer.upgrades


async def test_self_signed_server_certificate_can_be_trusted(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    async with (
        FakeAnalyzer(ssl=context) as analyzer,
        subscribed(make_config(analyzer.url, ca_cert=issued.certificate)),
    ):
        await analyzer.subscriber()


@pytest.mark.parametrize("fault", ["authority", "name"])
async def test_untrusted_server_gets_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    name = "127.0.0.1" if fault == "authority" else "analyzer.test"
    trusted = other if fault == "authority" else authority
    async with FakeAnalyzer(ssl=authority.server_context(name)) as analyzer:
        async with subscribed(make_config(analyzer.url, ca_cert=trusted.certificate)) as running:
            await until(lambda: running.reconnects(analyzer).get("handshake", 0) >= 2)
        assert not analyzer.upgrades
    assert "certificate verify failed" in lines(caplog)[0]


async def test_tls_to_plain_server_fails_the_handshake(
    analyzer: FakeAnalyzer, tmp_path: Path
) -> None:
    url = analyzer.url.replace("ws://", "wss://")
    config = make_config(url, ca_cert=Authority(tmp_path).certificate)
    async with subscribed(config) as running:
        await until(lambda: running.reconnects(analyzer))
        assert set(running.reconnects(analyzer)) <= {"handshake", "closed", "timeout"}


@pytest.mark.parametrize("key", ["ca_cert", "client_cert", "client_key", "encrypted"])
def test_unusable_certificate_is_rejected_at_start(tmp_path: Path, key: str) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client", password=b"secret" if key == "encrypted" else b"")
    settings = {
        "ca_cert": authority.certificate,
        "client_cert": client.certificate,
        "client_key": client.key,
    }
    if key == "client_key":
        settings[key] = authority.issue("another").key
    elif key != "encrypted":
        settings[key] = str(Path(__file__))
    named = "client_key" if key == "encrypted" else "ca_cert" if key == "ca_cert" else "client_cert"
    problem = (
        "does not contain PEM|and '.*' are not a matching PEM certificate and key|is encrypted;"
    )
    with pytest.raises(ConfigError, match=rf"^test\.yml: tls\.{named}: '.*' ({problem})"):
        Subscriptions(
            config=make_config("wss://127.0.0.1:1/ws/subscriber/flow", **settings),
            stats=Stats(),
            on_message=lambda *_: None,
        )


# Names with several addresses ----------------------------------------------------------------


async def test_subscriptions_follow_the_addresses_of_a_name() -> None:
    async with two_addresses() as (first, second):
        url = f"dns+ws://analyzers.test:{first.port}/ws/subscriber/flow"
        resolver = FakeResolver(first.address)
        async with subscribed(make_config(url), resolve=resolver) as running:
            first_remote = await first.subscriber()
            assert resolver.asked[0] == ("analyzers.test", first.port)
            assert first_remote.request.get("Host") == f"analyzers.test:{first.port}"
            assert second.name not in running.stats.analyzers

            resolver.answer = [first.address, second.address]
            second_remote = await second.subscriber()
            await second_remote.send(b"from the second")
            assert await running.message() == b"from the second"
            assert running.row(second).received_bytes == len(b"from the second")

            resolver.answer = [second.address]
            await first_remote.gone()
            assert first_remote.close_code == 1000
            await until(lambda: first.name not in running.stats.analyzers)
            await second_remote.send(b"still")
            assert await running.message() == b"still"
            assert len(second.upgrades) == 1

            resolver.answer = [first.address, second.address]
            await first.subscriber()
            # The new subscription has new counters.
            assert running.row(first).reconnects["closed"] == 0


async def test_failed_resolution_keeps_subscriptions_and_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two_addresses() as (first, second):
        name = f"analyzers.test:{first.port}"
        resolver = FakeResolver()
        resolver.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
        url = f"dns+ws://{name}/ws/subscriber/flow"
        async with subscribed(make_config(url), resolve=resolver) as running:
            row = running.stats.analyzers[name]
            await until(lambda: row.reconnects["unresolved"] >= 3)
            assert row.up == 0
            resolver.answer = [first.address, second.address]
            remote = await first.subscriber()
            await second.subscriber()
            await until(lambda: row.up == 1)
            failures = row.reconnects["unresolved"]
            resolver.answer = TimeoutError()
            await until(lambda: row.reconnects["unresolved"] >= failures + 3)
            await remote.send(MESSAGE)
            assert await running.message() == MESSAGE
            assert len(first.upgrades) == 1
    (line,) = lines(caplog)
    assert line.startswith(f"analyzer {name}: cannot resolve the host name: ")
    assert "try again" in line


async def test_unresolved_name_is_retried_soon() -> None:
    resolver = FakeResolver()
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    timing = dataclasses.replace(FAST, resolve_interval_s=60.0)
    config = make_config("dns+ws://analyzers.test:9/ws/subscriber/flow")
    async with subscribed(config, resolve=resolver, timing=timing):
        await until(lambda: len(resolver.asked) >= 4)


async def test_dns_name_is_up_while_any_of_its_addresses_is_up() -> None:
    async with two_addresses() as (first, second):
        name = f"analyzers.test:{first.port}"
        resolver = FakeResolver(first.address, second.address)
        config = make_config(f"dns+ws://{name}/ws/subscriber/flow")
        async with subscribed(config, resolve=resolver) as running:
            row = running.stats.analyzers[name]
            await first.subscriber()
            await second.subscriber()
            await until(lambda: running.row(first).up and running.row(second).up)
            assert row.up == 1
            await first.stop()
            await until(lambda: not running.row(first).up)
            assert row.up == 1
            await second.stop()
            await until(lambda: not row.up)


async def test_address_listed_twice_is_subscribed_once(
    analyzer: FakeAnalyzer,
) -> None:
    resolver = FakeResolver(analyzer.address)
    url = f"dns+ws://analyzers.test:{analyzer.port}/ws/subscriber/flow"
    async with subscribed(make_config(analyzer.url, url), resolve=resolver) as running:
        remote = await analyzer.subscriber()
        await until(lambda: len(resolver.asked) >= 3)
        resolver.answer = []
        resolve_count = len(resolver.asked)
        await until(lambda: len(resolver.asked) >= resolve_count + 2)
        await remote.send(MESSAGE)
        assert await running.message() == MESSAGE
        assert len(analyzer.upgrades) == 1


async def test_number_of_addresses_per_name_is_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolver = FakeResolver(*(f"127.0.1.{i}" for i in range(MAX_ADDRESSES + 10)))
    url = "dns+ws://analyzers.test:9/ws/subscriber/flow"
    async with subscribed(make_config(url), resolve=resolver) as running:
        await until(lambda: len(resolver.asked) >= 3)
        assert len(running.stats.analyzers) == MAX_ADDRESSES + 1
    assert sum("74 addresses" in line for line in lines(caplog)) == 1


async def test_tls_verifies_the_name_instead_of_the_address(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with FakeAnalyzer(
        ssl=authority.server_context("analyzers.test"), username="prom", password="pw"
    ) as analyzer:
        analyzer.accepts_basic = False
        config = make_config(
            f"dns+wss://analyzers.test:{analyzer.port}/ws/subscriber/flow",
            ca_cert=authority.certificate,
            username="prom",
            password="pw",
        )
        async with subscribed(config, resolve=FakeResolver(analyzer.address)) as running:
            await (await analyzer.subscriber()).send(MESSAGE)
            assert await running.message() == MESSAGE
            assert analyzer.logins[0].get("Host") == f"analyzers.test:{analyzer.port}"


# Reasons -------------------------------------------------------------------------------------


def _status(code: int) -> InvalidStatus:
    return InvalidStatus(SimpleNamespace(status_code=code))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (ConnectionRefusedError(111, "refused"), "refused"),
        (OSError(113, "no route"), "refused"),
        (OSError(24, "EMFILE"), "error"),
        (OSError("Multiple exceptions: [Errno 111] …"), "refused"),
        (socket.gaierror(-2, "unknown"), "unresolved"),
        (UnicodeError("label too long"), "unresolved"),
        (TimeoutError(), "timeout"),
        (OSError(110, "ETIMEDOUT"), "timeout"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "handshake"),
        (ConnectionResetError(104, "reset"), "closed"),
        (BrokenPipeError(), "closed"),
        (_status(401), "unauthorized"),
        (_status(403), "forbidden"),
        (_status(409), "conflict"),
        (_status(426), "upgrade"),
        (_status(500), "handshake"),
        (InvalidMessage("no HTTP"), "handshake"),
        (InvalidHeader("Upgrade"), "handshake"),
        (NamelessServerError(), "handshake"),
        (SilenceError(), "silent"),
        (OverloadError(), "overload"),
        (ConnectionClosedError(None, None), "closed"),
        (ConnectionClosedOK(Close(1000, ""), Close(1000, ""), True), "closed"),
        (ConnectionClosedError(None, Close(1009, "")), "too_big"),
        (ConnectionClosedError(Close(1000, ""), Close(1009, ""), False), "too_big"),
        (ConnectionClosedError(Close(1009, ""), Close(1009, ""), True), "closed"),
        (ConnectionClosedError(None, Close(1011, "")), "timeout"),
        (ConnectionClosedError(Close(1011, ""), Close(1011, ""), True), "closed"),
        (ConnectionClosedError(None, Close(1002, "")), "error"),
        (ZeroDivisionError(), "error"),
    ],
    ids=repr,
)
def test_each_exception_maps_to_the_expected_reason(exc: Exception, reason: str) -> None:
    assert classify(exc) == reason
    assert reason in RECONNECT_REASONS
