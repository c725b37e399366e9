"""The table's clock, which stops while the process is paused and while expiry is on hold."""

import math
import time
from collections.abc import Callable

PAUSE_S = 5.0
"""A longer time between two readings of the clock means that the process was paused."""


class Clock:
    """Monotonic seconds since an arbitrary point in time, excluding pauses and holds.

    A pause is a period in which the process does not run, because the machine sleeps or because
    the process is stopped (SIGSTOP). During a pause, reports wait unread in the sockets. If the
    clock included pauses, flows would expire before skyfast has read these reports. Without a
    pause, the expiry task reads the clock twice a second. Therefore a gap of more than `PAUSE_S`
    between two readings means that there was a pause.

    A hold is a period in which `hold` keeps the clock stopped, because reports may be missing: see
    `skyfast.skydive.reporting_gap`.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        """``source`` returns monotonic seconds."""
        self._source = source
        self._last = source()
        self._paused_s = 0.0
        self._held_s = 0.0
        self._held_at: float | None = None
        self._latest = -math.inf
        """The latest result of `now`. Rounding errors must not make any later result lower."""

    def now(self) -> float:
        running = self.running()
        if self._held_at is not None:
            return self._held_at
        self._latest = max(running - self._held_s, self._latest)
        return self._latest

    def running(self) -> float:
        """Return the time in seconds. Unlike `now`, this time includes holds."""
        source_s = self._source()
        gap_s = source_s - self._last
        self._last = source_s
        if gap_s > PAUSE_S:
            self._paused_s += gap_s
        return source_s - self._paused_s

    def hold(self, held: bool) -> None:
        """Stop the clock if ``held`` is true. If ``held`` is false, let a stopped clock run on."""
        if held and self._held_at is None:
            self._held_at = self.now()
        elif not held and self._held_at is not None:
            self._held_s = self.running() - self._held_at
            self._held_at = None

    @property
    def held(self) -> bool:
        return self._held_at is not None

    @property
    def held_s(self) -> float:
        """The total time of all holds in seconds, excluding pauses."""
        if self._held_at is not None:
            return self.running() - self._held_at
        return self._held_s

    @property
    def paused_s(self) -> float:
        return self._paused_s
