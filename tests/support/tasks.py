"""Runs a task or an app during a test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skyfast.app import App
from skyfast.config.model import Config
from tests.support.waiting import WAIT_S


@asynccontextmanager
async def cancelled_afterwards(run: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run a coroutine that never returns, and cancel it at the end."""
    task = asyncio.create_task(run)
    try:
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(WAIT_S):
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
        async with asyncio.timeout(WAIT_S):
            await task
