"""The clock of the table: monotonic seconds, excluding pauses of the process and of expiry."""

import math
import time
from collections.abc import Callable

PAUSE_S = 5.0
"""If the clock is not read for this long, the process was paused, so it read no messages either."""


class Clock:
    """Monotonic seconds since an arbitrary moment.

    If two calls of `now` are more than `PAUSE_S` apart, the clock does not count the time between
    them. While the machine sleeps or the process is paused (SIGSTOP), flows wait unread in the
    sockets. Connections must not expire before these flows are read. In normal operation, calls of
    `now` must be less than `PAUSE_S` apart; the expiry task ensures this.

    The clock also stands still while it is held. `skyfast.skydive.reporting_gap` decides when to
    hold it.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        """Start the clock. ``source`` returns seconds; tests pass their own."""
        self._source = source
        self._last = source()
        self._paused_s = 0.0
        self._held_s = 0.0
        self._held_at: float | None = None
        self._latest = -math.inf
        """The latest result of `now`. The next result must not be lower, in spite of rounding."""

    def now(self) -> float:
        """Return the time in seconds, without pauses and holds."""
        running = self.running()
        if self._held_at is not None:
            return self._held_at
        self._latest = max(running - self._held_s, self._latest)
        return self._latest

    def running(self) -> float:
        """Return the time in seconds, without pauses but including holds."""
        source_s = self._source()
        gap_s = source_s - self._last
        self._last = source_s
        if gap_s > PAUSE_S:
            self._paused_s += gap_s
        return source_s - self._paused_s

    def hold(self, held: bool) -> None:
        """If ``held``, stop the clock at its current value; if not, continue from this value."""
        if held and self._held_at is None:
            self._held_at = self.now()
        elif not held and self._held_at is not None:
            self._held_s = self.running() - self._held_at
            self._held_at = None

    @property
    def held(self) -> bool:
        """Whether the clock is held."""
        return self._held_at is not None

    @property
    def held_s(self) -> float:
        """The total time for which the clock was held, without pauses."""
        if self._held_at is not None:
            return self.running() - self._held_at
        return self._held_s

    @property
    def paused_s(self) -> float:
        """The total time of all pauses."""
        return self._paused_s
