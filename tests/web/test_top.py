"""The top connections: `Table.top` compared with the page of the table."""

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skyfast.flows.plan import Gauge
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

SLICE_ROWS = 2048
COUNT = Family("flows", "gauge", ())
BYTES_PATH, BYTES_BACK = FAMILIES[0].forward, FAMILIES[0].backward
BYTE_FAMILY = [family.name for family in FAMILIES].index(BYTES)
RTT_FAMILY = [family.name for family in FAMILIES].index(RTT)


def shown(core, now=1.0):
    """Map each connection on the page to its values: for each family, one value per direction."""
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
    """Return the expected entries of `top`, as a set: the order of equal ranks is undefined."""
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
        entries.add((rank, labels, tuple(value for side in values for value in side), True))
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


def test_top_ranks_views_with_and_without_directions():
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
    assert {rank for rank, labels, *_ in increased if labels not in before} == {5 + 6}
    assert snapshot.bytes < 12 * 1_000


def test_increase_of_a_reused_row_is_its_whole_value():
    core = Core(flow_memory_s=0)
    core.message(many_flows(100, total=(1_000, 1_000, 1_000, 1_000)), 0)
    snapshot = core.snapshot(BYTE_FAMILY)
    core.expire(TIMEOUT_S)
    assert core.top(BYTE_FAMILY, 10, since=snapshot) == core.top(BYTE_FAMILY, 10) == []
    core.message(many_flows(30, first=500, total=(2, 4, 1, 3)), TIMEOUT_S)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)] == [6] * 30
    # Ten expired connections are created again, so the increase is the whole value.
    core.message(many_flows(10, total=(1, 2, 1, 2), last=9_000_000), TIMEOUT_S)
    top = core.top(BYTE_FAMILY, 99, since=snapshot)
    assert [rank for rank, *_ in top] == [6] * 30 + [3] * 10


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]], ids=["one flow per row", "shared rows"])
def test_returning_connection_has_no_increase_until_the_next_snapshot(labels):
    core = Core(one_view(labels=labels, families=FAMILIES[:2]))
    core.message(many_flows(20, total=(1_000, 1_000, 1_000, 1_000)), 0)
    core.expire(TIMEOUT_S)
    assert core.connections == 0
    core.message(many_flows(4, total=(9, 9, 9, 9), first=500), TIMEOUT_S)
    snapshot = core.snapshot(BYTE_FAMILY)
    # The snapshot lacks the connections that return now, so their increase is unknown.
    core.message(many_flows(20, total=(1_001, 1_000, 1_000, 1_000), last=9_000_000), 100)
    assert [rank for rank, *_ in core.top(BYTE_FAMILY, 99)][-5:] == [2001] + [18] * 4
    assert core.top(BYTE_FAMILY, 99, since=snapshot) == []
    snapshot = core.snapshot(BYTE_FAMILY)
    core.message(many_flows(20, total=(1_003, 1_000, 1_000, 1_000), last=9_000_001), 101)
    assert {rank for rank, *_ in core.top(BYTE_FAMILY, 99, since=snapshot)} == {2}


def test_top_can_be_filtered_by_a_part_of_a_label_value():
    core = Core()
    core.message(random_flows(1), 0)
    everything = core.top(BYTE_FAMILY, 1_000)
    for part in (
        *("10.0.0.1", "443", "44", "é" * 3, "É" * 3, "two", "TWO", "tcP", "T", "\\", '"', "QuO"),
        *("nowhere", "10.0.0.1\0", "10.0.0.10.0.0.1", "éE", "ﬁ", "İ"),
    ):
        expected = [
            entry
            for entry in everything
            if any(part.lower() in escaped(label).lower() for label in entry[1])
        ]
        assert core.top(BYTE_FAMILY, 1_000, containing=part) == expected
    assert core.top(BYTE_FAMILY, 1_000, containing="") == everything
    two = [entry for entry in everything if "two" in entry[1]]
    assert core.top(BYTE_FAMILY, 5, containing="two")[0][0] == two[0][0]


