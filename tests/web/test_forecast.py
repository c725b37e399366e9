"""The forecast for a bound has the numbers of a page with this bound."""

import html
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyfast.flows.selection import Bounds
from skyfast.web import forecast
from skyfast.web.forecast import LISTED, PROPOSED, as_text, make_forecast, percent, size
from tests.model import DIRECTION, LABELS, Spec, View, make_flow
from tests.support.model_specs import compatible, labelled, standard, traffic
from tests.support.status_site import StatusSite
from tests.support.table_adapter import Core, read_all

BYTES = "skydive_network_connection_total_bytes"
NO_BOUNDS = (0, 0)


def lines_of(core, spec, now=0.0):
    """Return the sample lines of the first view, and those of all other views."""
    page = core.page(now)
    shown = [[line for f in view.families for line in page[f.name]] for view in spec.views]
    return shown[0], [line for lines in shown[1:] for line in lines]


def bytes_in(lines):
    return sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith(BYTES))


amounts = st.one_of(
    st.integers(0, 20),
    st.integers(900, 1100),
    st.sampled_from([n + d for n in (10_000, 100_000, 1_000_000, 10_000_000) for d in (-1, 0, 1)]),
    st.integers(0, 10**8),
    st.just(2**62),
)
connections = st.lists(
    st.tuples(amounts, amounts, st.integers(0, 5), st.sampled_from((0, 7))), max_size=25
)


@settings(deadline=None, max_examples=150)
@given(
    rows=connections,
    metrics=st.sampled_from([("bytes",), ("bytes", "packets", "rtt"), ("rtt", "bytes", "flows")]),
    direction=st.sampled_from([(DIRECTION,), ()]),
    min_bytes=st.sampled_from((0, 5, 10_000)),
    min_packets=st.sampled_from((0, 0, 3)),
    max_series=st.sampled_from((0, 1, 3, 10, 50, 1000)),
    overflow=st.sampled_from(("drop", "other")),
)
def test_forecast_equals_the_page(
    rows, metrics, direction, min_bytes, min_packets, max_series, overflow
):
    spec = Spec(
        views=(
            View(
                (*labelled("initiator_ip", "node_tid"), *direction),
                compatible(*metrics),
                amounts=("bytes", "packets"),
            ),
            traffic(),
            View(labelled("initiator_port"), standard("port", "bytes"), amounts=("bytes",)),
        ),
        max_connections=20,
        overflow=overflow,
    )
    core = Core(spec)
    for n, (a, b, packets, rtt) in enumerate(rows):
        flow = make_flow(f"{n + 1:x}", (a, b, packets, 0), rtt=rtt, a=f"10.0.0.{n}", ports=(n, 1))
        core.report(flow, 0)
    bounds = [Bounds(min_bytes, min_packets), Bounds(), Bounds(min_bytes=100)]
    core.bounds = bounds
    made = make_forecast(core.table, bounds, max_series=max_series, now=0)
    current, others = lines_of(core, spec)
    assert made.current.series == len(current)
    assert made.current.bytes == bytes_in(current)
    assert made.other_series == len(others)
    whole = made.unbounded.bytes
    for one in (made.unbounded, *made.bounds, *filter(None, [made.proposed])):
        pair = NO_BOUNDS if one.min_bytes == 0 else (one.min_bytes, min_packets)
        core.bounds = [pair, *bounds[1:]]
        lines, _ = lines_of(core, spec)
        assert (one.series, one.bytes) == (len(lines), bytes_in(lines))
        hidden = core.table.hidden(0)[0] or (0, 0)
        assert hidden[0] + one.connections == made.unbounded.connections
        assert hidden[1] + one.bytes == whole
        assert one.bytes_share == (one.bytes / whole if whole else 1)
    left = [
        table_series
        for bound in PROPOSED
        for (_, table_series, _) in core.table.forecast(0, 0, [(bound, min_packets)])
    ]
    meets = [n + len(others) <= max_series for n in (made.unbounded.series, *left)]
    if max_series == 0 or not any(meets):
        assert made.proposed is None
    else:
        assert made.proposed.min_bytes == (0, *PROPOSED)[meets.index(True)]


