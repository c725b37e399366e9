"""The top connections: `Table.top` compared with the page of the table."""

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skyfast.text_format import escaped
from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    LABELS,
    RTT,
    TIMEOUT_S,
    Family,
    Spec,
    View,
    make_flow,
    one_view,
)
from tests.support.table_adapter import ODD_TEXTS, Core, beside, many_flows, read_all

COUNT = Family("flows", "gauge", ())
BYTE_FAMILY = [family.name for family in FAMILIES].index(BYTES)
RTT_FAMILY = [family.name for family in FAMILIES].index(RTT)


def shown(core, now=1.0):
    """Return the values on the page: by labels of the connection, one list per family."""
    names = [column.name for column in core.plan.views[0].columns]
    families = core.plan.views[0].families
    connections = {}
    for index, metric in enumerate(
        text_string_to_metric_families(read_all(core.table.page(now)).decode())
    ):
        for sample in metric.samples:
            labels = tuple(sample.labels[name] for name in names)
            side = 1 if sample.labels.get("direction") == "target_to_initiator" else 0
            values = connections.setdefault(labels, [[None] * len(f.values) for f in families])
            values[index][side] = round(sample.value * 10 ** families[index].decimals)
    return connections


def ranked(core, family, before=None):
    """Return the expected entries of `top` as a set, because equal ranks have no order."""
    is_gauge = core.plan.views[0].families[family].type == "gauge"
    entries = set()
    for labels, values in shown(core).items():
        numbers = [value for value in values[family] if value is not None]
        if not numbers:
            continue
        rank = max(numbers) if is_gauge else sum(numbers)
        if before is not None:
            old = sum(value or 0 for value in before[labels][family]) if labels in before else 0
            rank -= old if old <= rank else 0
            if rank == 0:
                continue
        entries.add((rank, labels, tuple(value for side in values for value in side)))
    return entries


def random_flows(seed, *, scale=1):
    choose = random.Random(seed)
    return [
        make_flow(
            f"{seed}{n:x}",
            tuple(scale * choose.choice((0, 1, 7, 10**6, 10**12)) for _ in range(4)),
            a=f"10.0.0.{choose.randrange(50)}",
            ports=(choose.randrange(20), choose.choice((53, 443))),
            node=choose.choice(("one", "two", '"quoted"', "back\\slash", "é" * 60)),
            rtt=choose.choice((0, 1, 20_000_000)),
        )
        for n in range(300)
    ]


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_top_matches_the_values_on_the_page(family):
    core = Core()
    core.message(random_flows(1), 0)
    entries = core.top(family, 1_000)
    assert set(entries) == ranked(core, family)
    assert len(entries) == len(set(entries))
    ranks = [rank for rank, *_ in entries]
    assert ranks == sorted(ranks, reverse=True)
    for count in (0, 1, 2, 3, 17, len(entries) - 1):
        assert [rank for rank, *_ in core.top(family, count)] == ranks[:count]


def test_top_ranks_flow_counts_and_views_without_a_direction():
    only_bytes = [family for family in FAMILIES if family.name == BYTES]
    for labels in (LABELS, [label for label in LABELS if label != DIRECTION]):
        core = Core(one_view(labels=labels, families=(*only_bytes, COUNT)))
        core.message(random_flows(2), 0)
        core.message(random_flows(3), 0)
        for family in (0, 1):
            assert set(core.top(family, 1_000)) == ranked(core, family)


def test_top_ranks_increases_since_a_snapshot():
    core = Core()
    core.message(random_flows(1), 0)
    snapshot = core.snapshot(BYTE_FAMILY)
    before = shown(core)
    assert core.top(BYTE_FAMILY, 1_000, since=snapshot) == []
    core.message(
        [
            *random_flows(1, scale=2)[:100],
            *many_flows(50, last=2_000, total=(5, 6, 7, 8), first=1 << 20),
        ],
        1,
    )
    increased = core.top(BYTE_FAMILY, 1_000, since=snapshot)
    assert set(increased) == ranked(core, BYTE_FAMILY, before)
    assert len(increased) >= 50
    assert {rank for rank, labels, _ in increased if labels not in before} == {5 + 6}
    assert snapshot.bytes < 12 * 1_000


