"""The groupings that the status page offers."""

import pytest

from skyfast.web.groupings import groupings, pairs
from skyfast.web.ranked_views import RankedView


def views(**labels):
    """Map prefixes to views, given the labels of each view.

    ``main`` stands for the first view, which has no prefix.
    """
    named = {"" if name == "main" else name: each for name, each in labels.items()}
    return {
        prefix: RankedView(
            index=index,
            prefix=prefix,
            labels=tuple(each.split()),
            metrics=(),
            histograms=(),
            decimals=(),
            keys={},
            addresses={},
            nodes=frozenset(),
        )
        for index, (prefix, each) in enumerate(named.items())
    }


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            {"main": "initiator_ip initiator_port target_ip target_port protocol node_tid"},
            {
                "address": "initiator_ip target_ip",
                "port": "target_port",
                "protocol": "protocol",
                "interface": "node_tid",
            },
        ),
        # Only the view "pairs" has the workloads of both ends.
        (
            {
                "main": "target_workload protocol",
                "pairs": "initiator_workload target_workload",
            },
            {
                "workload": "initiator_workload target_workload",
                "protocol": "protocol",
                "view pairs": "",
            },
        ),
        ({"main": "target_service vlan"}, {"service": "target_service"}),
        # A grouping by the only two labels would have one connection per group.
        ({"main": "initiator_host target_host"}, {}),
        ({"main": "initiator_port protocol"}, {"protocol": "protocol"}),
        # Labels that users have defined.
        (
            {"main": "initiator_ip initiator_team target_team target_data_center"},
            {
                "address": "initiator_ip",
                "team": "initiator_team target_team",
                "data center": "target_data_center",
            },
        ),
        ({"main": "initiator_workload_kind initiator_ip"}, {"address": "initiator_ip"}),
    ],
)
def test_groupings_follow_from_the_labels(labels, expected):
    first, *others = groupings(views(**labels))
    assert (first.title, first.group, first.view) == ("connection", (), "")
    assert {each.title: " ".join(each.group) for each in others} == expected
    assert {each.view for each in others if not each.group} == {*labels} - {"main"}


def test_pairs_of_labels_come_before_single_labels():
    labels = ("initiator_ip", "port", "target_ip")
    assert list(pairs(labels)) == [
        ("initiator_ip", "target_ip"),
        ("initiator_ip",),
        ("port",),
        ("target_ip",),
    ]
