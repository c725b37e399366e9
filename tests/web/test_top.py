"""Which connections have most: `Table.top` against the page that it stands for."""

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
    """Return the families' values of each connection as the page has them, by its labels."""
    names = [column.name for column in core.plan.views[0].columns]
    families = core.plan.views[0].families
    found = {}
    for at, metric in enumerate(
        text_string_to_metric_families(read_all(core.table.page(now)).decode())
    ):
        for sample in metric.samples:
            labels = tuple(sample.labels[name] for name in names)
            side = 1 if sample.labels.get("direction") == "target_to_initiator" else 0
            values = found.setdefault(labels, [[None] * len(f.values) for f in families])
            values[at][side] = round(sample.value * 10 ** families[at].decimals)
    return found


def ranked(core, family, before=None):
    """Return what `top` has to say of all connections, as a set: those alike have no order."""
    is_gauge = core.plan.views[0].families[family].type == "gauge"
    found = set()
    for labels, values in shown(core).items():
        here = [value for value in values[family] if value is not None]
        if not here:
            continue
        rank = max(here) if is_gauge else sum(here)
        if before is not None:
            old = sum(value or 0 for value in before[labels][family]) if labels in before else 0
            rank -= old if old <= rank else 0
            if rank == 0:
                continue
        found.add((rank, labels, tuple(value for side in values for value in side)))
    return found


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
def test_the_first_are_those_that_have_most_on_the_page(family):
    core = Core()
    core.message(random_flows(1), 0)
    every = core.top(family, 1_000)
    assert set(every) == ranked(core, family)
    assert len(every) == len(set(every))
    ranks = [rank for rank, *_ in every]
    assert ranks == sorted(ranks, reverse=True)
    for count in (0, 1, 2, 3, 17, len(every) - 1):
        assert [rank for rank, *_ in core.top(family, count)] == ranks[:count]


def test_numbers_of_flows_and_a_single_direction_are_ranked_too():
    only_bytes = [family for family in FAMILIES if family.name == BYTES]
    for labels in (LABELS, [label for label in LABELS if label != DIRECTION]):
        core = Core(one_view(labels=labels, families=(*only_bytes, COUNT)))
        core.message(random_flows(2), 0)
        core.message(random_flows(3), 0)
        for family in (0, 1):
            assert set(core.top(family, 1_000)) == ranked(core, family)


def test_what_grew_since_a_snapshot():
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
    grown = core.top(BYTE_FAMILY, 1_000, since=snapshot)
    assert set(grown) == ranked(core, BYTE_FAMILY, before)
    assert len(grown) >= 50
    assert {rank for rank, labels, _ in grown if labels not in before} == {5 + 6}
    assert snapshot.bytes < 12 * 1_000


def test_rows_that_went_to_others_count_whole():
    core = Core(flow_memory_s=0)
    core.message(many_flows(100, total=(1_000, 1_000, 1_000, 1_000)), 0)
    snapshot = core.snapshot(BYTE_FAMILY)
    core.expire(TIMEOUT_S)
    assert core.top(BYTE_FAMILY, 10, since=snapshot) == core.top(BYTE_FAMILY, 10) == []
    core.message(many_flows(30, first=500, total=(2, 4, 1, 3)), TIMEOUT_S)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)] == [6] * 30
    # And so do those that come again with less.
    core.message(many_flows(10, total=(1, 2, 1, 2), last=9_000_000), TIMEOUT_S)
    top = core.top(BYTE_FAMILY, 99, since=snapshot)
    assert [rank for rank, *_ in top] == [6] * 30 + [3] * 10


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]], ids=["its own", "shared"])
def test_a_connection_that_is_back_did_not_grow_by_what_it_had(labels):
    core = Core(one_view(labels=labels, families=FAMILIES[:2]))
    core.message(many_flows(20, total=(1_000, 1_000, 1_000, 1_000)), 0)
    core.expire(TIMEOUT_S)
    assert core.connections == 0
    core.message(many_flows(4, total=(9, 9, 9, 9), first=500), TIMEOUT_S)
    snapshot = core.snapshot(BYTE_FAMILY)
    # One cannot know what they had when the snapshot was made.
    core.message(many_flows(20, total=(1_001, 1_000, 1_000, 1_000), last=9_000_000), 100)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99)][-5:] == [2001] + [18] * 4
    assert core.top(BYTE_FAMILY, 99, since=snapshot) == []
    # From the next snapshot on they are ranked as all others.
    snapshot = core.snapshot(BYTE_FAMILY)
    core.message(many_flows(20, total=(1_003, 1_000, 1_000, 1_000), last=9_000_001), 101)
    assert {rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)} == {2}


def test_only_those_with_a_text_in_a_label():
    core = Core()
    core.message(random_flows(1), 0)
    everything = core.top(BYTE_FAMILY, 1_000)
    for part in ("10.0.0.1", "443", "44", "é" * 3, "two", "T", "\\", '"', "nowhere", "10.0.0.1\0"):
        wanted = [
            entry for entry in everything if any(part in escaped(label) for label in entry[1])
        ]
        assert core.top(BYTE_FAMILY, 1_000, containing=part) == wanted
    assert core.top(BYTE_FAMILY, 1_000, containing="") == everything
    two = [entry for entry in everything if "two" in entry[1]]
    assert core.top(BYTE_FAMILY, 5, containing="two")[0][0] == two[0][0]


def test_labels_are_as_the_flows_have_them():
    core = Core()
    for n, text in enumerate(ODD_TEXTS):
        core.report(make_flow(f"{n + 1:x}", node=text), 0)
    at = [column.name for column in core.plan.views[0].columns].index("node_tid")
    assert {labels[at] for _, labels, _ in core.top(BYTE_FAMILY, 99)} == set(ODD_TEXTS)


def test_what_found_no_room_is_ranked_as_a_connection():
    core = Core(overflow="other", max_connections=10)
    core.message(many_flows(30, total=(1, 10, 1, 10)), 0)
    rank, labels, _ = core.top(BYTE_FAMILY, 1)[0]
    assert set(labels) == {"other"}
    assert rank > 20


def test_only_families_of_the_first_view():
    core = Core(Spec(views=(View(LABELS, FAMILIES), View((DIRECTION,), FAMILIES, timeout_s=90))))
    for call in (core.snapshot, lambda family: core.top(family, 1)):
        with pytest.raises(IndexError, match="no such family"):
            call(len(FAMILIES))
    with pytest.raises(ValueError, match="does not grow"):
        core.snapshot(RTT_FAMILY)
    with pytest.raises(ValueError, match="something else"):
        core.top(BYTE_FAMILY, 1, since=Core().snapshot(BYTE_FAMILY))
    with pytest.raises(ValueError, match="not more than"):
        core.top(BYTE_FAMILY, 1 << 17)
    with pytest.raises(OverflowError):
        core.top(-1, 1)


def test_threads_rank_while_everything_changes():
    core = Core(max_connections=3_000)

    def look():
        snapshot = core.snapshot(BYTE_FAMILY)
        for top in (
            core.top(BYTE_FAMILY, 100),
            core.top(BYTE_FAMILY, 100, since=snapshot, containing="10.0"),
        ):
            ranks = [rank for rank, *_ in top]
            assert ranks == sorted(ranks, reverse=True)
            assert all(labels[0].startswith("10.0.") for _, labels, _ in top)

    with beside(look):
        for cycle in range(40):
            now = cycle * TIMEOUT_S / 3
            core.message(many_flows(2_000, first=700 * cycle, last=1_000 + cycle), now)
            while core.table.expire(now, 500):
                pass
