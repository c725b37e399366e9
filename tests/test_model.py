"""The model itself, against examples worked by hand: one for every rule it applies."""

import pytest

from tests.model import (
    BYTES,
    COUNTERS,
    DIRECTION,
    FAMILIES,
    LABELS,
    MAX_NUMBER,
    MAX_SUM,
    PACKETS,
    RTT,
    Label,
    Model,
    make_flow,
    read_page,
)

TIMEOUT_S = 75.0
ALL_ADDRESSES = ("0.0.0.0/0", "::/0")


def sums(model: Model) -> list[int]:
    """Return the four counters of the only connection, in the order of COUNTERS."""
    (connection,) = model.connections.values()
    return [connection.totals[name] for name in COUNTERS]


def rtt_ns(model: Model) -> int:
    (connection,) = model.connections.values()
    return connection.rtt_ns


# Known flows


def test_an_update_adds_what_is_new_since_the_last_report():
    model = Model()
    assert model.report(make_flow(total=(100, 200, 1, 2), last=1), 0) is None
    assert model.report(make_flow(total=(150, 200, 3, 2), last=2), 0) is None
    assert sums(model) == [150, 200, 3, 2]
    assert len(model.flows) == len(model.connections) == 1


def test_two_flows_of_a_connection_add_up():
    model = Model()
    model.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    model.report(make_flow("b2", (10, 20, 3, 4), last=1), 0)
    model.report(make_flow("a1", (101, 200, 1, 2), last=2), 0)
    assert sums(model) == [111, 220, 4, 6]
    assert len(model.flows) == 2


def test_the_same_report_again_is_late():
    model = Model()
    model.report(make_flow(last=5), 0)
    assert model.report(make_flow(last=5), 0) == "late"
    assert sums(model) == [100, 200, 1, 2]
    assert model.skipped == {"late": 1}


def test_older_news_without_a_higher_counter_changes_nothing():
    model = Model()
    model.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert model.report(make_flow(total=(90, 190, 1, 1), last=4, rtt=7), 60) == "late"
    assert sums(model) == [100, 200, 1, 2]
    assert rtt_ns(model) == 0
    assert model.alive(TIMEOUT_S - 1)
    assert not model.alive(TIMEOUT_S)


def test_older_news_with_one_higher_counter_counts_that_one():
    model = Model()
    model.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert model.report(make_flow(total=(90, 230, 1, 2), last=4, rtt=7), 60) is None
    assert sums(model) == [100, 230, 1, 2]
    assert rtt_ns(model) == 7
    assert model.alive(60 + TIMEOUT_S - 1)
    # What the row knows has not gone back: neither its counters nor its time.
    assert model.report(make_flow(total=(100, 230, 1, 2), last=5), 60) == "late"
    assert model.report(make_flow(total=(101, 230, 1, 2), last=6), 60) is None
    assert sums(model) == [101, 230, 1, 2]


def test_newer_news_with_nothing_changed_keeps_the_row():
    model = Model()
    model.report(make_flow(last=5), 0)
    assert model.report(make_flow(last=6), 60) is None
    assert sums(model) == [100, 200, 1, 2]
    assert model.alive(60 + TIMEOUT_S - 1)


def test_a_lower_counter_in_newer_news_means_that_the_flow_started_over():
    model = Model()
    model.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert model.report(make_flow(total=(5, 300, 1, 1), last=6), 0) is None
    assert sums(model) == [105, 500, 2, 3]
    # The next difference is taken from the new totals.
    model.report(make_flow(total=(6, 301, 2, 2), last=7), 0)
    assert sums(model) == [106, 501, 3, 4]


def test_a_known_flow_stays_with_its_connection():
    model = Model()
    model.report(make_flow(total=(100, 200, 1, 2), last=1), 0)
    model.report(make_flow(total=(110, 210, 2, 3), last=2, node="node-2"), 0)
    assert sums(model) == [110, 210, 2, 3]


# Unknown flows

KNOWN = make_flow("k", (1, 1, 1, 1))
"""A first flow of the connection, so that rule (b) is not for the next one."""

LATER = {"newest": (5, 6, 7, 8), "newest_start": 60_000, "newest_last": 70_000, "last": 70_000}
"""Fields that make a flow no first report."""