def test_largest_tenth_of_typical_connections_has_most_bytes():
    """As in real networks, the largest tenth of the connections has at least 95 % of the bytes."""
    sizes = random.Random(7)
    core = Core(Spec(views=(View(LABELS, compatible("bytes", "packets")), traffic())))
    count = 20_000
    for n in range(count):
        is_mouse = n % 10
        total = round(10 ** sizes.uniform(2, 4) if is_mouse else 1e5 * sizes.paretovariate(1.1))
        flow = make_flow(
            f"{n + 1:x}", (total // 3, total - total // 3, 1, 1), a=f"10.{n >> 8}.{n & 255}.1"
        )
        core.message([flow], 0)
    made = make_forecast(core.table, [Bounds(), Bounds()], max_series=10_000, now=0)
    assert made.unbounded.series == 4 * count
    at_100_kb = made.bounds[1]
    assert (at_100_kb.min_bytes, at_100_kb.series) == (100_000, 4 * count // 10)
    assert at_100_kb.bytes_share >= 0.95
    # With a bound of 10 kB, the page has at most max_series series.
    assert made.proposed.min_bytes == 10_000
    core.bounds = [(100_000, 0), NO_BOUNDS]
    page = read_all(core.table.page(0)).decode()
    shown = re.findall(rf"^{BYTES}{{.*}} (\d+)$", page, re.MULTILINE)
    assert len(shown) == 2 * count // 10
    assert sum(map(int, shown)) == at_100_kb.bytes
    totals = re.findall(r"^skydive_traffic_bytes_total{.*} (\d+)$", page, re.MULTILINE)
    assert sum(map(int, totals)) == made.unbounded.bytes


def test_proposed_bounds_are_round_numbers():
    assert PROPOSED[:6] == (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
    assert PROPOSED[-2:] == (500 * 10**12, 10**15)
    assert {*LISTED} <= {*PROPOSED}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (10_000, "10 kB"), (1_500, "1500 B"), (10**15, "1 PB")],
)
def test_sizes_are_shown_with_units(number, text):
    assert size(number) == text
    assert percent(0.12345) == "12.3 %"


def small_table():
    core = Core(Spec(views=(View(LABELS, compatible("bytes"), amounts=("packets",)), traffic())))
    for n, total in enumerate((500, 3_000, 60_000)):
        core.report(make_flow(f"{n + 1:x}", (total, 0, n + 1, 0), a=f"10.0.0.{n}"), 0)
    return core.table


@pytest.mark.parametrize(
    ("min_packets", "max_series", "text"),
    [
        (0, 0, "If you set max_series, skyfast proposes a value for min_bytes."),
        (
            0,
            10,
            (
                "min_bytes is not needed: 10 series (6 for connections and 4 for views) are"
                " within max_series (10)."
            ),
        ),
        (
            0,
            9,
            (
                "With 'min_bytes: 1000', 8 series (4 for connections and 4 for views) remain."
                " This is within max_series (9). The remaining connections have 99.2 % of the"
                " bytes."
            ),
        ),
        (
            0,
            7,
            (
                "With 'min_bytes: 5000', 6 series (2 for connections and 4 for views) remain."
                " This is within max_series (7). The remaining connections have 94.5 % of the"
                " bytes."
            ),
        ),
        (
            0,
            4,
            (
                "With 'min_bytes: 100000', 4 series (0 for connections and 4 for views)"
                " remain. This is within max_series (4). The remaining connections have 0.0 % of"
                " the bytes."
            ),
        ),
        (
            0,
            3,
            (
                "No value of 'min_bytes' brings the page within max_series (3): at least 4 series"
                " (0 for connections and 4 for views) would remain."
            ),
        ),
        (
            2,
            7,
            (
                "No value of 'min_bytes' brings the page within max_series (7): at least 8 series"
                " (4 for connections and 4 for views) would remain."
            ),
        ),
    ],
)
def test_text_describes_the_proposed_bound(min_packets, max_series, text):
    bounds = [Bounds(0, min_packets), Bounds()]
    made = make_forecast(small_table(), bounds, max_series=max_series, now=0)
    assert made.text == text
    lines = as_text(made)
    assert lines[:2] == [
        "Without min_bytes and min_packets, 3 connections would have 6 series.",
        "In addition, the views have 4 series.",
    ]
    assert lines[-1] == text
    note = (
        "The numbers for each min_bytes include smaller connections that reach min_packets"
        " (2 packets)."
    )
    assert (note in lines) == (min_packets == 2)


def test_text_counts_all_series_together_if_there_is_only_one_view():
    core = Core(Spec(views=(View(LABELS, compatible("bytes")),)))
    core.report(make_flow("1", (500, 0, 1, 0)), 0)
    made = make_forecast(core.table, [Bounds()], max_series=5, now=0)
    assert made.text == "min_bytes is not needed: 2 series are within max_series (5)."
    line = "Without min_bytes and min_packets, 1 connection would have 2 series."
    assert as_text(made)[0] == line


@pytest.mark.parametrize(
    ("bound", "lines"),
    [
        (
            Bounds(min_bytes=20_000),
            [
                "  With min_bytes 10 kB: 1 connection, 2 series, 94.5 % of the bytes.",
                "  With min_bytes 20 kB (configured): 1 connection, 2 series, 94.5 % of the bytes.",
                "  With min_bytes 100 kB: 0 connections, 0 series, 0.0 % of the bytes.",
            ],
        ),
        (
            Bounds(min_bytes=10_000),
            [
                "  With min_bytes 10 kB (configured): 1 connection, 2 series, 94.5 % of the bytes.",
                "  With min_bytes 100 kB: 0 connections, 0 series, 0.0 % of the bytes.",
            ],
        ),
        (
            Bounds(min_packets=2),
            [
                "  With min_packets 2 (configured): 2 connections, 4 series, 99.2 % of the bytes.",
                "  With min_bytes 10 kB: 2 connections, 4 series, 99.2 % of the bytes.",
            ],
        ),
        (Bounds(), ["  With min_bytes 10 kB: 1 connection, 2 series, 94.5 % of the bytes."]),
    ],
)
def test_forecast_lists_the_configured_bound(bound, lines):
    made = make_forecast(small_table(), [bound, Bounds()], max_series=0, now=0)
    assert as_text(made)[2 : len(lines) + 2] == lines
    if bound == NO_BOUNDS:
        assert made.hidden_connections is None
    else:
        assert made.hidden_connections == 3 - made.current.connections


async def test_status_page_and_cardinality_page_show_the_same_forecast():
    async with StatusSite(min_bytes=1500, max_series=14) as site:
        site.report(
            make_flow("1", (900, 100, 5, 5), a="10.0.0.1", rtt=20_000_000),
            make_flow("2", (1500, 500, 2, 2), a="10.0.0.2", rtt=90_000),
            make_flow("3", (0, 3000, 0, 3), a="fd00::3"),
        )
        of_status = (await site.json("/api/status"))["forecast"]
        of_cardinality = (await site.json("/cardinality?format=json"))["forecast"]
        assert of_status == of_cardinality
        assert of_status["current"] == {
            "min_bytes": 1500,
            "connections": 2,
            "series": 9,
            "bytes": 5000,
            "bytes_share": 5 / 6,
        }
        assert of_status["unbounded"]["series"] == 14
        assert of_status["proposed"]["min_bytes"] == 2000
        assert [one["min_bytes"] for one in of_status["bounds"]] == [1500, *LISTED]
        _, flows = await site.get("/metrics/flows")
        samples = [line for line in flows.splitlines() if not line.startswith("#")]
        assert len(samples) == 9 + of_status["other_series"]
        for path in ("/", "/cardinality"):
            code, page = await site.get(path)
            assert code == 200
            assert of_status["text"] in html.unescape(page)
        assert (await site.json("/api/status"))["table"]["hidden_connections"] == 1
        _, page = await site.get("/")
        hidden = '<span data-key="table.hidden_connections" data-format="count">1</span> hidden'
        assert page.count(hidden) == 2
        assert "; configured bounds: min_bytes 1500 B</p>" in page
        assert ">1500 B (configured)</th>" in (await site.get("/cardinality"))[1]
        for path in ("/metrics", "/metrics/self"):
            _, metrics = await site.get(path)
            assert 'skyfast_hidden_connections{view=""} 1\n' in metrics
            assert 'skyfast_hidden_bytes{view=""} 1000\n' in metrics


async def test_hidden_connections_are_ranked():
    async with StatusSite(min_bytes=10**6) as site:
        site.report(make_flow("1", (900, 100, 5, 5)))
        assert len((await site.json("/api/top"))["entries"]) == 1
        assert (await site.json("/api/status"))["table"]["connections"] == 1


async def test_capture_points_of_hidden_connections_have_info_series():
    async with StatusSite(min_bytes=10**6, interface_info=True, views=[]) as site:
        site.report(make_flow("1", (900, 100, 5, 5)))
        _, page = await site.get("/metrics/flows")
        assert [line for line in page.splitlines() if not line.startswith("#")] == [
            (
                'skydive_network_interface_info{node_tid="node-1",interface_name="",host="",'
                'node_netns="",node_container="",node_namespace="",node_pod="",node_workload=""} 1'
            )
        ]


async def test_pages_without_a_byte_counter_have_no_forecast():
    async with StatusSite(metrics=["rtt"]) as site:
        site.report(make_flow("1", (900, 100, 5, 5)))
        assert (await site.json("/api/status"))["forecast"] is None
        assert (await site.json("/cardinality?format=json"))["forecast"] is None
        assert 'id="bounds"' not in (await site.get("/"))[1]
        assert "min_bytes</h2>" not in (await site.get("/cardinality"))[1]
        assert "skyfast_hidden" not in (await site.get("/metrics/self"))[1]


async def test_forecast_is_cached_briefly(monkeypatch):
    monkeypatch.setattr(forecast, "AGE_S", 60)
    async with StatusSite() as site:
        first = json.dumps((await site.json("/api/status"))["forecast"])
        site.report(make_flow("1", (900, 100, 5, 5)))
        assert json.dumps((await site.json("/api/status"))["forecast"]) == first
