"""Parts that only the model has: tags, filter rules, invalid strings, and the parser of pages.

``test_rules.py`` tests everything that the model and the core have in common.
"""

import pytest

from tests.model import (
    BYTES,
    FAMILIES,
    PACKETS,
    RTT,
    Model,
    Names,
    Spec,
    decimal,
    interface_page,
    make_flow,
    matches,
    read_page,
    topology_labels,
)
from tests.support.model_specs import DEFAULT, METRICS, STANDARD, standard


@pytest.mark.parametrize(
    ("a", "b", "tag"),
    [
        ("10.0.0.1", "10.0.0.2", "internal"),
        ("10.0.0.1", "11.0.0.2", "egress"),
        ("11.0.0.1", "fd77::1", "ingress"),
        ("11.0.0.1", "fd78::1", "other"),
        ("10.0.0.1", "", "other"),
        ("10.0.0.1", "10.0.0.2.3", "other"),
        ("::ffff:10.0.0.1", "10.0.0.2", "internal"),
        ("fd77::1%eth0", "10.0.0.2", "other"),
    ],
)
def test_tag_depends_on_which_addresses_are_in_the_cluster(a, b, tag):
    masks = ("10.0.0.0/8", "fd77::/64")
    flow = make_flow(a=a, b=b)
    others = {"internal", "egress", "ingress", "other"} - {tag}
    taken = Model(cluster_net_masks=masks, excluded_tags=others)
    dropped = Model(cluster_net_masks=masks, excluded_tags=[tag])
    assert taken.report(flow, 0) is None
    assert dropped.report(flow, 0) == "excluded"


def test_excluded_flow_is_not_validated():
    model = Model(cluster_net_masks=["0.0.0.0/0"], excluded_tags=["internal"])
    assert model.report(make_flow(total=(-1, 0, 0, 0)), 0) == "excluded"


def test_lone_surrogates_are_invalid():
    model = Model()
    assert model.report(make_flow(node="\ud800"), 0) == "invalid"
    assert model.report(make_flow("\udfff"), 0) == "invalid"
    assert not model.connections


# Filter rules


@pytest.mark.parametrize(
    ("condition", "fits", "does_not"),
    [
        ("TCP", ["TCP"], ["UDP", "", None]),
        (["TCP", "UDP"], ["TCP", "UDP"], ["SCTP", "", None]),
        ("", [""], ["TCP", None]),
        (443, [443], [44, 4430, 0, None]),
        ([80, "8000-8999", 443], [80, 443, 8000, 8500, 8999], [7999, 9000, 81, None]),
        ("10.0.0.0/8", ["10.0.0.0", "10.255.1.2", "::ffff:10.1.2.3"], ["11.0.0.1", "x", "", None]),
        (["fd77::/64", "10.0.0.1"], ["fd77::5", "10.0.0.1"], ["fd77:0:0:1::", "10.0.0.2", None]),
        ({"regex": "^Eth.*/TCP$"}, ["Ethernet/IPv4/TCP"], ["Ethernet/TCP/X", "", None]),
        ({"regex": "IPv4"}, ["Ethernet/IPv4/TCP"], ["Ethernet/IPv6/TCP", None]),
        ({"not": "TCP"}, ["UDP", "", None], ["TCP"]),
        ({"not": [80, "90-99"]}, [81, 100, None], [80, 95]),
        ({"not": {"regex": "a"}}, ["b", None], ["ba"]),
    ],
)
def test_condition_of_a_filter_rule_matches_only_the_expected_values(condition, fits, does_not):
    assert [value for value in fits + does_not if matches(condition, value)] == fits


def test_filter_rules_apply_before_validation():
    spec = Spec(
        drop=[
            {"name": "web", "target_port": [80, 443], "initiator_ip": {"not": "10.0.0.0/8"}},
            {"name": "node", "NodeTID": "node-9"},
        ],
        keep=[{"name": "tcp", "protocol": "TCP"}, {"name": "many", "Metric.ABPackets": "5-9"}],
    )
    model = Model(spec)
    assert model.report(make_flow("a1"), 0) is None
    assert model.report(make_flow("b2", a="11.0.0.1"), 0) == "web"
    assert model.report(make_flow("c3", a="11.0.0.1", node="node-9", finish=1), 0) == "web"
    assert model.report(make_flow("d4", node="node-9"), 0) == "node"
    assert model.report(make_flow("e5", protocol="UDP"), 0) == "keep"
    assert model.report(make_flow("f6", (0, 0, 5, 0), protocol="UDP"), 0) is None
    assert model.filtered == {"web": 2, "node": 1, "keep": 1}
    assert not model.skipped
    assert not model.finished
    assert model.flows == 2


def test_rules_are_applied_to_every_report():
    model = Model(Spec(drop=[{"name": "few", "Metric.ABPackets": "0-3"}]))
    assert model.report(make_flow(total=(0, 0, 3, 0), last=1), 0) == "few"
    assert model.report(make_flow(total=(0, 0, 4, 0), last=2), 0) is None


