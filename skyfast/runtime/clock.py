"""The clock of the table: monotonic seconds, without pauses of the process or of expiry."""

import math
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

    While the clock is held, no time passes either: `skyfast.skydive.reporting_gap` says when.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        """Begin now. Seconds come from ``source``; a test gives its own."""
        self._source = source
        self._last = source()
        self._paused_s = 0.0
        self._held_s = 0.0
        self._held_at: float | None = None
        self._latest = -math.inf
        """What `now` has returned: what is taken out is rounded, and must not bring it back."""

    def now(self) -> float:
        """Return the seconds that count."""
        running = self.running()
        if self._held_at is not None:
            return self._held_at
        self._latest = max(running - self._held_s, self._latest)
        return self._latest

    def running(self) -> float:
        """Return the same without holds: pauses alone are taken out."""
        at = self._source()
        gap_s = at - self._last
        self._last = at
        if gap_s > PAUSE_S:
            self._paused_s += gap_s
        return at - self._paused_s

    def hold(self, held: bool) -> None:
        """Let the clock stand still, or go on from where it stands."""
        if held and self._held_at is None:
            self._held_at = self.now()
        elif not held and self._held_at is not None:
            self._held_s = self.running() - self._held_at
            self._held_at = None

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return self._held_at is not None

    @property
    def held_s(self) -> float:
        """For how long the clock has stood still so far, without pauses."""
        if self._held_at is not None:
            return self.running() - self._held_at
        return self._held_s

    @property
    def paused_s(self) -> float:
        """How much time was taken out for pauses so far."""
        return self._paused_s
