"""How much memory and CPU time do short-lived and returning flows take?

Not measured: sockets.
"""

import itertools
import time

from benchmarks.core import Parts, in_batches, tidy
from benchmarks.flows import FIRST_ROUND, Flows
from benchmarks.harness import LARGE, SCALE, Remote, Report, at_most

NEW_FLOWS_A_MINUTE = SCALE
MEMORY_S = 1290.0
"""The default of ``flow_memory``."""

STEP_S = 5
MEASURED_MINUTES = 3
SLICE_ROWS = 256
"""The number of rows that the app expires between two checks of the clock."""

LIMIT_S = 600


class ExpiringTable(Parts):
    """A table whose flows are reported once and then expire."""

    def __init__(self, count: int, memory_s: float) -> None:
        super().__init__(memory_s=memory_s)
        self._flows = Flows(count)
        self._numbers = iter(range(count))
        tidy()

    def run(self, minutes: float) -> tuple[float, float, int, int]:
        """Process new flows for ``minutes`` of virtual time.

        Returns the CPU time per report and per expiry in ns, the size of the table in bytes, and
        the number of dormant flows.
        """
        taken = update_ns = expire_ns = 0
        for _ in range(int(60 * minutes / STEP_S)):
            new = list(itertools.islice(self._numbers, NEW_FLOWS_A_MINUTE * STEP_S // 60))
            for batch in in_batches(self._flows.messages(new, FIRST_ROUND)):
                count, _, ns = self.take_new(batch)
                taken += count
                update_ns += ns
            self.now_s += STEP_S
            began_ns = time.thread_time_ns()
            while self.table.expire(self.now_s, SLICE_ROWS):
                pass
            expire_ns += time.thread_time_ns() - began_ns
        return (
            update_ns / taken,
            expire_ns / taken,
            self.table.bytes,
            self.table.dormant_flows,
        )


class Crowd(Parts):
    """A table in which all flows become dormant, return and are forgotten at the same times."""

    def __init__(self, count: int) -> None:
        super().__init__(memory_s=MEMORY_S)
        self._flows = Flows(count)
        self._count = count
        self._round = FIRST_ROUND
        tidy()

    def report(self) -> float:
        """Report all flows, and return the CPU time per flow in ns."""
        count = update_ns = 0
        for batch in in_batches(self._flows.messages(range(self._count), self._round)):
            taken, _, ns = self.take_new(batch)
            count += taken
            update_ns += ns
        self._round += 1
        assert self.table.flows == self._count
        return update_ns / count

    def expire(self, seconds: float) -> tuple[float, float]:
        """Advance the time, and process all rows that are due.

        Returns the time per flow in ns, and the time of the longest slice of rows in ms.
        """
        self.now_s += seconds
        took_ns = longest_ns = 0
        more = True
        while more:
            began_ns = time.perf_counter_ns()
            more = self.table.expire(self.now_s, SLICE_ROWS)
            ns = time.perf_counter_ns() - began_ns
            took_ns += ns
            longest_ns = max(longest_ns, ns)
        return took_ns / self._count, longest_ns / 1e6


def run(report: Report) -> None:
    minutes = (MEMORY_S + 75) / 60 + 1
    count = int(NEW_FLOWS_A_MINUTE * (minutes + MEASURED_MINUTES))
    with (
        Remote(ExpiringTable, count, MEMORY_S) as remembering,
        Remote(ExpiringTable, count, 0) as without,
    ):
        filling = [table.begin(ExpiringTable.run, minutes) for table in (remembering, without)]
        for filled in filling:
            filled()
        update_ns, expire_ns, bytes_, dormant = remembering.call(
            ExpiringTable.run, MEASURED_MINUTES
        )
        update_without_ns, expire_without_ns, bytes_without, _ = without.call(
            ExpiringTable.run, MEASURED_MINUTES
        )
    what = f"{NEW_FLOWS_A_MINUTE:,} new flows per minute"
    report.add(
        f"{what}: report",
        [update_ns],
        "ns per flow",
        to="without flow_memory",
        over=[update_without_ns],
    )
    report.add(
        f"{what}: expiry",
        [expire_ns],
        "ns per flow",
        to="without flow_memory",
        over=[expire_without_ns],
    )
    more = (bytes_ - bytes_without) / 1e6
    report.add(f"{what}: additional memory", [more], "MB", target=at_most(165))
    report.add(f"{what}: per dormant flow", [1e6 * more / dormant], "bytes", target=at_most(80))
    with Remote(Crowd, LARGE) as crowd:
        report.add(f"{LARGE:,} new flows", [crowd.call(Crowd.report)], "ns per flow")
        ns, longest_ms = crowd.call(Crowd.expire, 100)
        report.add(f"{LARGE:,} flows become dormant at once", [ns], "ns per flow")
        report.add(f"longest slice of {SLICE_ROWS} rows", [longest_ms], "ms")
        report.add(f"{LARGE:,} dormant flows return", [crowd.call(Crowd.report)], "ns per flow")
        crowd.call(Crowd.expire, 100)
        ns, longest_ms = crowd.call(Crowd.expire, 2_000)
        report.add(f"{LARGE:,} dormant flows are forgotten at once", [ns], "ns per flow")
        report.add(f"longest slice of {SLICE_ROWS} rows", [longest_ms], "ms")