def test_rule_a_a_first_report_counts_whole():
    model = Model()
    model.report(KNOWN, 0)
    model.report(make_flow(newest=(0, 0, 0, 0), newest_start=1_000, start=1_000), 0)
    assert sums(model) == [101, 201, 2, 3]


def test_rule_a_no_last_update_metric_counts_whole():
    model = Model()
    model.report(KNOWN, 0)
    flow = make_flow()
    del flow["LastUpdateMetric"]
    model.report(flow, 0)
    assert sums(model) == [101, 201, 2, 3]


def test_rule_b_what_creates_the_connection_counts_whole():
    model = Model()
    model.report(make_flow(**LATER), 0)
    assert sums(model) == [100, 200, 1, 2]


@pytest.mark.parametrize("missing", [label for label in LABELS if label != DIRECTION])
def test_rule_b_needs_both_addresses_and_both_ports_as_labels(missing):
    model = Model(labels=[label for label in LABELS if label != missing])
    model.report(make_flow(**LATER), 0)
    is_endpoint = missing.name.endswith(("_ip", "_port"))
    assert sums(model) == ([5, 6, 7, 8] if is_endpoint else [100, 200, 1, 2])


def test_rule_c_counts_the_newest_amount():
    model = Model()
    model.report(KNOWN, 0)
    model.report(make_flow(**LATER), 0)
    assert sums(model) == [6, 7, 8, 9]
    # The totals are known from now on.
    model.report(make_flow(total=(101, 200, 1, 2), last=80_000), 0)
    assert sums(model) == [7, 7, 8, 9]


@pytest.mark.parametrize("finish", [1, 2, 3])
def test_rule_c_a_closing_report_that_repeats_counts_nothing(finish):
    model = Model()
    model.report(KNOWN, 0)
    model.report(make_flow(**LATER | {"newest_last": 69_999}, finish=finish), 0)
    assert sums(model) == [1, 1, 1, 1]
    assert len(model.flows) == 2


@pytest.mark.parametrize(("finish", "newest_last"), [(1, 70_000), (0, 69_999)])
def test_rule_c_counts_a_closing_report_that_is_new_and_any_other(finish, newest_last):
    model = Model()
    model.report(KNOWN, 0)
    model.report(make_flow(**LATER | {"newest_last": newest_last}, finish=finish), 0)
    assert sums(model) == [6, 7, 8, 9]


# RTT


def test_the_latest_rtt_that_is_not_zero_wins():
    model = Model()
    model.report(make_flow("a1", last=1), 0)
    assert model.page(0)[RTT] == set()
    model.report(make_flow("a1", last=2, rtt=500), 0)
    model.report(make_flow("b2", last=1, rtt=300), 0)
    model.report(make_flow("a1", last=3), 0)
    assert rtt_ns(model) == 300
    assert len(model.page(0)[RTT]) == 1


# Time


def test_a_flow_leaves_when_its_time_is_over_and_the_connection_with_the_last_one():
    model = Model()
    model.report(make_flow("a1"), 0)
    model.report(make_flow("b2"), 10)
    model.expire(TIMEOUT_S)
    assert list(model.flows) == ["b2"]
    assert sums(model) == [200, 400, 2, 4]
    assert model.alive(TIMEOUT_S + 9)
    assert not model.alive(TIMEOUT_S + 10)
    model.expire(TIMEOUT_S + 10)
    assert not model.flows
    assert not model.connections
    assert (model.created_total, model.expired_total) == (1, 1)


def test_a_connection_that_comes_back_starts_from_what_is_new():
    model = Model()
    model.report(make_flow(total=(100, 200, 1, 2)), 0)
    model.expire(TIMEOUT_S)
    model.report(make_flow(total=(110, 210, 2, 3), last=3_000), TIMEOUT_S)
    assert sums(model) == [110, 210, 2, 3]
    assert model.created_total == 2


# Limits


def test_at_the_limit_of_connections_the_known_ones_go_on():
    model = Model(max_connections=1)
    model.report(make_flow("a1"), 0)
    assert model.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert model.report(make_flow("c3"), 0) is None
    assert model.rejected_total == 1
    assert list(model.flows) == ["a1", "c3"]
    assert sums(model) == [200, 400, 2, 4]


