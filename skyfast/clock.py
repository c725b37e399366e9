"""The table's clock: monotonic seconds from which pauses of the process are taken out."""

import time
from collections.abc import Callable

PAUSE_S = 5.0
"""A process that did not look at its clock for longer was stopped, and so was its reading."""


class Clock:
    """Seconds since some moment, never running backwards.

    Between two calls of `now` that are more than `PAUSE_S` apart, no time passes: while a machine
    sleeps or a process is stopped (SIGSTOP), flows wait unread in its sockets, and whatever would
    have expired meanwhile must be given the time to be heard of. That only holds when somebody asks
    more often than that; the expiry task does.

    :param source: where seconds come from; a test gives its own.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._last = source()
        self._paused_s = 0.0

    def now(self) -> float:
        """Return the seconds that count."""
        at = self._source()
        gap_s = at - self._last
        self._last = at
        if gap_s > PAUSE_S:
            self._paused_s += gap_s
        return at - self._paused_s

    @property
    def paused_s(self) -> float:
        """How much time was taken out so far."""
        return self._paused_s