def test_increase_of_a_reused_row_is_its_whole_value():
    core = Core(flow_memory_s=0)
    core.message(many_flows(100, total=(1_000, 1_000, 1_000, 1_000)), 0)
    snapshot = core.snapshot(BYTE_FAMILY)
    core.expire(TIMEOUT_S)
    assert core.top(BYTE_FAMILY, 10, since=snapshot) == core.top(BYTE_FAMILY, 10) == []
    core.message(many_flows(30, first=500, total=(2, 4, 1, 3)), TIMEOUT_S)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)] == [6] * 30
    # The same applies to connections that return with a lower value.
    core.message(many_flows(10, total=(1, 2, 1, 2), last=9_000_000), TIMEOUT_S)
    top = core.top(BYTE_FAMILY, 99, since=snapshot)
    assert [rank for rank, *_ in top] == [6] * 30 + [3] * 10


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]], ids=["one flow per row", "shared rows"])
def test_returning_connection_is_not_ranked_by_its_old_value(labels):
    core = Core(one_view(labels=labels, families=FAMILIES[:2]))
    core.message(many_flows(20, total=(1_000, 1_000, 1_000, 1_000)), 0)
    core.expire(TIMEOUT_S)
    assert core.connections == 0
    core.message(many_flows(4, total=(9, 9, 9, 9), first=500), TIMEOUT_S)
    snapshot = core.snapshot(BYTE_FAMILY)
    # The values of these connections at the time of the snapshot are unknown.
    core.message(many_flows(20, total=(1_001, 1_000, 1_000, 1_000), last=9_000_000), 100)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99)][-5:] == [2001] + [18] * 4
    assert core.top(BYTE_FAMILY, 99, since=snapshot) == []
    # After the next snapshot, they are ranked like all others.
    snapshot = core.snapshot(BYTE_FAMILY)
    core.message(many_flows(20, total=(1_003, 1_000, 1_000, 1_000), last=9_000_001), 101)
    assert {rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)} == {2}


def test_top_can_be_filtered_by_a_part_of_a_label():
    core = Core()
    core.message(random_flows(1), 0)
    everything = core.top(BYTE_FAMILY, 1_000)
    for part in ("10.0.0.1", "443", "44", "é" * 3, "two", "T", "\\", '"', "nowhere", "10.0.0.1\0"):
        expected = [
            entry for entry in everything if any(part in escaped(label) for label in entry[1])
        ]
        assert core.top(BYTE_FAMILY, 1_000, containing=part) == expected
    assert core.top(BYTE_FAMILY, 1_000, containing="") == everything
    two = [entry for entry in everything if "two" in entry[1]]
    assert core.top(BYTE_FAMILY, 5, containing="two")[0][0] == two[0][0]


def test_labels_are_not_escaped():
    core = Core()
    for n, text in enumerate(ODD_TEXTS):
        core.report(make_flow(f"{n + 1:x}", node=text), 0)
    index = [column.name for column in core.plan.views[0].columns].index("node_tid")
    assert {labels[index] for _, labels, _ in core.top(BYTE_FAMILY, 99)} == set(ODD_TEXTS)


def test_overflow_row_is_ranked_like_a_connection():
    core = Core(overflow="other", max_connections=10)
    core.message(many_flows(30, total=(1, 10, 1, 10)), 0)
    rank, labels, _ = core.top(BYTE_FAMILY, 1)[0]
    assert set(labels) == {"other"}
    assert rank > 20


def test_top_rejects_invalid_families_snapshots_and_counts():
    core = Core(Spec(views=(View(LABELS, FAMILIES), View((DIRECTION,), FAMILIES, timeout_s=90))))
    for call in (core.snapshot, lambda family: core.top(family, 1)):
        with pytest.raises(IndexError, match="no such family"):
            call(len(FAMILIES))
    with pytest.raises(ValueError, match="requires a counter"):
        core.snapshot(RTT_FAMILY)
    with pytest.raises(ValueError, match="another table"):
        core.top(BYTE_FAMILY, 1, since=Core().snapshot(BYTE_FAMILY))
    with pytest.raises(ValueError, match="at most"):
        core.top(BYTE_FAMILY, 1 << 17)
    with pytest.raises(OverflowError):
        core.top(-1, 1)


def test_threads_can_rank_during_updates():
    core = Core(max_connections=3_000)

    def check_top():
        snapshot = core.snapshot(BYTE_FAMILY)
        for top in (
            core.top(BYTE_FAMILY, 100),
            core.top(BYTE_FAMILY, 100, since=snapshot, containing="10.0"),
        ):
            ranks = [rank for rank, *_ in top]
            assert ranks == sorted(ranks, reverse=True)
            assert all(labels[0].startswith("10.0.") for _, labels, _ in top)

    with beside(check_top):
        for cycle in range(40):
            now = cycle * TIMEOUT_S / 3
            core.message(many_flows(2_000, first=700 * cycle, last=1_000 + cycle), now)
            while core.table.expire(now, 500):
                pass
