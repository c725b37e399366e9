"""Helpers for tests of the web server."""

import asyncio
import functools
import inspect
import threading

import pytest
import uvloop

from skyfast.flows.plan import Column, Counter, Direction, Family, Gauge, View
from skyfast.skydive.capture_points import CapturePoints
from skyfast.skydive.captures import Captures
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.known_names import KnownNames
from skyfast.stats import Stats
from skyfast.web.cardinality import Cardinality
from skyfast.web.exposition import ExpositionSource
from skyfast.web.status import Status, StatusSource
from skyfast.web.top import Ranking
from tests.support.configs import make_config
from tests.support.waiting import WAIT_S

TEST_TIMEOUT_S = 2 * WAIT_S

FLOWS = b"""\
# HELP skydive_network_connection_total_bytes Bytes.
# TYPE skydive_network_connection_total_bytes counter
skydive_network_connection_total_bytes{initiator_ip="10.0.0.1",target_ip="10.0.0.2"} 7
"""

INTERFACES = b"""\
# HELP skydive_network_interface_rx_bytes Bytes received by the interface.
# TYPE skydive_network_interface_rx_bytes counter
skydive_network_interface_rx_bytes{interface_name="eth0"} 8
"""

CAPTURES = b"""\
# HELP skydive_capture_flows Flows in the agent's table.
# TYPE skydive_capture_flows gauge
skydive_capture_flows{capture_id="c-1"} 9
"""