@pytest.mark.parametrize(
    ("label", "part", "found"),
    [
        ("Straße", "STRAßE", True),
        ("Straße", "strasse", False),  # the upper case of ß has two characters
        ("ΔΑΣ", "δας", True),
        ("δας", "ΔΑΣ", False),  # Σ matches only Σ and σ, not the final sigma ς
        ("Μs", "µs", True),
        ("Ǆ", "ǅ", True),
        ("Ж/\U00010400", "ж/\U00010428", True),
        ("aab", "AB", True),
        ("ab", "abc", False),
        ("İ", "i", False),
    ],
)
def test_filter_ignores_the_case_of_any_script(label, part, found):
    core = Core()
    core.report(make_flow("1", node=label), 0)
    assert len(core.top(BYTE_FAMILY, 9, containing=part)) == found


def test_filter_matches_rows_with_the_text_or_with_given_label_values():
    core = Core()
    nodes = ['"quoted"', "back\\slash", "é" * 60, "a\nb", "443", "plain"]
    for n, node in enumerate(nodes):
        core.report(make_flow(f"{n + 1:x}", (n, 1, 1, 1), node=node), 0)

    def found(part, **values):
        also = [
            (label, b"".join(f"{escaped(value)}\n".encode() for value in texts))
            for label, texts in values.items()
        ]
        index = [column.name for column in core.plan.views[0].columns].index("node_tid")
        return [row[1][index] for row in core.top(BYTE_FAMILY, 9, containing=part, also=also)]

    assert found("no such text", node_tid=nodes) == nodes[::-1]
    for node in nodes:
        assert found("no such text", node_tid=["x", node, "y" * 5000]) == [node]
    assert found("plain", node_tid=[nodes[0]]) == ["plain", nodes[0]]
    # Values of other labels, and ports (which are numbers), do not match.
    assert found("no such text", initiator_ip=nodes, target_port=["443"]) == []
    assert found("no such text", node_tid=[]) == found("no such text", node_tid=[""]) == []
    assert found("", node_tid=["x"]) == nodes[::-1]
    many = [f"{n}-{'x' * (n % 50)}" for n in range(5000)]
    assert found("no such text", node_tid=[*many, nodes[2]]) == [nodes[2]]
    with pytest.raises(ValueError, match="not in tuple"):
        found("x", nowhere=[])


def test_labels_are_not_escaped():
    core = Core()
    for n, text in enumerate(ODD_TEXTS):
        core.report(make_flow(f"{n + 1:x}", node=text), 0)
    index = [column.name for column in core.plan.views[0].columns].index("node_tid")
    assert {labels[index] for _, labels, *_ in core.top(BYTE_FAMILY, 99)} == set(ODD_TEXTS)


def test_overflow_row_is_ranked_like_a_connection():
    core = Core(overflow="other", max_connections=10)
    core.message(many_flows(30, total=(1, 10, 1, 10)), 0)
    rank, labels, *_ = core.top(BYTE_FAMILY, 1)[0]
    assert set(labels) == {"other"}
    assert rank > 20


def test_top_rejects_invalid_families_snapshots_and_counts():
    sizes = Family("sizes", "histogram", BYTES_PATH, BYTES_BACK, observes="total", buckets=("1",))
    views = (View(LABELS, FAMILIES), View((DIRECTION,), (*FAMILIES, sizes), timeout_s=90))
    core = Core(Spec(views=views))
    calls = (
        core.snapshot,
        lambda family: core.top(family, 1),
        lambda family: core.top_groups(family, 1, ["protocol"]),
    )
    for call in calls:
        with pytest.raises(IndexError, match="no such family"):
            call(2 * len(FAMILIES) + 1)
        with pytest.raises(ValueError, match="by a histogram"):
            call(2 * len(FAMILIES))
    with pytest.raises(ValueError, match="requires a counter"):
        core.snapshot(RTT_FAMILY)
    with pytest.raises(ValueError, match="another table"):
        core.top(BYTE_FAMILY, 1, since=Core().snapshot(BYTE_FAMILY))
    with pytest.raises(ValueError, match="at most"):
        core.top(BYTE_FAMILY, 1 << 17)
    with pytest.raises(OverflowError):
        core.top(-1, 1)


