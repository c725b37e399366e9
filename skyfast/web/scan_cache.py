"""Runs one scan of the table at a time, and keeps its result for a moment.

A scan takes up to some hundred milliseconds, in a thread. Running several at once would only make
each of them slower, so they take turns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class BusyError(Exception):
    """No further scan can be started now."""


class ScanCache(Generic[Key, Result]):
    """The results of scans by key. Belongs to the event loop."""

    def __init__(self, *, keep_s: float, max_results: int, queue: bool) -> None:
        """Begin without a result.

        ``keep_s`` is the number of seconds for which a result is kept; 0 keeps none.
        ``max_results`` limits the results that are kept and the scans that run or wait, together.

        With ``queue``, requests wait for the running scan: those with the same key share its
        result, the others take turns. Without, they get a BusyError.
        """
        self._keep_s = keep_s
        self._max_results = max_results
        self._queue = queue
        self._turn = asyncio.Lock()
        self._results: dict[Key, asyncio.Task[Result]] = {}

    @property
    def is_scanning(self) -> bool:
        """Whether a scan runs."""
        return any(not result.done() for result in self._results.values())

    async def get(self, key: Key, scan: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result for ``key``: the one that is kept, or that of a new ``scan``.

        A scan goes on when the request that started it is cancelled. Its exception is raised by all
        requests that wait for it, and is not kept. ``scan`` is not kept either: it refers to a
        table, whose memory is to be free as soon as another one replaces it.

        Raises:
            BusyError: A scan runs, without ``queue``; or ``max_results`` scans run or wait.

        """
        result = self._results.get(key)
        if result is None:
            result = self._start(key, scan)
        elif not self._queue and not result.done():
            raise BusyError
        return await asyncio.shield(result)

    def _start(self, key: Key, scan: Callable[[], Awaitable[Result]]) -> "asyncio.Task[Result]":
        if not self._queue and self.is_scanning:
            raise BusyError
        if len(self._results) >= self._max_results:
            self._drop_oldest()
        result = self._results[key] = asyncio.create_task(self._run(scan))
        result.add_done_callback(partial(self._done, key))
        return result

    async def _run(self, scan: Callable[[], Awaitable[Result]]) -> Result:
        async with self._turn:
            return await scan()

    def _drop_oldest(self) -> None:
        kept = next((key for key, result in self._results.items() if result.done()), None)
        if kept is None:
            raise BusyError
        del self._results[kept]

    def _done(self, key: Key, result: "asyncio.Task[Result]") -> None:
        # The exception is retrieved here: perhaps no request waits for it any more.
        failed = result.cancelled() or result.exception() is not None
        if failed or not self._keep_s:
            self._drop(key, result)
        else:
            asyncio.get_running_loop().call_later(self._keep_s, self._drop, key, result)

    def _drop(self, key: Key, result: "asyncio.Task[Result]") -> None:
        if self._results.get(key) is result:
            del self._results[key]
