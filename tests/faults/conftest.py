"""Runs the selected trials concurrently, because each trial spends most of its time waiting.

The first test starts all trials, on an event loop in a thread. Each test then waits for its own
trial.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

MAX_CONCURRENT = 10
"""Maximum number of trials at a time. Each runs a skyfast process, which needs 60 MB."""

TRIAL_S = 120.0
"""Maximum duration of a trial, including the wait until it starts."""

NIGHTLY_TRIAL_S = 600.0


class Trials:
    """All trials of this run, by the node ID of their test."""

    def __init__(self, items: list[pytest.Item], directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="trials")
        self._thread.start()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._running: dict[str, concurrent.futures.Future[None]] = {}
        for number, item in enumerate(items):
            trial = getattr(getattr(item, "function", None), "trial", None)
            skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
            if trial is not None and not skipped:
                parameters = item.callspec.params if hasattr(item, "callspec") else {}
                trial_directory = directory / str(number)
                trial_directory.mkdir()
                self._running[item.nodeid] = asyncio.run_coroutine_threadsafe(
                    self._run(trial, trial_directory, parameters), self._loop
                )

    async def _run(
        self, trial: Callable[..., Awaitable[None]], directory: Path, parameters: dict[str, object]
    ) -> None:
        async with self._slots:
            await trial(directory, **parameters)

    def wait_for(self, item: pytest.Item) -> None:
        nightly = item.get_closest_marker("nightly") is not None
        self._running[item.nodeid].result(NIGHTLY_TRIAL_S if nightly else TRIAL_S)

    def stop(self) -> None:
        for trial in self._running.values():
            trial.cancel()
        concurrent.futures.wait(self._running.values(), timeout=TRIAL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(scope="session")
def trials(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trials]:
    running = Trials(request.session.items, tmp_path_factory.mktemp("trials"))
    yield running
    running.stop()