def test_rows_of_views_are_ranked_by_their_own_families():
    services = View(
        [label for label in LABELS if label.name in ("target_port", "protocol")],
        (COUNT, FAMILIES[BYTE_FAMILY]),
        timeout_s=90,
    )
    core = Core(Spec(views=(View(), services)))
    core.message(many_flows(6, total=(1, 2, 3, 4)), 0)
    number = len(FAMILIES) + 1
    port, protocol = (core.top(number, 9)[0][1][i] for i in (0, 1))
    assert core.top(number, 9) == [(18, (port, protocol), (6, 18), True)]
    assert core.top(number - 1, 9) == [(6, (port, protocol), (6, 18), True)]
    snapshot = core.snapshot(number)
    core.message(many_flows(2, total=(2, 2, 3, 4), last=2_000), 1)
    assert [rank for rank, *_ in core.top(number, 9, since=snapshot)] == [2]
    assert core.top(number, 9, containing=protocol.lower())
    assert core.top(number, 9, containing="10.0.0") == []
    also = [("protocol", f"{protocol}\n".encode())]
    assert core.top(number, 9, containing="no such text", also=also)
    assert core.top_groups(number, 9, ["protocol"])[0] == [(20, (protocol,), (6, 20), 1)]
    with pytest.raises(ValueError, match="not in tuple"):
        core.top_groups(number, 9, ["initiator_ip"])
    # The connections have expired, but the row of the view remains.
    core.expire(TIMEOUT_S + 1)
    assert core.top(BYTE_FAMILY, 9) == []
    assert core.top(number, 9) == [(20, (port, protocol), (0, 20), True)]


def test_hidden_connections_are_marked():
    core = Core()
    core.message(many_flows(3, total=(1, 2, 1, 2)), 0)
    core.report(make_flow("ff", (600, 401, 1, 1), a="192.0.2.1"), 0)
    assert [shown for *_, shown in core.top(BYTE_FAMILY, 9)] == [True] * 4
    core.bounds = [(1000, 0)]
    assert [shown for *_, shown in core.top(BYTE_FAMILY, 9)] == [True, False, False, False]
    core.bounds = [(1001, 2)]
    assert [shown for *_, shown in core.top(BYTE_FAMILY, 9)] == [True] * 4


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
            assert all(labels[0].startswith("10.0.") for _, labels, *_ in top)
        groups, *_ = core.top_groups(
            BYTE_FAMILY, 100, ["target_port", "initiator_ip"], max_groups=500
        )
        assert all(labels[1].startswith("10.0.") for _, labels, *_ in groups)

    with beside(check_top):
        for cycle in range(40):
            now = cycle * TIMEOUT_S / 3
            core.message(many_flows(2_000, first=700 * cycle, last=1_000 + cycle), now)
            while core.table.expire(now, 500):
                pass


# Groups --------------------------------------------------------------------------------------


def combined(core, entries):
    """Return the values of a group, and its number of entries."""
    families = core.plan.views[0].families
    kinds = [
        {"least": min, "latest": max, "most": max}[value.keep] if isinstance(value, Gauge) else sum
        for family in families
        for value in family.values
    ]
    columns = zip(*(values for _, _, values, _ in entries), strict=True)
    values = tuple(
        kind(value for value in column if value is not None)
        if any(value is not None for value in column)
        else None
        for kind, column in zip(kinds, columns, strict=True)
    )
    return values, len(entries)


