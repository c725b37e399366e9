"""Flow filters, compared with a reference implementation in plain Python."""

import re
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyfast.flows import rewrites
from skyfast.flows.fields import FIELDS, flow_types
from skyfast.flows.filters import FlowFilter, classifier, make_flow_filter, reads
from skyfast.flows.plan import FieldPath, Plan, Requirement
from skyfast.flows.selection import Condition, Filter, Network, Rule

JSON = dict[str, Any]

CLUSTER = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))

TRANSPORT = (
    Requirement(paths=(("Network",),), reason="no_network"),
    Requirement(paths=(("Transport",),), reason="no_transport"),
    Requirement(paths=(("Metric",),), reason="no_metric"),
)
WITH_ICMP = (
    TRANSPORT[0],
    Requirement(paths=(("Transport",), ("ICMP",)), reason="no_transport"),
    TRANSPORT[2],
)
WITH_OTHER = (
    TRANSPORT[0],
    Requirement(paths=(("Transport",),), unless_missing=("ICMP",), reason="no_transport"),
    TRANSPORT[2],
)


class FilterHarness:
    """A flow filter that counts dropped flows.

    `admit` returns the UUIDs of the flows that pass the filter.
    """

    def __init__(
        self, config: Filter, *, requirements: tuple[Requirement, ...] = TRANSPORT, **filtered: int
    ) -> None:
        plan = Plan(views=(), requirements=requirements)
        # Flows are decoded with only the fields in `reads`, to check that the filter needs no
        # others.
        self._type = flow_types(plan, also=reads(config)).Update
        self.skipped: dict[str, int] = {"excluded": 0}
        self.filtered: dict[str, int] = filtered
        self.flow_filter: FlowFilter = make_flow_filter(
            config,
            classifier(CLUSTER),
            requirements=requirements,
            skipped=self.skipped,
            filtered=self.filtered,
        )

    def decode(self, *flows: JSON) -> list[Any]:
        return [msgspec.convert(item, self._type) for item in flows]

    def admit(self, *flows: JSON) -> list[str]:
        return [admitted.UUID for admitted in self.flow_filter(self.decode(*flows))]

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of dropped flows, by reason."""
        counts = {**self.skipped, **self.filtered}
        return {name: count for name, count in counts.items() if count}


def flow(uuid: str = "ab", **changes: Any) -> JSON:
    whole = {
        "UUID": uuid,
        "Application": "TCP",
        "Network": {"Protocol": "IPV4", "A": "10.0.0.1", "B": "8.8.8.8"},
        "Transport": {"Protocol": "TCP", "A": 40000, "B": 443},
        "Metric": {"ABBytes": 1},
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


def make_filter(*, excluded: set[str] = frozenset(), drop: Any = (), keep: Any = ()) -> Filter:
    return Filter(excluded_tags=frozenset(excluded), drop=tuple(drop), keep=tuple(keep))


def rule(name: str, *conditions: Condition) -> Rule:
    return Rule(name=name, conditions=conditions)


def where(path: FieldPath | None, *values: str | int, **more: Any) -> Condition:
    field = ".".join(path or ("tag",))
    return Condition(field=field, path=path, values=frozenset(values), **more)


A, B = ("Network", "A"), ("Network", "B")
PORT = ("Transport", "B")
APPLICATION = ("Application",)


def test_filter_without_rules_returns_the_list_unchanged() -> None:
    harness = FilterHarness(make_filter())
    flows = harness.decode(flow(), flow(Network=None))
    assert harness.flow_filter(flows) is flows
    assert harness.flow_filter.refilter(flows) is flows
    assert reads(make_filter()) == ()
    assert harness.filtered == {}


@pytest.mark.parametrize(
    ("initiator", "target", "expected"),
    [
        ("10.0.0.1", "fd00::1", "internal"),
        ("10.0.0.1", "8.8.8.8", "egress"),
        ("2001:db8::1", "10.1.2.3", "ingress"),
        ("8.8.8.8", "9.9.9.9", "other"),
        ("::ffff:10.0.0.1", "10.0.0.2", "internal"),
        ("::10.0.0.1", "10.0.0.2", "ingress"),
        ("10.0.0.1", "", "other"),
        ("", "", "other"),
        ("10.0.0.256", "10.0.0.1", "other"),
        ("fd00::1%eth0", "10.0.0.1", "other"),
        ("10.0.0.1", "fd00::1%eth0", "other"),
        ("10.0.0.1/8", "10.0.0.1", "other"),
        ("x" * 1_000_000, "10.0.0.1", "other"),
    ],
)
def test_tag_depends_on_both_addresses(initiator: str, target: str, expected: str) -> None:
    harness = FilterHarness(make_filter(excluded={"other"}))
    (decoded,) = harness.decode(flow(Network={"A": initiator, "B": target}))
    tags = classifier(CLUSTER)
    assert (tags[decoded], tags[decoded]) == (expected, expected)


def test_flow_without_addresses_is_tagged_other() -> None:
    (decoded,) = FilterHarness(make_filter(excluded={"other"})).decode(flow(Network=None))
    assert classifier(CLUSTER)[decoded] == "other"


def test_every_flow_is_tagged_other_if_no_cluster_network_is_configured() -> None:
    (decoded,) = FilterHarness(make_filter(excluded={"other"})).decode(flow())
    assert classifier([])[decoded] == "other"


def test_address_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "MAX_REMEMBERED", 5)
    harness = FilterHarness(make_filter(drop=[rule("net", where(A, networks=CLUSTER[:1]))]))
    for _ in range(2):
        flows = [flow(str(n), Network={"A": f"{9 + n % 2}.0.0.{n}"}) for n in range(20)]
        assert harness.admit(*flows) == [str(n) for n in range(0, 20, 2)]
    assert harness.counts == {"net": 20}


@pytest.mark.parametrize("excluded", ["internal", "ingress", "egress", "other"])
def test_flows_of_an_excluded_tag_are_dropped(excluded: str) -> None:
    ends = {
        "internal": ("10.0.0.1", "fd00::1"),
        "egress": ("10.0.0.1", "8.8.8.8"),
        "ingress": ("2001:db8::1", "10.1.2.3"),
        "other": ("8.8.8.8", "9.9.9.9"),
    }
    harness = FilterHarness(make_filter(excluded={excluded}))
    flows = [flow(name, Network={"A": a, "B": b}) for name, (a, b) in ends.items()]
    assert harness.admit(*flows) == [name for name in ends if name != excluded]
    assert harness.counts == {"excluded": 1}


CONDITIONS = {
    "a string": (where(APPLICATION, "TCP"), flow(), flow(Application="UDP")),
    "one of several values": (where(PORT, 80, 443), flow(), flow(Transport={"B": 81})),
    "none of several values": (
        where(PORT, 80, 443, negated=True),
        flow(Transport={"B": 81}),
        flow(),
    ),
    "a missing port is 0": (where(PORT, 0), flow(Transport={}), flow()),
    "a missing string is empty": (where(APPLICATION, ""), flow(Application=None), flow()),
    "a range": (where(PORT, ranges=((440, 443),)), flow(), flow(Transport={"B": 444})),
    "the start of a range": (where(PORT, ranges=((443, 450),)), flow(), flow(Transport={"B": 442})),
    "several ranges and a number": (
        where(PORT, 443, ranges=((1, 22), (20, 30), (8000, 8999))),
        flow(),
        flow(Transport={"B": 31}),
    ),
    "a network": (where(A, networks=CLUSTER), flow(), flow(Network={"A": "11.0.0.1"})),
    "not a network": (where(A, networks=CLUSTER, negated=True), flow(Network={"A": "x"}), flow()),
    "an IPv4-mapped address": (
        where(A, networks=CLUSTER),
        flow(Network={"A": "::ffff:10.1.1.1"}),
        flow(Network={"A": "::ffff:11.1.1.1"}),
    ),
    "an address or a network": (
        where(B, "8.8.8.8", networks=CLUSTER),
        flow(),
        flow(Network={"A": "10.0.0.1", "B": "8.8.4.4"}),
    ),
    "an unanchored pattern": (
        where(APPLICATION, pattern=re.compile("C")),
        flow(),
        flow(Application="UDP"),
    ),
    "an anchored pattern": (
        where(APPLICATION, pattern=re.compile("^(DNS|UDP)$"), negated=True),
        flow(),
        flow(Application="DNS"),
    ),
    "a pattern on a number": (
        where(PORT, pattern=re.compile("^44")),
        flow(),
        flow(Transport={"B": 1443}),
    ),
    "a tag": (where(None, "egress"), flow(), flow(Network={"A": "10.0.0.1", "B": "10.0.0.2"})),
    "not a tag": (
        where(None, "egress", "ingress", negated=True),
        flow(Network={"A": "10.0.0.1", "B": "10.0.0.2"}),
        flow(),
    ),
    "a total": (
        where(("Metric", "ABBytes"), ranges=((1, 2**62),)),
        flow(Metric={"ABBytes": 2**62}),
        flow(Metric={"ABBytes": 10**29}),
    ),
    "a missing object": (
        where(("Link", "ID"), 0, negated=True),
        flow(),
        flow(Link={"ID": 0}),
    ),
}


@pytest.mark.parametrize(("condition", "matching", "other"), CONDITIONS.values(), ids=CONDITIONS)
def test_condition_matches_in_drop_and_keep_rules(
    condition: Condition, matching: JSON, other: JSON
) -> None:
    flows = (matching | {"UUID": "matching"}, other | {"UUID": "other"})
    dropping = FilterHarness(make_filter(drop=[rule("r", condition)]))
    assert (dropping.admit(*flows), dropping.counts) == (["other"], {"r": 1})
    keeping = FilterHarness(make_filter(keep=[rule("r", condition)]))
    assert (keeping.admit(*flows), keeping.counts) == (["matching"], {"keep": 1})


SMALL = st.integers(0, 20)


@given(
    st.lists(st.tuples(SMALL, SMALL).map(sorted).map(tuple), min_size=1, max_size=5),
    st.frozensets(SMALL, max_size=3),
)
def test_port_ranges_can_overlap_touch_and_nest(
    ranges: list[tuple[int, int]], numbers: frozenset[int]
) -> None:
    harness = FilterHarness(
        make_filter(keep=[rule("k", where(PORT, *numbers, ranges=tuple(ranges)))])
    )
    flows = [flow(str(port), Transport={"B": port}) for port in range(-1, 22)]
    kept = {port for low, high in ranges for port in range(low, high + 1)} | numbers
    assert harness.admit(*flows) == [str(port) for port in sorted(kept)]


def test_similar_conditions_are_not_confused() -> None:
    digits = re.compile("^9+$")
    drop = [
        rule("x", where(B, "x", networks=CLUSTER)),
        rule("y", where(B, "y", networks=CLUSTER)),
        rule("1", where(PORT, ranges=((1, 2),), pattern=digits)),
        rule("3", where(PORT, ranges=((3, 4),), pattern=digits)),
        rule("8", where(PORT, ranges=((3, 4),), pattern=re.compile("^8+$"))),
    ]
    harness = FilterHarness(make_filter(drop=drop))
    ends = [("x", 0), ("y", 0), ("z", 0), ("", 1), ("", 3), ("", 5), ("", 99), ("", 88)]
    flows = [flow(f"{b}{port}", Network={"B": b}, Transport={"B": port}) for b, port in ends]
    assert harness.admit(*flows) == ["z0", "5"]
    assert harness.counts == {"x": 1, "y": 1, "1": 2, "3": 1, "8": 1}


def test_all_conditions_of_a_rule_must_match() -> None:
    both = rule("both", where(APPLICATION, "TCP"), where(PORT, 443))
    harness = FilterHarness(make_filter(drop=[both]))
    flows = (flow("1"), flow("2", Application="UDP"), flow("3", Transport={"B": 80}))
    assert harness.admit(*flows) == ["2", "3"]


def test_flow_is_counted_once_by_the_first_rule_that_matches() -> None:
    rules = [rule("port", where(PORT, 443)), rule("tcp", where(APPLICATION, "TCP"))]
    keep = [rule("udp", where(APPLICATION, "UDP"))]
    harness = FilterHarness(make_filter(excluded={"internal"}, drop=rules, keep=keep))
    inside = {"A": "10.0.0.1", "B": "10.0.0.2"}
    flows = (
        flow("1", Network=inside),
        flow("2"),
        flow("3", Transport={"B": 80}),
        flow("4", Transport={"B": 80}, Application="DNS"),
        flow("5", Transport={"B": 80}, Application="UDP"),
    )
    assert harness.admit(*flows) == ["5"]
    assert harness.counts == {"excluded": 1, "port": 1, "tcp": 1, "keep": 1}


def test_flow_needs_to_match_only_one_keep_rule() -> None:
    harness = FilterHarness(
        make_filter(keep=[rule("a", where(PORT, 80)), rule("b", where(PORT, 443))])
    )
    assert harness.admit(flow("1"), flow("2", Transport={"B": 22})) == ["1"]


def test_counts_of_rules_start_at_zero_or_at_their_previous_value() -> None:
    drop = [rule("new", where(PORT, 1)), rule("old", where(PORT, 443))]
    harness = FilterHarness(make_filter(drop=drop, keep=[rule("k", where(PORT, 2))]), old=5, gone=3)
    assert harness.filtered == {"new": 0, "old": 5, "keep": 0, "gone": 3}
    harness.admit(flow())
    assert harness.filtered == {"new": 0, "old": 6, "keep": 0, "gone": 3}


def test_flows_that_are_filtered_again_are_not_counted_twice() -> None:
    harness = FilterHarness(
        make_filter(excluded={"internal"}, drop=[rule("port", where(PORT, 443))])
    )
    flows = harness.decode(flow(), flow("2", Transport={"B": 80}))
    assert [admitted.UUID for admitted in harness.flow_filter.refilter(flows)] == ["2"]
    assert harness.counts == {}


@pytest.mark.parametrize(
    "missing", [{"UUID": ""}, {"Network": None}, {"Transport": None}, {"Metric": None}]
)
@pytest.mark.parametrize(
    "config",
    [
        make_filter(excluded={"other", "egress"}),
        make_filter(drop=[rule("all")]),
        make_filter(keep=[rule("none", where(PORT, 1))]),
    ],
    ids=["excluded", "drop", "keep"],
)
def test_flows_that_the_table_skips_are_not_filtered(config: Filter, missing: JSON) -> None:
    harness = FilterHarness(config)
    assert harness.admit(flow() | missing if "UUID" in missing else flow(**missing)) != []
    assert harness.counts == {}
    assert harness.admit(flow()) == []


def test_rules_apply_to_icmp_only_if_include_icmp_is_set() -> None:
    echo = flow(Transport=None, ICMP={"Type": "ECHO"})
    drop = make_filter(drop=[rule("echo", where(("ICMP", "Type"), "ECHO"))])
    assert FilterHarness(drop, requirements=TRANSPORT).admit(echo) == ["ab"]
    harness = FilterHarness(drop, requirements=WITH_ICMP)
    assert harness.admit(echo, flow("2", Transport=None), flow("3")) == ["2", "3"]
    assert harness.counts == {"echo": 1}


def test_rules_apply_to_flows_without_transport_only_if_include_other_is_set() -> None:
    gre = flow("1", Transport=None, LayersPath="Ethernet/IPv4/GRE")
    echo = flow("2", Transport=None, ICMP={"Type": "ECHO"}, LayersPath="Ethernet/IPv4/ICMPv4")
    gre_layers = where(("LayersPath",), pattern=re.compile("/GRE$"))
    drop = make_filter(drop=[rule("gre", gre_layers), rule("all")])
    assert FilterHarness(drop, requirements=TRANSPORT).admit(gre, echo) == ["1", "2"]
    harness = FilterHarness(drop, requirements=WITH_OTHER)
    assert harness.admit(gre, echo, flow("3")) == ["2"]
    assert harness.counts == {"gre": 1, "all": 1}


HOSTILE_TEXTS = ('"', "'", "\\", "\n", "') or exit() or ('", "{0}", "%s", "c1", "True", "é\u2028")


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_text_of_a_rule_is_compared_and_never_executed(text: str) -> None:
    drop = [
        rule(text, where(APPLICATION, text)),
        rule(text * 2, where(A, text, networks=CLUSTER[1:])),
        rule(text * 3, where(B, pattern=re.compile(re.escape(text)))),
    ]
    harness = FilterHarness(make_filter(drop=drop))
    flows = (
        flow("1"),
        flow("2", Application=text),
        flow("3", Network={"A": text, "B": "x"}),
        flow("4", Network={"B": f"<{text}>"}),
    )
    assert harness.admit(*flows) == ["1"]
    assert harness.counts == {text: 1, text * 2: 1, text * 3: 1}


def test_unknown_field_is_rejected() -> None:
    hostile = where(("UUID == exit() or flow", "A"), "x")
    with pytest.raises(KeyError):
        FilterHarness(make_filter(drop=[rule("hostile", hostile)]))


def test_a_thousand_rules_can_be_compiled() -> None:
    drop = [rule(f"d{n}", *(where(PORT, n, 443) for _ in range(10))) for n in range(444, 1444)]
    keep = [rule(f"k{n}", where(PORT, n)) for n in range(1000)]
    harness = FilterHarness(make_filter(drop=drop, keep=keep))
    flows = [flow(str(port), Transport={"B": port}) for port in (22, 1443, 2000)]
    assert harness.admit(*flows) == ["22"]
    assert harness.counts == {"d1443": 1, "keep": 1}


# Reference implementation -------------------------------------------------------------------------

NUMBERS = (0, 1, 22, 23, 80, 443, 65535, -1, 2**62, 10**29)
TEXTS = (
    *("", "10.0.0.1", "10.1.2.3", "8.8.8.8", "::ffff:10.0.0.1", "fd00::1", "2001:db8::1"),
    *("fe80::1%eth0", "10.0.0.256", "TCP", "UDP", 'a"b\n', "x" * 300),
)
TAGS = ("internal", "ingress", "egress", "other")
NETWORKS = tuple(
    map(ip_network, ("0.0.0.0/0", "::/0", "10.0.0.0/8", "10.0.0.0/16", "fd00::/8", "8.8.8.8/32"))
)
PATTERNS = tuple(map(re.compile, ("", "^10", "0", "P$", "^$", "er", "x{300}")))
PATHS = (
    *(A, B, PORT, APPLICATION, ("NodeTID",), ("Transport", "Protocol"), ("ICMP", "Type")),
    *(("FinishType",), ("Link", "ID"), ("TCPMetric", "ABPackets"), ("Metric", "RTT"), None),
)


def value(path: FieldPath | None, raw: JSON) -> str | int | None:
    """Return a field of a flow, or None if the flow lacks the object with the field."""
    if path is None:
        return tag(raw)
    *part, name = path
    parent = raw.get(part[0]) if part else raw
    return None if parent is None else parent.get(name, FIELDS[path]())


def parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if "%" in text:
        return None
    return ip_address(text[7:]) if text.startswith("::ffff:") else address


def inside(text: str, networks: tuple[Network, ...]) -> bool:
    address = parsed(text)
    return address is not None and any(address in network for network in networks)


def tag(raw: JSON) -> str:
    ends = raw.get("Network") or {}
    a, b = ends.get("A", ""), ends.get("B", "")
    if parsed(a) is None or parsed(b) is None:
        return "other"
    match inside(a, CLUSTER), inside(b, CLUSTER):
        case True, True:
            return "internal"
        case True, False:
            return "egress"
        case False, True:
            return "ingress"
    return "other"


def condition_matches(condition: Condition, raw: JSON) -> bool:
    actual = value(condition.path, raw)
    if actual is None:
        return False
    return (
        actual in condition.values
        or (isinstance(actual, int) and any(a <= actual <= b for a, b in condition.ranges))
        or (isinstance(actual, str) and inside(actual, condition.networks))
        or (condition.pattern is not None and bool(condition.pattern.search(str(actual))))
    )


def rule_matches(rule: Rule, raw: JSON) -> bool:
    return all(condition_matches(item, raw) != item.negated for item in rule.conditions)


def verdict(config: Filter, requirements: tuple[Requirement, ...], raw: JSON) -> str | None:
    """Return the reason to drop the flow, or None if the flow passes."""
    if not raw.get("UUID"):
        return None
    for requirement in requirements:
        exempt = requirement.unless_missing and requirement.unless_missing[0] not in raw
        if not exempt and not any(path[0] in raw for path in requirement.paths):
            return None
    if tag(raw) in config.excluded_tags:
        return "excluded"
    for drop_rule in config.drop:
        if rule_matches(drop_rule, raw):
            return drop_rule.name
    if config.keep and not any(rule_matches(keep_rule, raw) for keep_rule in config.keep):
        return "keep"
    return None


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    path = draw(st.sampled_from(PATHS))
    texts = TAGS if path is None else TEXTS
    kind = str if path is None else FIELDS[path]
    values = st.frozensets(st.sampled_from(NUMBERS if kind is int else texts), max_size=3)
    ranges = st.tuples(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS)).map(sorted).map(tuple)
    return Condition(
        field="",
        path=path,
        negated=draw(st.booleans()),
        values=draw(values),
        ranges=tuple(draw(st.lists(ranges, max_size=3))) if kind is int else (),
        networks=tuple(draw(st.lists(st.sampled_from(NETWORKS), max_size=2))),
        pattern=draw(st.none() | st.none() | st.sampled_from(PATTERNS)),
    )


def rules(names: str) -> st.SearchStrategy[list[Rule]]:
    condition_lists = st.lists(st.lists(conditions(), max_size=3).map(tuple), max_size=3)
    return condition_lists.map(
        lambda lists: [Rule(name=n, conditions=c) for n, c in zip(names, lists, strict=False)]
    )


NUMBER, TEXT = st.sampled_from(NUMBERS), st.sampled_from(TEXTS)


def part(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[JSON]:
    return st.fixed_dictionaries({}, optional=fields)


ENDS = part(A=TEXT, B=TEXT, Protocol=TEXT)
PORTS = part(A=NUMBER, B=NUMBER, Protocol=TEXT)
METRIC = part(ABBytes=NUMBER, RTT=NUMBER)
OPTIONAL = {
    "Application": TEXT,
    "NodeTID": TEXT,
    "FinishType": NUMBER,
    "ICMP": part(Type=TEXT),
    "Link": part(ID=NUMBER),
    "TCPMetric": part(ABPackets=NUMBER),
}
WHOLE = st.fixed_dictionaries(
    {"UUID": st.just("1"), "Network": ENDS, "Transport": PORTS, "Metric": METRIC},
    optional=OPTIONAL,
)
FLOWS = WHOLE | part(
    UUID=st.sampled_from(["", "1"]), Network=ENDS, Transport=PORTS, Metric=METRIC, **OPTIONAL
)


@settings(max_examples=300, deadline=None)
@given(
    st.frozensets(st.sampled_from(TAGS), max_size=2),
    rules("abc"),
    rules("def"),
    st.sampled_from([TRANSPORT, WITH_ICMP, WITH_OTHER, ()]),
    st.lists(FLOWS, max_size=20),
)
def test_filter_matches_the_reference_implementation(
    excluded: frozenset[str],
    drop: list[Rule],
    keep: list[Rule],
    requirements: tuple[Requirement, ...],
    flows: list[JSON],
) -> None:
    config = make_filter(excluded=excluded, drop=drop, keep=keep)
    harness = FilterHarness(config, requirements=requirements)
    decoded = harness.decode(*flows)
    verdicts = [verdict(config, requirements, raw) for raw in flows]
    expected = [item for item, reason in zip(decoded, verdicts, strict=True) if reason is None]
    again = harness.flow_filter.refilter(decoded)
    admitted = harness.flow_filter(decoded)
    assert [id(item) for item in admitted] == [id(item) for item in expected]
    assert [id(item) for item in again] == [id(item) for item in expected]
    assert harness.counts == Counter(reason for reason in verdicts if reason is not None)
