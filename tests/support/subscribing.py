"""Helpers for tests of subscriptions."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from types import CoroutineType
from typing import Any

import pytest
import websockets

import skyfast
from skyfast.config.model import Config
from skyfast.skydive.subscription import Timing
from skyfast.skydive.subscriptions import Subscriptions
from skyfast.skydive.websocket import MessageData
from skyfast.stats import AnalyzerStats, Stats
from tests.support.analyzer import FakeAnalyzer, Subscriber
from tests.support.waiting import WAIT_S, until

FAST = Timing(
    open_timeout_s=2.0,
    close_timeout_s=0.3,
    ping_interval_s=5.0,
    ping_timeout_s=5.0,
    backoff_first_s=0.02,
    backoff_most_s=0.05,
    healthy_s=30.0,
    tick_s=0.05,
    conflict_grace_s=15.0,
    log_interval_s=60.0,
    resolve_interval_s=0.05,
)


class Subscribed:
    """Running subscriptions, and the messages that they have received."""

    running = 0

    def __init__(self, config: Config, **options: Any) -> None:
        self.stats = Stats()
        self.messages: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
        options.setdefault("on_message", self._on_message)
        options.setdefault("timing", FAST)
        self.subscriptions = Subscriptions(config=config, stats=self.stats, **options)
        self.task = asyncio.create_task(self.subscriptions.run())

    def _on_message(self, data: MessageData, analyzer: AnalyzerStats) -> None:
        self.messages.put_nowait((bytes(data), analyzer.name))

    async def up(self, analyzer: FakeAnalyzer) -> Subscriber:
        """Wait until the analyzer and skyfast have both noticed a new subscription."""
        remote = await analyzer.subscriber()
        await until(lambda: self.row(analyzer).up)
        return remote

    async def message(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return (await self.messages.get())[0]

    def row(self, analyzer: FakeAnalyzer) -> AnalyzerStats:
        return self.stats.analyzers[analyzer.name]

    def reconnects(self, analyzer: FakeAnalyzer) -> dict[str, int]:
        """Return the number of reconnects by reason, without zeros."""
        return {reason: n for reason, n in self.row(analyzer).reconnects.items() if n}


@contextlib.asynccontextmanager
async def subscribed(config: Config, **options: Any) -> AsyncIterator[Subscribed]:
    """Run subscriptions. Check that they end in time, with all their tasks."""
    running = Subscribed(config, **options)
    Subscribed.running += 1
    try:
        yield running
    finally:
        Subscribed.running -= 1
        running.task.cancel()
        done, _ = await asyncio.wait([running.task], timeout=WAIT_S)
        assert done, "the subscriptions did not end"
        assert running.task.cancelled()
        assert not any(row.up for row in running.stats.analyzers.values())
        if not Subscribed.running:
            assert not _tasks_of_subscriptions()


def _tasks_of_subscriptions() -> list[asyncio.Task[Any]]:
    packages = tuple(path for package in (skyfast, websockets) for path in package.__path__)
    return [
        task
        for task in asyncio.all_tasks()
        if isinstance(coroutine := task.get_coro(), CoroutineType)
        and coroutine.cr_code.co_filename.startswith(packages)
    ]


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return the messages that were logged at exactly ``level``."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


class FakeResolver:
    """A DNS resolver that returns ``answer``, which tests can change."""

    def __init__(self, *addresses: str) -> None:
        self.answer: list[str] | OSError = list(addresses)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@contextlib.asynccontextmanager
async def two_addresses() -> AsyncIterator[tuple[FakeAnalyzer, FakeAnalyzer]]:
    """Yield analyzers at two loopback addresses with the same port."""
    async with (
        FakeAnalyzer() as first,
        FakeAnalyzer(address="127.0.0.2", port=first.port) as second,
    ):
        yield first, second
