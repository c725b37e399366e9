"""Helpers for the event loop: wait for a condition, and run a task or an app during a test."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skyfast.app import App
from skyfast.config.model import Config

STOP_S = 5.0


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def cancelled_afterwards(run: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run a coroutine that never returns, and cancel it at the end."""
    task = asyncio.create_task(run)
    try:
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(2):
            with pytest.raises(asyncio.CancelledError):
                await task


@asynccontextmanager
async def running_app(
    config: Config, load: Callable[[], Config] | None = None
) -> AsyncIterator[App]:
    """Run an app. A reload calls ``load`` for the new configuration."""
    app, stopping = App(config, load=load or (lambda: config)), asyncio.Event()
    task = asyncio.create_task(app.run(stopping))
    try:
        yield app
    finally:
        stopping.set()
        async with asyncio.timeout(STOP_S):
            await task
