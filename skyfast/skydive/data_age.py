"""Measures the age of data on arrival: the age of one random report of each message.

The ages depend on the clocks of the agents' hosts and of this machine. If the clocks differ, an age
can be negative; negative ages are not observed. `skyfast.skydive.clock_skew` detects wrong clocks.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from skyfast.flows.fields import CLOSING
from skyfast.stats import AnalyzerStats, HistogramStats

MAX_DRAWS: Final = 4
"""Maximum number of reports that are drawn from a message. If all of these reports are closing
reports, nothing is observed."""

Flow = Any
"""A decoded flow report: an object of one of the plan's `FlowTypes`. All of these types have the
fields ``Last`` and ``FinishType``."""


class DataAge:
    """Observes the ages of random reports.

    Closing reports are not observed: agents send them 10 to 20 minutes after the latest packet.
    """

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        """``chance`` returns random numbers from 0 to 1."""
        self._chance = chance

    def observe(self, flows: Sequence[Flow], analyzer: AnalyzerStats, now_ms: float) -> None:
        """Observe one of the ``flows`` of a message that arrived at ``now_ms`` (Unix milliseconds).

        The histogram ``delivery`` counts the report only if ``LastUpdateMetric.Last``, the time of
        the agent's update, was decoded.
        """
        if not flows:
            return
        for _ in range(MAX_DRAWS):
            flow = flows[int(self._chance() * len(flows))]
            if flow.FinishType != CLOSING:
                break
        else:
            return
        _observe(analyzer.packet_age, flow.Last, now_ms)
        update = getattr(flow, "LastUpdateMetric", None)
        _observe(analyzer.delivery, getattr(update, "Last", 0), now_ms)


def _observe(histogram: HistogramStats, time_ms: int | None, now_ms: float) -> None:
    """Observe the time since ``time_ms``, unless ``time_ms`` is in the future, 0 or None."""
    if time_ms is not None and 0 < time_ms <= now_ms:
        histogram.observe((now_ms - time_ms) / 1000)