def test_at_the_limit_of_flows_the_known_ones_go_on():
    model = Model(max_flows=1)
    model.report(make_flow("a1", last=1), 0)
    assert model.report(make_flow("b2"), 0) == "table_full"
    assert model.report(make_flow("c3", a="10.0.0.3"), 0) == "table_full"
    assert model.report(make_flow("a1", (101, 200, 1, 2), last=2), 0) is None
    assert model.rejected_total == 0
    assert sums(model) == [101, 200, 1, 2]
    model.expire(TIMEOUT_S)
    assert model.report(make_flow("b2"), TIMEOUT_S) is None


def test_sums_saturate():
    model = Model()
    model.report(make_flow("a1", (MAX_NUMBER, MAX_NUMBER, 1, 1)), 0)
    model.report(make_flow("b2", (MAX_NUMBER - 1, MAX_NUMBER, 1, 1)), 0)
    assert sums(model) == [MAX_SUM, MAX_SUM, 2, 2]
    model.report(make_flow("c3", (1, 1, 1, 1)), 0)
    assert sums(model) == [MAX_SUM, MAX_SUM, 3, 3]


# Flows that are not taken


def without(*names: str) -> dict[str, object]:
    flow = make_flow()
    for name in names:
        del flow[name]
    return flow


def with_number(group: str, name: str, number: int) -> dict[str, object]:
    flow = make_flow("b2")
    (flow[group] if group else flow)[name] = number
    return flow


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (without("UUID", "Network"), "no_uuid"),
        (make_flow(""), "no_uuid"),
        (without("Network", "Transport"), "no_network"),
        (without("Transport", "Metric"), "no_transport"),
        (without("Metric"), "no_metric"),
        (make_flow(node="\ud800"), "invalid"),
        (make_flow("x" * 1024), None),
        (make_flow("x" * 1025), "text_too_long"),
        (make_flow(node="é" * 512), None),
        (make_flow(node="é" * 513), "text_too_long"),
        *[
            (with_number(group, name, number), reason)
            for group, name in [
                *[("Metric", name) for name in (*COUNTERS, "RTT")],
                ("", "Last"),
            ]
            for number, reason in [
                (0, None),
                (MAX_NUMBER, None),
                (MAX_NUMBER + 1, "out_of_range"),
                (-1, "out_of_range"),
            ]
        ],
        *[
            (with_number("Transport", name, number), reason)
            for name in "AB"
            for number, reason in [(0, None), (65535, None), (65536, "out_of_range")]
        ],
    ],
)
def test_what_cannot_be_taken_leaves_no_trace(flow, reason):
    model = Model()
    assert model.report(flow, 0) == reason
    assert model.skipped == ({reason: 1} if reason else {})
    assert len(model.connections) == len(model.flows) == (0 if reason else 1)


def test_the_start_is_looked_at_only_where_it_says_whether_a_report_is_the_first():
    model = Model()
    assert model.report(make_flow("a1", start=-1), 0) is None
    assert model.report(make_flow("b2", start=-1), 0) == "out_of_range"
    assert model.report(make_flow("c3", start=MAX_NUMBER + 1), 0) == "out_of_range"
    assert model.report(make_flow("a1", start=-1, last=3_000), 0) is None


def test_the_newest_amount_is_looked_at_only_where_it_counts():
    model = Model()
    wild = LATER | {"newest": (-1, 0, 0, 0)}
    assert model.report(make_flow("a1", **LATER | {"newest": (-1, 0, 0, 0)}), 0) is None
    assert model.report(make_flow("b2", **wild), 0) == "out_of_range"
    assert model.report(make_flow("c3", **wild | {"newest_start": 1_000}), 0) is None
    assert model.report(make_flow("d4", **wild | {"newest_last": 1}, finish=1), 0) is None
    assert model.report(make_flow("a1", **wild | {"last": 80_000}), 0) is None


@pytest.mark.parametrize(
    ("a", "b", "tag"),
    [
        ("10.0.0.1", "10.0.0.2", "internal"),
        ("10.0.0.1", "11.0.0.2", "egress"),
        ("11.0.0.1", "fd77::1", "ingress"),
        ("11.0.0.1", "fd78::1", "other"),
        ("10.0.0.1", "", "other"),
        ("10.0.0.1", "10.0.0.2.3", "other"),
    ],
)
def test_tags(a, b, tag):
    masks = ("10.0.0.0/8", "fd77::/64")
    flow = make_flow(a=a, b=b)
    others = {"internal", "egress", "ingress", "other"} - {tag}
    taken = Model(cluster_net_masks=masks, excluded_tags=others)
    dropped = Model(cluster_net_masks=masks, excluded_tags=[tag])
    assert taken.report(flow, 0) is None
    assert dropped.report(flow, 0) == "excluded"


