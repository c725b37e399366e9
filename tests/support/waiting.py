"""Waits for events in tests."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 20.0
"""Maximum time to wait for an event. Usually it takes milliseconds; on a busy machine, seconds."""

PROMPT_S: Final = 4.0
"""Longer than the pauses of a busy machine, and shorter than the timeouts that must not matter."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` returns a true value."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        await asyncio.sleep(0.005)