PROMETHEUS = {
    "2.42": (
        "application/openmetrics-text;version=1.0.0,"
        "application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    ),
    "2.42, native histograms": (
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
        "encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,"
        "application/openmetrics-text;version=0.0.1;q=0.75,"
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    ),
    "3": (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
        "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    ),
}
"""``Accept`` headers by version of Prometheus."""

PROMETHEUS_OPENMETRICS_2 = (
    "application/openmetrics-text;version=2.0.0;escaping=allow-utf-8;q=0.7,*/*;q=0.6"
)
"""Prometheus 3.16 with ``scrape_protocols: [OpenMetricsText2.0.0]``."""

VIEW = View(
    columns=(
        Column(name="initiator_ip", path=("Network", "A")),
        Column(name="target_ip", path=("Network", "B")),
    ),
    direction=Direction(position=2),
    families=(
        Family(
            name="skydive_network_connection_total_bytes",
            help="Bytes.",
            type="counter",
            values=(
                Counter(paths=(("Metric", "ABBytes"),)),
                Counter(paths=(("Metric", "BABytes"),)),
            ),
        ),
        Family(
            name="skydive_network_connection_rtt_nanoseconds",
            help="Round-trip time.",
            type="gauge",
            values=(Gauge(path=("Metric", "RTT")),),
        ),
    ),
)

BIG = FLOWS + b"".join(
    b'skydive_network_connection_total_bytes{initiator_ip="10.%d.%d.%d",target_ip="10.0.0.2"} %d\n'
    % (i >> 16, i >> 8 & 255, i & 255, i * i)
    for i in range(1, 130_000)
)
"""A page of 12 MB, larger than the kernel's socket buffers."""


class FakeTable:
    """Replaces the compiled table. All its pages have the text ``content``.

    Rendering raises an exception at ``break_at``, and waits for ``resume`` at ``pause_at``. With
    ``pause_scans``, each scan of the rows also waits for ``resume``.
    """

    connections = 2
    flows = 3
    dormant_flows = 15
    dormant_connections = 16
    bytes = 4
    created_total = 5
    expired_total = 6
    rejected_total = 7
    overflowed_total = 11
    view_connections = ()
    view_rejected_totals = ()

    def __init__(self, content=FLOWS, *, break_at=None, pause_at=None, pause_scans=False):
        self.content = content
        self.break_at = break_at
        self.pause_at = pause_at
        self.pause_scans = pause_scans
        self.resume = threading.Event()
        self.skipped = {"late": 8, "no_network": 9}
        self.finished = {"fin": 10}
        self.values_skipped = {"Metric.RTT": 14}
        self.values = {
            "initiator_ip": [("10.0.0.1", 2)],
            "target_ip": [("10.0.0.2", 1), ("10.0.0.3", 1)],
        }
        self.rows = [
            (12, ("10.0.0.1", "10.0.0.2"), (7, 5, 1_500_000), True),
            (3, ("10.0.0.1", "10.0.0.3"), (3, 0, None), True),
        ]
        self.scans = []
        self.asked_at = []
        self.queries = []
        self.rendered_bytes = 0
        self.threads = set()

    def page(self, now, openmetrics=0, **query):
        self.asked_at.append(now)
        self.queries.append(query)
        return FakePage(self)

    def label_values(self):
        self._scan("label_values")
        return {label: len(values) for label, values in self.values.items()}

    def cardinality(self, count, without=None, view=0, /):
        self._scan(f"cardinality {without or ''}".rstrip())
        labels = {
            name: (len(values), values[:count], self._remaining(name))
            for name, values in self.values.items()
        }
        return self.connections, labels, True, self._remaining(without) if without else None

    def _remaining(self, without):
        """Return the highest number of values of a label, except ``without``."""
        return max(
            (len(values) for name, values in self.values.items() if name != without), default=0
        )

    def top(self, family, count, since=None, containing="", also=()):
        self._scan(f"top {family} {count} {containing}".rstrip())
        rows = self.rows if since is None else [row for row in self.rows if row not in since]
        return [row for row in rows if any(containing in label for label in row[1])][:count]

    def top_groups(self, family, count, labels, since=None, containing="", also=(), max_groups=0):
        """Return no groups: all matching rows belong to the remainder."""
        self._scan("groups")
        rows = [row for row in self.rows if any(containing in label for label in row[1])]
        return [], (len(rows), None, (None,) * 3), 0, False

    def hidden(self, now):
        return [None] * (1 + len(self.view_connections))

    def snapshot(self, family):
        self._scan(f"snapshot {family}")
        return Snapshot(self.rows)

    def _scan(self, scan):
        self.threads.add(threading.current_thread())
        self.scans.append(scan)
        if self.pause_scans:
            assert self.resume.wait(TEST_TIMEOUT_S)


class Snapshot(list):
    """A list that, unlike `list` itself, can have weak references."""


class FakePage:
    def __init__(self, table):
        self.table = table
        self.position = 0

    def distinct_values(self, label, /):
        assert self.position == 0
        self.table._scan(f"distinct_values {label}")
        return [value for value, _ in self.table.values[label]]

    def read(self, size, /):
        table = self.table
        table.threads.add(threading.current_thread())
        if table.break_at is not None and self.position >= table.break_at:
            raise ValueError("rendering broke")
        if table.pause_at is not None and self.position >= table.pause_at:
            assert table.resume.wait(TEST_TIMEOUT_S)
        chunk = table.content[self.position : self.position + size]
        self.position += len(chunk)
        table.rendered_bytes += len(chunk)
        return chunk


class FakePart:
    """Replaces the interfaces or the captures of a page."""

    def __init__(self, content):
        self.content = content
        self.requests = []

    def page(self, now, openmetrics=0, *, created=False):
        self.requests.append((openmetrics, created))
        return self.content


def source(
    table=None,
    *,
    interfaces=INTERFACES,
    captures=CAPTURES,
    interface_info=None,
    views=(),
    standard_names=False,
    start_timestamps=False,
    view=VIEW,
):
    """Return an exposition source whose flows, interfaces and captures are fake."""
    table = table or FakeTable()
    return ExpositionSource(
        table=table,
        cardinality=Cardinality(table=table, view=view),
        views=views,
        table_families=tuple(family.name for family in view.families),
        interface_info=interface_info,
        interfaces=FakePart(interfaces),
        captures=FakePart(captures),
        standard_names=standard_names,
        start_timestamps=start_timestamps,
    )


def status(table=None, *, stats=None, config=None, ready=lambda: True, view=VIEW, replay=None):
    """Return the content of the status page, without interfaces and captures."""
    table, stats = table or FakeTable(), stats or Stats()
    interfaces = Interfaces(interval_s=20, connection_timeout_s=60, stats=stats.topology)
    return Status(
        source=StatusSource(
            config=config or make_config(),
            table=table,
            series=(sum(family.series for family in view.families),),
            ranking=Ranking(table=table, view=view, metrics=("bytes", "rtt")),
            interfaces=interfaces,
            captures=Captures(naming="compatible", stats=stats.captures),
            capture_points=CapturePoints(),
            names=KnownNames(index=None, interfaces=interfaces),
            forecaster=None,
        ),
        stats=stats,
        ready=ready,
        now=lambda: 100.0,
        replay=replay,
    )


def page_threads():
    return [thread for thread in threading.enumerate() if thread.name == "skyfast-page"]


def on_both_loops(test):
    """Run an async test on asyncio and uvloop, with a timeout."""
    signature = inspect.signature(test)

    async def bounded(fixtures):
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await test(**fixtures)

    @functools.wraps(test)
    def run(new_loop, **fixtures):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(bounded(fixtures))

    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[new_loop, *signature.parameters.values()])
    return pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )(run)