def test_an_excluded_flow_is_not_looked_at_further():
    model = Model(cluster_net_masks=ALL_ADDRESSES, excluded_tags=["internal"])
    assert model.report(make_flow(total=(-1, 0, 0, 0)), 0) == "excluded"


def test_a_hexadecimal_text_with_leading_zeros_or_capitals_is_another_flow():
    model = Model()
    for uuid in ("a", "0a", "A", "0", "00"):
        assert model.report(make_flow(uuid), 0) is None
    assert len(model.flows) == 5
    assert sums(model) == [500, 1000, 5, 10]


# The page


def test_a_page():
    model = Model()
    model.report(make_flow(total=(10, 20, 1, 2), rtt=2**62, a="fd77::1", b="fd77::2"), 0)
    labels = (
        'initiator_ip="fd77::1",target_ip="fd77::2",initiator_port="40000",target_port="443",'
        'direction="{}",node_tid="node-1",protocol="TCP"'
    )
    there, back = labels.format("initiator_to_target"), labels.format("target_to_initiator")
    assert model.page(0) == {
        BYTES: {f"{BYTES}{{{there}}} 10", f"{BYTES}{{{back}}} 20"},
        PACKETS: {f"{PACKETS}{{{there}}} 1", f"{PACKETS}{{{back}}} 2"},
        RTT: {f"{RTT}{{{there}}} 4611686018427387904"},
    }


def test_other_labels_and_missing_values():
    number = Label("vlan", ("Link", "ID"), number=True)
    model = Model(labels=(Label("app", ("Application",)), number, DIRECTION))
    model.report(make_flow(), 0)
    model.report(make_flow("b2") | {"Link": {"ID": 7}, "Application": 'a"b\\c\nd'}, 0)
    assert model.page(0)[PACKETS] == {
        f'{PACKETS}{{app="",vlan="0",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="",vlan="0",direction="target_to_initiator"}} 2',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="target_to_initiator"}} 2',
    }


def a_page(*families: str) -> bytes:
    return "".join(families).encode()


def a_family(name: str, *samples: str, kind: str = "counter") -> str:
    head = f"# HELP {name} Help.\n# TYPE {name} {kind}\n"
    return head + "".join(f"{name}{sample}\n" for sample in samples)


def test_the_reader_takes_a_page_apart():
    page = a_page(
        a_family(BYTES, '{a="1 2"} 3', '{a="4"} 5'),
        a_family(PACKETS),
        a_family(RTT, '{a="\u2028"} 0', kind="gauge"),
    )
    assert read_page(page) == {
        BYTES: {BYTES + '{a="1 2"} 3', BYTES + '{a="4"} 5'},
        PACKETS: set(),
        RTT: {RTT + '{a="\u2028"} 0'},
    }


@pytest.mark.parametrize(
    "page",
    [
        a_page(a_family(BYTES), a_family(PACKETS)),
        a_page(a_family(BYTES), a_family(PACKETS), a_family(RTT)),
        a_page(a_family(PACKETS), a_family(BYTES), a_family(RTT, kind="gauge")),
        a_page(a_family(BYTES), a_family(PACKETS), a_family(RTT, kind="gauge"), BYTES + "{} 1\n"),
        a_page(a_family(BYTES), BYTES + "{} 1", "\n" + a_family(PACKETS) + a_family(RTT)),
        a_page(a_family(BYTES), a_family(PACKETS), a_family(RTT, kind="gauge"))[:-1],
        *[
            a_page(a_family(BYTES, *samples), a_family(PACKETS), a_family(RTT, kind="gauge"))
            for samples in [("{} 1", "{} 2"), ("{} 1.0",), ("{} 01",), ("{} ",), ("{} -1",), ("",)]
        ],
    ],
)
def test_the_reader_finds_what_is_wrong_with_a_page(page):
    with pytest.raises(AssertionError):
        read_page(page)


def test_the_families_are_those_of_the_dashboards():
    assert [(family.name, family.type) for family in FAMILIES] == [
        ("skydive_network_connection_total_bytes", "counter"),
        ("skydive_network_connection_total_packets", "counter"),
        ("skydive_network_connection_rtt_nanoseconds", "gauge"),
    ]
