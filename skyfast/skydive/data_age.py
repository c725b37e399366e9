"""Measures the age of data on arrival: the age of one random report in each message.

If the clock of an agent's host is ahead of the clock of this machine, an age can be negative.
Negative ages are not observed.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from skyfast.flows.fields import CLOSING
from skyfast.stats import AnalyzerStats, HistogramStats

MAX_DRAWS: Final = 4
"""Maximum number of attempts to draw a report that is not a closing report."""

Flow = Any
"""A flow report. Its type is one of the plan's `FlowTypes`, and has ``Last`` and ``FinishType``."""


class DataAge:
    """Observes the ages of reports.

    Closing reports are ignored, because agents send them 10 to 20 minutes after the latest packet.
    """

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance

    def observe(self, flows: Sequence[Flow], analyzer: AnalyzerStats, now_ms: float) -> None:
        """Observe one of the ``flows`` of a message that arrived at ``now_ms`` (Unix milliseconds).

        ``packet_age`` observes the time since the latest packet. If ``LastUpdateMetric.Last`` was
        decoded, ``delivery`` observes the time since the agent updated the flow.
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
    if time_ms is not None and 0 < time_ms <= now_ms:
        histogram.observe((now_ms - time_ms) / 1000)
