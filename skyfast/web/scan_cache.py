"""A cache of the results of table scans, which run one at a time.

A scan takes up to hundreds of milliseconds. Concurrent scans would only slow each other down.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class BusyError(Exception):
    """No further scan can be started at the moment."""


class ScanCache(Generic[Key, Result]):
    """The results of scans by key. Must be used on the event loop."""

    def __init__(self, *, keep_s: float, max_results: int, queue: bool) -> None:
        """Create an empty cache.

        * Results are kept for ``keep_s`` seconds. If ``keep_s`` is 0, results are not kept.
        * ``max_results`` limits the number of cached results, running scans and waiting scans
          together.
        * If ``queue`` is true, requests wait until the running scan ends, and requests with the
          same key share one scan. If ``queue`` is false, requests during a scan raise BusyError.
        """
        self._keep_s = keep_s
        self._max_results = max_results
        self._queue = queue
        self._turn = asyncio.Lock()
        self._results: dict[Key, asyncio.Task[Result]] = {}

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is running or waiting."""
        return any(not result.done() for result in self._results.values())

    async def get(self, key: Key, scan: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result for ``key``, from the cache or from a new ``scan``.

        A scan continues even if the request that started the scan is cancelled. If the scan raises
        an exception, all waiting requests raise the exception, and nothing is cached. After a
        success, the cache keeps no reference to ``scan``. Otherwise, the table to which ``scan``
        refers could not be freed when another table replaces it.

        Raises:
            BusyError: A scan is running and ``queue`` is false, or ``max_results`` would be
                exceeded.

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
        # Retrieve the exception, because asyncio logs exceptions that nobody has retrieved.
        failed = result.cancelled() or result.exception() is not None
        if failed or not self._keep_s:
            self._drop(key, result)
        else:
            asyncio.get_running_loop().call_later(self._keep_s, self._drop, key, result)

    def _drop(self, key: Key, result: "asyncio.Task[Result]") -> None:
        if self._results.get(key) is result:
            del self._results[key]
