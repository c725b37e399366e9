"""What do filters cost per flow?"""

import re
import time
from collections.abc import Callable
from ipaddress import ip_network
from operator import attrgetter
from typing import Any

from benchmarks.core import PLAN, decoder
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import Report
from skyfast.flows.fields import flow_types
from skyfast.flows.filters import classifier, make_flow_filter, matcher, reads
from skyfast.flows.plan import FieldPath
from skyfast.flows.rewrites import BoundedCache
from skyfast.flows.selection import Condition, Filter, Rule

MESSAGES = 100
REPEATS = 9

CLUSTER = (ip_network("10.0.0.0/9"),)


def _condition(path: FieldPath, **what: Any) -> Condition:
    return Condition(field=".".join(path), path=path, **what)


def _drop(*conditions: Condition) -> Rule:
    return Rule(name=f"rule-{len(conditions)}", conditions=conditions)


PORT = _drop(_condition(("Transport", "B"), values=frozenset({22})))
NETWORK = _drop(_condition(("Network", "B"), networks=(ip_network("10.9.0.0/16"),)))
FIVE = (
    PORT,
    NETWORK,
    _drop(_condition(("NodeTID",), pattern=re.compile("^(lo|docker)"))),
    _drop(
        _condition(("Network", "A"), networks=CLUSTER, negated=True),
        _condition(("Transport", "Protocol"), values=frozenset({"UDP", "SCTP"})),
    ),
    _drop(
        _condition(("Transport", "A"), ranges=((1, 1023), (8000, 8999))),
        _condition(("Application",), values=frozenset({"DNS"})),
    ),
)
"""Each rule drops few flows, so that each rule processes nearly all flows."""

FILTERS = {
    "no filter": Filter(excluded_tags=frozenset(), drop=(), keep=()),
    "excluded tag": Filter(excluded_tags=frozenset({"other"}), drop=(), keep=()),
    "one port": Filter(excluded_tags=frozenset(), drop=(PORT,), keep=()),
    "one network": Filter(excluded_tags=frozenset(), drop=(NETWORK,), keep=()),
    "five rules": Filter(excluded_tags=frozenset(), drop=FIVE, keep=()),
}

Pick = Callable[[list[Any]], list[Any]]


def run(report: Report) -> None:
    count = MESSAGES * FLOWS_PER_MESSAGE
    messages = list(Flows(count).messages(range(count), FIRST_ROUND))
    also = {path for config in FILTERS.values() for path in reads(config)}
    decode = decoder(flow_types(PLAN, also=sorted(also)).Update).decode
    picks = {name: _compiled(config) for name, config in FILTERS.items()}
    five = picks["five rules"]
    picks["five rules as closures"] = _closures(FIVE)
    assert all(
        five(decode(message).Obj) == picks["five rules as closures"](decode(message).Obj)
        for message in messages
    )
    decoding: list[float] = []
    ns: dict[str, list[float]] = {name: [] for name in picks}
    unknown: list[float] = []
    for _ in range(REPEATS):
        for name, pick in picks.items():
            decode_ns, pick_ns = _measure(messages, decode, pick)
            ns[name].append(pick_ns)
            if name == "no filter":
                decoding.append(decode_ns)
        unknown.append(_measure(messages, decode, _compiled(FILTERS["one network"]))[1])
    for name, samples in ns.items():
        report.add(name, samples, "ns per flow", to="decoding", over=decoding)
    report.add(
        "one network, new addresses",
        unknown,
        "ns per flow",
        to="decoding",
        over=decoding,
    )


def _measure(
    messages: list[bytes], decode: Callable[[bytes], Any], pick: Pick
) -> tuple[float, float]:
    """Return the ns per flow of decoding and of filtering."""
    clock_ns = time.thread_time_ns
    decode_ns = pick_ns = 0
    for message in messages:
        began_ns = clock_ns()
        flows = decode(message).Obj
        decoded_ns = clock_ns()
        admitted = pick(flows)
        pick_ns += clock_ns() - decoded_ns
        decode_ns += decoded_ns - began_ns
        # Free the flows here, outside the measured intervals.
        del flows, admitted
    count = len(messages) * FLOWS_PER_MESSAGE
    return decode_ns / count, pick_ns / count


def _compiled(config: Filter) -> Pick:
    return make_flow_filter(
        config, classifier(CLUSTER), requirements=PLAN.requirements, skipped={}, filtered={}
    )


def _closures(rules: tuple[Rule, ...]) -> Pick:
    """Return a filter that has one function per condition, and the caches of skyfast's filter."""

    def condition(condition: Condition) -> Callable[[Any], bool]:
        value = attrgetter(".".join(condition.path or ()))
        matches = matcher(condition)
        verdicts = BoundedCache[Any, bool](lambda value: matches(value) != condition.negated)
        return lambda flow: verdicts[value(flow)]

    def rule(rule: Rule) -> Callable[[Any], bool]:
        first, *others = map(condition, rule.conditions)
        if not others:
            return first
        return lambda flow: first(flow) and all(other(flow) for other in others)

    drops = [rule(item) for item in rules]

    def admits(flow: Any) -> bool:
        for drop in drops:  # noqa: SIM110  # any() over a generator takes longer
            if drop(flow):
                return False
        return True

    return lambda flows: [flow for flow in flows if admits(flow)]
