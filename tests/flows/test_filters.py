"""Which flows a filter lets in, compared with the rules said again in plain Python."""

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
    Requirement(paths=(("Transport",),), or_without=("ICMP",), reason="no_transport"),
    TRANSPORT[2],
)


class Sink:
    """A flow filter with its counts, and the flows that it let in, by their UUIDs."""

    def __init__(
        self, config: Filter, *, requirements: tuple[Requirement, ...] = TRANSPORT, **filtered: int
    ) -> None:
        plan = Plan(views=(), requirements=requirements)
        # Only what `reads` says, so that a field which it does not is missed.
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
        return [msgspec.convert(each, self._type) for each in flows]

    def take(self, *flows: JSON) -> list[str]:
        return [each.UUID for each in self.flow_filter(self.decode(*flows))]

    @property
    def counts(self) -> dict[str, int]:
        """All drops there were."""
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


def a_filter(*, excluded: set[str] = frozenset(), drop: Any = (), keep: Any = ()) -> Filter:
    return Filter(excluded_tags=frozenset(excluded), drop=tuple(drop), keep=tuple(keep))


def rule(name: str, *conditions: Condition) -> Rule:
    return Rule(name=name, conditions=conditions)


def where(path: FieldPath | None, *values: str | int, **more: Any) -> Condition:
    field = ".".join(path or ("tag",))
    return Condition(field=field, path=path, values=frozenset(values), **more)


A, B = ("Network", "A"), ("Network", "B")
PORT = ("Transport", "B")
APPLICATION = ("Application",)


def test_nothing_configured_gives_the_list_back() -> None:
    sink = Sink(a_filter())
    flows = sink.decode(flow(), flow(Network=None))
    assert sink.flow_filter(flows) is flows
    assert sink.flow_filter.again(flows) is flows
    assert reads(a_filter()) == ()
    assert sink.filtered == {}


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
def test_classification(initiator: str, target: str, expected: str) -> None:
    sink = Sink(a_filter(excluded={"other"}))
    (one,) = sink.decode(flow(Network={"A": initiator, "B": target}))
    tags = classifier(CLUSTER)
    assert (tags[one], tags[one]) == (expected, expected)


def test_a_flow_without_addresses_is_other() -> None:
    (one,) = Sink(a_filter(excluded={"other"})).decode(flow(Network=None))
    assert classifier(CLUSTER)[one] == "other"


def test_without_networks_there_is_no_cluster() -> None:
    (one,) = Sink(a_filter(excluded={"other"})).decode(flow())
    assert classifier([])[one] == "other"


def test_addresses_are_forgotten_rather_than_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "MAX_REMEMBERED", 5)
    sink = Sink(a_filter(drop=[rule("net", where(A, networks=CLUSTER[:1]))]))
    for _ in range(2):
        flows = [flow(str(n), Network={"A": f"{9 + n % 2}.0.0.{n}"}) for n in range(20)]
        assert sink.take(*flows) == [str(n) for n in range(0, 20, 2)]
    assert sink.counts == {"net": 20}


@pytest.mark.parametrize("excluded", ["internal", "ingress", "egress", "other"])
def test_flows_of_an_excluded_tag_are_dropped(excluded: str) -> None:
    ends = {
        "internal": ("10.0.0.1", "fd00::1"),
        "egress": ("10.0.0.1", "8.8.8.8"),
        "ingress": ("2001:db8::1", "10.1.2.3"),
        "other": ("8.8.8.8", "9.9.9.9"),
    }
    sink = Sink(a_filter(excluded={excluded}))
    flows = [flow(name, Network={"A": a, "B": b}) for name, (a, b) in ends.items()]
    assert sink.take(*flows) == [name for name in ends if name != excluded]
    assert sink.counts == {"excluded": 1}


