"""Runs skyfast and measures the delays of its event loop.

    python -m benchmarks.heartbeat CONFIG CONTROL_PORT

The heartbeat is a task that repeatedly sleeps for `INTERVAL_S`, and records how late it wakes up.
Commands to the control port are single lines: ``begin`` discards the recorded delays, ``end``
returns them, and ``pass SECONDS`` advances the clock.

Environment variables change constants of skyfast:

* ``NAMES_INTERVAL_S``: the interval at which skyfast reads the complete topology
* ``RESULT_AGE_S``: the time for which skyfast caches rankings and cardinality reports
* ``FLOW_UPDATE_S``: the assumed ``flow.update``; the first rates appear after this time
"""

import asyncio
import json
import math
import os
import sys
import time

from skyfast import app, cli, runner, stats
from skyfast.runtime.clock import PAUSE_S, Clock
from skyfast.skydive import name_poller
from skyfast.web import cardinality, top

INTERVAL_S = 0.001
STEP_S = PAUSE_S / 2


class Measured(app.App):
    """An app with a heartbeat, and a clock that can be advanced."""

    _delays_s: list[float]
    _ahead_s = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        self._delays_s = []
        beating = asyncio.create_task(self._beat())
        async with await asyncio.start_server(self._control, "127.0.0.1", int(sys.argv[2])):
            await super().run(stopping)
        beating.cancel()

    async def _beat(self) -> None:
        clock_s = time.perf_counter
        while True:
            began_s = clock_s()
            await asyncio.sleep(INTERVAL_S)
            self._delays_s.append(clock_s() - began_s - INTERVAL_S)

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply: object = None
        match (await reader.readline()).split():
            case [b"begin"]:
                self._delays_s = []
            case [b"end"]:
                reply = self._delays_s
            case [b"pass", seconds]:
                self._pass(float(seconds))
        writer.write(json.dumps(reply).encode())
        writer.close()

    def _pass(self, seconds: float) -> None:
        # The clock would treat a single long step as a pause of the process.
        for _ in range(math.ceil(seconds / STEP_S)):
            Measured._ahead_s += STEP_S
            self.clock.now()


def waits_ms(delays_s: list[float]) -> list[float]:
    """Return the waiting times, in ms, of events that arrive every `INTERVAL_S`.

    During a stall, the heartbeat records only one delay, but the stall delays all events that
    arrive during the stall. Example: a stall of 5 ms delays events by 5, 4, 3, 2 and 1 ms.
    """
    waits = []
    for delay_s in delays_s:
        wait_s = max(delay_s, 0.0)
        waits.append(wait_s * 1e3)
        while (wait_s := wait_s - INTERVAL_S) > 0:
            waits.append(wait_s * 1e3)
    return waits


def _now_s() -> float:
    return time.monotonic() + Measured._ahead_s


if __name__ == "__main__":
    if interval_s := os.environ.get("NAMES_INTERVAL_S"):
        name_poller.FULL_INTERVAL_S = float(interval_s)  # type: ignore[misc]
    if age_s := os.environ.get("RESULT_AGE_S"):
        top.RESULT_AGE_S = cardinality.REPORT_AGE_S = float(age_s)  # type: ignore[misc]
    if update_s := os.environ.get("FLOW_UPDATE_S"):
        stats.FLOW_UPDATE_S = float(update_s)
    runner.App = Measured  # type: ignore[attr-defined]
    app.Clock = lambda: Clock(_now_s)  # type: ignore[assignment, attr-defined, misc]
    sys.exit(cli.main(sys.argv[1:2]))