def grouped(core, family, labels, entries):
    """Map the label values of each group to its rank, values and number of connections."""
    names = [column.name for column in core.plan.views[0].columns]
    indexes = [names.index(label) for label in labels]
    is_gauge = core.plan.views[0].families[family].type == "gauge"
    members = {}
    for entry in entries:
        members.setdefault(tuple(entry[1][index] for index in indexes), []).append(entry)
    return {
        key: (
            (max if is_gauge else sum)(entry[0] for entry in group if entry[0] is not None)
            if any(entry[0] is not None for entry in group)
            else None,
            *combined(core, group),
        )
        for key, group in members.items()
    }


def all_entries(core, family, **options):
    """Return all connections, with the rank None if they have no value in the family."""
    ranked_ones = core.top(family, 10_000, **options)
    known = {labels for _, labels, *_ in ranked_ones}
    every = {labels: values for _, labels, values, _ in core.top(BYTE_FAMILY, 10_000)}
    assert len(every) == core.connections
    rest = [(None, *entry, True) for entry in every.items() if entry[0] not in known]
    return ranked_ones + rest


GROUP_LABELS = [
    ("node_tid",),
    ("target_port",),
    ("initiator_ip", "target_port"),
    ("target_port", "initiator_ip"),
    ("protocol",),
    ("initiator_ip", "target_ip", "initiator_port", "target_port", "node_tid", "protocol"),
]


@pytest.mark.parametrize("labels", GROUP_LABELS, ids=",".join)
@pytest.mark.parametrize("family", [BYTE_FAMILY, RTT_FAMILY])
def test_groups_match_the_sums_of_connections(family, labels):
    core = Core()
    core.message(random_flows(1), 0)
    expected = grouped(core, family, labels, all_entries(core, family))
    listed = {key: group for key, group in expected.items() if group[0] is not None}
    for count in (0, 1, 5, len(listed), 10_000):
        entries, others, number, is_incomplete = core.top_groups(family, count, labels)
        assert (number, is_incomplete) == (len(expected), False)
        ranks = [rank for rank, *_ in entries]
        assert ranks == sorted((group[0] for group in listed.values()), reverse=True)[:count]
        for rank, key, values, connections in entries:
            assert (rank, values, connections) == expected[key]
        shown_keys = {key for _, key, *_ in entries}
        names = [column.name for column in core.plan.views[0].columns]
        indexes = [names.index(label) for label in labels]
        rest = [
            entry
            for entry in all_entries(core, family)
            if tuple(entry[1][index] for index in indexes) not in shown_keys
        ]
        connections, rank, values = others
        assert connections == len(rest)
        if rest:
            ((_, (expected_rank, expected_values, _)),) = grouped(core, family, (), rest).items()
            assert (rank, values) == (expected_rank, expected_values)
        else:
            assert rank is None
            assert set(values) == {None}


def test_groups_can_be_filtered_and_ranked_by_increase():
    core = Core()
    core.message(random_flows(1), 0)
    snapshot = core.snapshot(BYTE_FAMILY)
    core.message(
        [
            *random_flows(1, scale=2)[:100],
            *many_flows(50, last=2_000, total=(5, 6, 7, 8), first=1 << 20),
        ],
        1,
    )
    for options in ({"since": snapshot}, {"since": snapshot, "containing": "TWO"}):
        rows = core.top(BYTE_FAMILY, 10_000, **options)
        entries, *_ = core.top_groups(BYTE_FAMILY, 100, ["target_port"], **options)
        sums = {}
        index = [column.name for column in core.plan.views[0].columns].index("target_port")
        for rank, labels, *_ in rows:
            sums[labels[index],] = sums.get((labels[index],), 0) + rank
        assert {labels: rank for rank, labels, *_ in entries} == sums
    part = core.top(BYTE_FAMILY, 10_000, containing="two")
    entries, others, number, _ = core.top_groups(BYTE_FAMILY, 1, ["protocol"], containing="two")
    assert (entries[0][0], entries[0][3]) == (sum(rank for rank, *_ in part), len(part))
    assert (others[0], number) == (0, 1)


