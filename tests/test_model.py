"""What is the model's alone: the tags, texts that are no texts, and the reader of pages.

Its rules have their examples in ``test_rules.py``.
"""

import pytest

from tests.model import BYTES, FAMILIES, PACKETS, RTT, Model, make_flow, read_page


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
    model = Model(cluster_net_masks=["0.0.0.0/0"], excluded_tags=["internal"])
    assert model.report(make_flow(total=(-1, 0, 0, 0)), 0) == "excluded"


def test_lone_surrogates_are_invalid():
    model = Model()
    assert model.report(make_flow(node="\ud800"), 0) == "invalid"
    assert model.report(make_flow("\udfff"), 0) == "invalid"
    assert not model.connections


# The reader


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