CONDITIONS = {
    "a text": (where(APPLICATION, "TCP"), flow(), flow(Application="UDP")),
    "one of some": (where(PORT, 80, 443), flow(), flow(Transport={"B": 81})),
    "not one of some": (where(PORT, 80, 443, negated=True), flow(Transport={"B": 81}), flow()),
    "a missing port is 0": (where(PORT, 0), flow(Transport={}), flow()),
    "a missing text is empty": (where(APPLICATION, ""), flow(Application=None), flow()),
    "a range": (where(PORT, ranges=((440, 443),)), flow(), flow(Transport={"B": 444})),
    "the start of a range": (where(PORT, ranges=((443, 450),)), flow(), flow(Transport={"B": 442})),
    "ranges and a number": (
        where(PORT, 443, ranges=((1, 22), (20, 30), (8000, 8999))),
        flow(),
        flow(Transport={"B": 31}),
    ),
    "a network": (where(A, networks=CLUSTER), flow(), flow(Network={"A": "11.0.0.1"})),
    "not a network": (where(A, networks=CLUSTER, negated=True), flow(Network={"A": "x"}), flow()),
    "IPv4 in IPv6 form": (
        where(A, networks=CLUSTER),
        flow(Network={"A": "::ffff:10.1.1.1"}),
        flow(Network={"A": "::ffff:11.1.1.1"}),
    ),
    "an address or a network": (
        where(B, "8.8.8.8", networks=CLUSTER),
        flow(),
        flow(Network={"A": "10.0.0.1", "B": "8.8.4.4"}),
    ),
    "a pattern anywhere": (
        where(APPLICATION, pattern=re.compile("C")),
        flow(),
        flow(Application="UDP"),
    ),
    "a pattern for all": (
        where(APPLICATION, pattern=re.compile("^(DNS|UDP)$"), negated=True),
        flow(),
        flow(Application="DNS"),
    ),
    "a pattern of digits": (
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
    "a part that is lacking": (
        where(("Link", "ID"), 0, negated=True),
        flow(),
        flow(Link={"ID": 0}),
    ),
}


@pytest.mark.parametrize(("condition", "held", "other"), CONDITIONS.values(), ids=CONDITIONS)
def test_a_condition_drops_or_keeps(condition: Condition, held: JSON, other: JSON) -> None:
    flows = (held | {"UUID": "held"}, other | {"UUID": "other"})
    dropping = Sink(a_filter(drop=[rule("r", condition)]))
    assert (dropping.take(*flows), dropping.counts) == (["other"], {"r": 1})
    keeping = Sink(a_filter(keep=[rule("r", condition)]))
    assert (keeping.take(*flows), keeping.counts) == (["held"], {"keep": 1})


SMALL = st.integers(0, 20)


@given(
    st.lists(st.tuples(SMALL, SMALL).map(sorted).map(tuple), min_size=1, max_size=5),
    st.frozensets(SMALL, max_size=3),
)
def test_ranges_may_overlap_touch_and_lie_in_one_another(
    ranges: list[tuple[int, int]], numbers: frozenset[int]
) -> None:
    sink = Sink(a_filter(keep=[rule("k", where(PORT, *numbers, ranges=tuple(ranges)))]))
    flows = [flow(str(port), Transport={"B": port}) for port in range(-1, 22)]
    kept = {port for low, high in ranges for port in range(low, high + 1)} | numbers
    assert sink.take(*flows) == [str(port) for port in sorted(kept)]


def test_conditions_that_are_nearly_alike_are_told_apart() -> None:
    digits = re.compile("^9+$")
    drop = [
        rule("x", where(B, "x", networks=CLUSTER)),
        rule("y", where(B, "y", networks=CLUSTER)),
        rule("1", where(PORT, ranges=((1, 2),), pattern=digits)),
        rule("3", where(PORT, ranges=((3, 4),), pattern=digits)),
        rule("8", where(PORT, ranges=((3, 4),), pattern=re.compile("^8+$"))),
    ]
    sink = Sink(a_filter(drop=drop))
    ends = [("x", 0), ("y", 0), ("z", 0), ("", 1), ("", 3), ("", 5), ("", 99), ("", 88)]
    flows = [flow(f"{b}{port}", Network={"B": b}, Transport={"B": port}) for b, port in ends]
    assert sink.take(*flows) == ["z0", "5"]
    assert sink.counts == {"x": 1, "y": 1, "1": 2, "3": 1, "8": 1}


def test_all_conditions_of_a_rule_must_hold() -> None:
    both = rule("both", where(APPLICATION, "TCP"), where(PORT, 443))
    sink = Sink(a_filter(drop=[both]))
    flows = (flow("1"), flow("2", Application="UDP"), flow("3", Transport={"B": 80}))
    assert sink.take(*flows) == ["2", "3"]


def test_a_flow_is_counted_once_under_what_comes_first() -> None:
    rules = [rule("port", where(PORT, 443)), rule("tcp", where(APPLICATION, "TCP"))]
    keep = [rule("udp", where(APPLICATION, "UDP"))]
    sink = Sink(a_filter(excluded={"internal"}, drop=rules, keep=keep))
    inside = {"A": "10.0.0.1", "B": "10.0.0.2"}
    flows = (
        flow("1", Network=inside),
        flow("2"),
        flow("3", Transport={"B": 80}),
        flow("4", Transport={"B": 80}, Application="DNS"),
        flow("5", Transport={"B": 80}, Application="UDP"),
    )
    assert sink.take(*flows) == ["5"]
    assert sink.counts == {"excluded": 1, "port": 1, "tcp": 1, "keep": 1}


def test_one_keep_rule_is_enough() -> None:
    sink = Sink(a_filter(keep=[rule("a", where(PORT, 80)), rule("b", where(PORT, 443))]))
    assert sink.take(flow("1"), flow("2", Transport={"B": 22})) == ["1"]


def test_names_are_counted_from_zero_and_from_what_was() -> None:
    drop = [rule("new", where(PORT, 1)), rule("old", where(PORT, 443))]
    sink = Sink(a_filter(drop=drop, keep=[rule("k", where(PORT, 2))]), old=5, gone=3)
    assert sink.filtered == {"new": 0, "old": 5, "keep": 0, "gone": 3}
    sink.take(flow())
    assert sink.filtered == {"new": 0, "old": 6, "keep": 0, "gone": 3}


def test_the_same_verdicts_again_are_not_counted() -> None:
    sink = Sink(a_filter(excluded={"internal"}, drop=[rule("port", where(PORT, 443))]))
    flows = sink.decode(flow(), flow("2", Transport={"B": 80}))
    assert [each.UUID for each in sink.flow_filter.again(flows)] == ["2"]
    assert sink.counts == {}


@pytest.mark.parametrize(
    "lacking", [{"UUID": ""}, {"Network": None}, {"Transport": None}, {"Metric": None}]
)
@pytest.mark.parametrize(
    "config",
    [
        a_filter(excluded={"other", "egress"}),
        a_filter(drop=[rule("all")]),
        a_filter(keep=[rule("none", where(PORT, 1))]),
    ],
    ids=["excluded", "drop", "keep"],
)
def test_what_the_table_skips_is_left_to_the_table(config: Filter, lacking: JSON) -> None:
    sink = Sink(config)
    assert sink.take(flow() | lacking if "UUID" in lacking else flow(**lacking)) != []
    assert sink.counts == {}
    assert sink.take(flow()) == []


def test_icmp_is_filtered_where_it_is_exported() -> None:
    echo = flow(Transport=None, ICMP={"Type": "ECHO"})
    drop = a_filter(drop=[rule("echo", where(("ICMP", "Type"), "ECHO"))])
    assert Sink(drop, requirements=TRANSPORT).take(echo) == ["ab"]
    sink = Sink(drop, requirements=WITH_ICMP)
    assert sink.take(echo, flow("2", Transport=None), flow("3")) == ["2", "3"]
    assert sink.counts == {"echo": 1}


def test_what_has_no_transport_is_filtered_where_it_is_exported() -> None:
    gre = flow("1", Transport=None, LayersPath="Ethernet/IPv4/GRE")
    echo = flow("2", Transport=None, ICMP={"Type": "ECHO"}, LayersPath="Ethernet/IPv4/ICMPv4")
    of_gre = where(("LayersPath",), pattern=re.compile("/GRE$"))
    drop = a_filter(drop=[rule("gre", of_gre), rule("all")])
    assert Sink(drop, requirements=TRANSPORT).take(gre, echo) == ["1", "2"]
    sink = Sink(drop, requirements=WITH_OTHER)
    assert sink.take(gre, echo, flow("3")) == ["2"]
    assert sink.counts == {"gre": 1, "all": 1}


EVIL = ('"', "'", "\\", "\n", "') or exit() or ('", "{0}", "%s", "c1", "True", "é\u2028")


@pytest.mark.parametrize("text", EVIL)
def test_what_is_written_in_a_rule_is_only_compared(text: str) -> None:
    drop = [
        rule(text, where(APPLICATION, text)),
        rule(text * 2, where(A, text, networks=CLUSTER[1:])),
        rule(text * 3, where(B, pattern=re.compile(re.escape(text)))),
    ]
    sink = Sink(a_filter(drop=drop))
    flows = (
        flow("1"),
        flow("2", Application=text),
        flow("3", Network={"A": text, "B": "x"}),
        flow("4", Network={"B": f"<{text}>"}),
    )
    assert sink.take(*flows) == ["1"]
    assert sink.counts == {text: 1, text * 2: 1, text * 3: 1}


def test_a_field_that_no_flow_has_gets_nowhere() -> None:
    evil = where(("UUID == exit() or flow", "A"), "x")
    with pytest.raises(KeyError):
        Sink(a_filter(drop=[rule("evil", evil)]))


def test_many_rules_are_no_deep_nest() -> None:
    drop = [rule(f"d{n}", *(where(PORT, n, 443) for _ in range(10))) for n in range(444, 1444)]
    keep = [rule(f"k{n}", where(PORT, n)) for n in range(1000)]
    sink = Sink(a_filter(drop=drop, keep=keep))
    flows = [flow(str(port), Transport={"B": port}) for port in (22, 1443, 2000)]
    assert sink.take(*flows) == ["22"]
    assert sink.counts == {"d1443": 1, "keep": 1}


# The rules said again -------------------------------------------------------------------------

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


def value(path: FieldPath | None, of: JSON) -> str | int | None:
    """Return what stands in the flow, or None where the part is missing."""
    if path is None:
        return tag(of)
    *part, name = path
    holder = of.get(part[0]) if part else of
    return None if holder is None else holder.get(name, FIELDS[path]())


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


def tag(of: JSON) -> str:
    ends = of.get("Network") or {}
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


def fits(condition: Condition, of: JSON) -> bool:
    found = value(condition.path, of)
    if found is None:
        return False
    return (
        found in condition.values
        or (isinstance(found, int) and any(a <= found <= b for a, b in condition.ranges))
        or (isinstance(found, str) and inside(found, condition.networks))
        or (condition.pattern is not None and bool(condition.pattern.search(str(found))))
    )


def holds(rule: Rule, of: JSON) -> bool:
    return all(fits(each, of) != each.negated for each in rule.conditions)


def verdict(config: Filter, requirements: tuple[Requirement, ...], of: JSON) -> str | None:
    """Return what the flow is dropped as."""
    if not of.get("UUID"):
        return None
    for each in requirements:
        lacks = each.or_without and each.or_without[0] not in of
        if not lacks and not any(path[0] in of for path in each.paths):
            return None
    if tag(of) in config.excluded_tags:
        return "excluded"
    for each in config.drop:
        if holds(each, of):
            return each.name
    if config.keep and not any(holds(each, of) for each in config.keep):
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
    some = st.lists(st.lists(conditions(), max_size=3).map(tuple), max_size=3)
    return some.map(
        lambda all_: [Rule(name=n, conditions=c) for n, c in zip(names, all_, strict=False)]
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
def test_any_filter_does_what_its_rules_say(
    excluded: frozenset[str],
    drop: list[Rule],
    keep: list[Rule],
    requirements: tuple[Requirement, ...],
    flows: list[JSON],
) -> None:
    config = a_filter(excluded=excluded, drop=drop, keep=keep)
    sink = Sink(config, requirements=requirements)
    decoded = sink.decode(*flows)
    verdicts = [verdict(config, requirements, each) for each in flows]
    expected = [one for one, reason in zip(decoded, verdicts, strict=True) if reason is None]
    again = sink.flow_filter.again(decoded)
    admitted = sink.flow_filter(decoded)
    assert [id(one) for one in admitted] == [id(one) for one in expected]
    assert [id(one) for one in again] == [id(one) for one in expected]
    assert sink.counts == Counter(reason for reason in verdicts if reason is not None)