def test_groups_beyond_the_limit_are_combined():
    core = Core()
    heavy, count = 20, 2_000
    # The largest groups come last, after the number of groups has reached the limit.
    core.message(many_flows(count, total=(1, 1, 1, 1)), 0)
    core.message(
        [
            make_flow(f"f{n:02x}{m:02x}", (10**6 + n, 0, 1, 0), a=f"192.0.2.{n}", ports=(m, 443))
            for n in range(heavy)
            for m in range(30)
        ],
        0,
    )
    everything = core.top(BYTE_FAMILY, 10_000)
    for max_groups in (64, 100, 1_000):
        entries, others, number, is_incomplete = core.top_groups(
            BYTE_FAMILY, 1_000, ["initiator_ip", "initiator_port"], max_groups=max_groups
        )
        assert is_incomplete
        assert heavy < number <= max_groups + SLICE_ROWS
        # No connection and no byte is missing.
        assert others[0] + sum(entry[3] for entry in entries) == len(everything)
        total = sum(rank for rank, *_ in everything)
        assert (others[1] or 0) + sum(entry[0] for entry in entries) == total
    entries, others, number, is_incomplete = core.top_groups(
        BYTE_FAMILY, heavy, ["initiator_ip"], max_groups=64
    )
    assert is_incomplete
    assert {labels[0] for _, labels, *_ in entries} == {f"192.0.2.{n}" for n in range(heavy)}
    assert {connections for *_, connections in entries} == {30}


def test_groups_can_have_label_values_of_any_length():
    core = Core()
    for n, text in enumerate(ODD_TEXTS):
        core.report(make_flow(f"{n + 1:x}", node=text), 0)
    entries, *_ = core.top_groups(BYTE_FAMILY, 99, ["node_tid", "protocol"])
    assert {labels for _, labels, *_ in entries} == {(text, "TCP") for text in ODD_TEXTS}
    # The concatenations of these label values are equal, but the groups are distinct.
    core = Core()
    for n, (a, node) in enumerate([("a", ""), ("", "a"), ("aa", "a"), ("a", "aa")]):
        core.report(make_flow(f"{n + 1:x}", a=a, node=node), 0)
    assert core.top_groups(BYTE_FAMILY, 9, ["initiator_ip", "node_tid"])[2] == 4
    # A group with long label values counts as several groups towards the limit.
    core = Core()
    for n in range(20):
        core.report(make_flow(f"{n + 1:x}", node=f"{n:03}" + 1000 * '"'), 0)
    entries, others, number, is_incomplete = core.top_groups(
        BYTE_FAMILY, 99, ["node_tid"], max_groups=50
    )
    if number < 20:  # the limit takes effect only if the scan has more than one slice
        assert is_incomplete
    assert len(entries) == number
    assert sum(entry[3] for entry in entries) + others[0] == 20


def test_top_groups_rejects_invalid_arguments():
    core = Core()
    other = Core().snapshot(BYTE_FAMILY)
    for message, arguments in {
        "1 to 32 labels": (BYTE_FAMILY, 1, []),
        "not in tuple": (BYTE_FAMILY, 1, ["direction"]),
        "another table": (BYTE_FAMILY, 1, ["protocol"], other),
        "count must be": (BYTE_FAMILY, 1 << 17, ["protocol"]),
        "max_groups must be": (BYTE_FAMILY, 1, ["protocol"], None, "", (), 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            core.top_groups(*arguments)
    with pytest.raises(IndexError, match="no such family"):
        core.top_groups(len(FAMILIES), 1, ["protocol"])
    assert core.top_groups(BYTE_FAMILY, 9, ["protocol"]) == (
        [],
        (0, None, (None,) * 5),
        0,
        False,
    )