def test_rules_can_refer_to_tags():
    spec = Spec(
        cluster_net_masks=["10.0.0.0/8"],
        excluded_tags=["other"],
        drop=[{"name": "out", "tag": "egress"}],
    )
    model = Model(spec)
    assert model.report(make_flow(), 0) is None
    assert model.report(make_flow(b="1.1.1.1"), 0) == "out"
    assert model.report(make_flow(a="1.1.1.2", b="1.1.1.1"), 0) == "excluded"


@pytest.mark.parametrize("part", ["UUID", "Network", "Transport", "Metric"])
def test_rules_are_not_applied_to_flows_without_required_objects(part):
    flow = make_flow()
    del flow[part]
    model = Model(
        Spec(drop=[{"name": "all", "NodeTID": {"not": "x"}}], keep=[{"name": "n", "NodeTID": "y"}])
    )
    assert model.report(flow, 0) == f"no_{part.lower()}"
    assert not model.filtered


def test_lone_surrogate_in_a_field_of_a_rule_is_invalid():
    flow = make_flow() | {"Application": "\ud800"}
    assert Model().report(flow, 0) is None
    assert Model(Spec(drop=[{"name": "a", "application": "DNS"}])).report(flow, 0) == "invalid"


# Naming


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [
        (1_600_000_000_123, 3, "1600000000.123"),
        (1_600_000_000_120, 3, "1600000000.12"),
        (1_600_000_000_000, 3, "1600000000"),
        (1, 9, "0.000000001"),
        (100, 0, "100"),
        (100, 2, "1"),
        (0, 3, "0"),
    ],
)
def test_decimals_shift_the_decimal_point(number, decimals, text):
    assert decimal(number, decimals) == text


def test_standard_names_of_metrics_follow_openmetrics():
    names = [family.name for family in standard(STANDARD, *METRICS)]
    assert names[:4] == [
        "skydive_connection_bytes_total",
        "skydive_connection_packets_total",
        "skydive_connection_rtt_seconds",
        "skydive_connection_flows",
    ]
    assert "skydive_connection_tcp_skipped_bytes_total" in names


def test_empty_configuration_has_the_traffic_view():
    model = Model(DEFAULT)
    model.report(make_flow(total=(100, 200, 1, 2)), 0)
    page = model.page(0)
    assert list(page)[:3] == [BYTES, PACKETS, RTT]
    labels = 'node_tid="node-1",protocol="TCP",direction="target_to_initiator"'
    assert f"skydive_traffic_bytes_total{{{labels}}} 200" in page["skydive_traffic_bytes_total"]


def test_names_of_nodes_and_addresses_come_from_the_topology():
    nodes = [
        {
            "Host": "h",
            "UpdatedAt": 1,
            "Metadata": {"TID": "t", "Name": "n", "Type": "veth", "IPV4": ["10.0.0.1/24"]},
        }
    ]
    labels = topology_labels(nodes)
    assert {name: label.lookup.names for name, label in labels.items()} == {
        "node_name": Names({"t": ("n",)}),
        "node_host": Names({"t": ("h",)}),
        "node_type": Names({"t": ("veth",)}),
        "initiator_name": Names({"10.0.0.1": ("h",)}),
        "target_name": Names({"10.0.0.1": ("h",)}),
    }
    assert len(interface_page(nodes)) == 11


# The parser


def a_page(*families: str) -> bytes:
    return "".join(families).encode()


def a_family(name: str, *samples: str, kind: str = "counter") -> str:
    head = f"# HELP {name} Help.\n# TYPE {name} {kind}\n"
    return head + "".join(f"{name}{sample}\n" for sample in samples)


def test_read_page_parses_a_page():
    page = a_page(
        a_family(BYTES, '{a="1 2"} 3', '{a="4"} 5'),
        a_family(PACKETS),
        a_family(RTT, '{a="\u2028"} 0', '{a="5"} 0.05', kind="gauge"),
    )
    assert read_page(page) == {
        BYTES: {BYTES + '{a="1 2"} 3', BYTES + '{a="4"} 5'},
        PACKETS: set(),
        RTT: {RTT + '{a="\u2028"} 0', RTT + '{a="5"} 0.05'},
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
            for samples in [
                ("{} 1", "{} 2"),
                ("{} 1.0",),
                ("{} 1.",),
                ("{} .1",),
                ("{} 01",),
                ("{} ",),
                ("{} -1",),
                ("",),
            ]
        ],
    ],
)
def test_read_page_rejects_invalid_pages(page):
    with pytest.raises(AssertionError):
        read_page(page)


def test_families_have_the_names_that_dashboards_query():
    assert [(family.name, family.type) for family in FAMILIES] == [
        ("skydive_network_connection_total_bytes", "counter"),
        ("skydive_network_connection_total_packets", "counter"),
        ("skydive_network_connection_rtt_nanoseconds", "gauge"),
    ]
