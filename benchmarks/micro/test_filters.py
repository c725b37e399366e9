"""What do filters cost per flow?

Not measured: slow regular expressions; more addresses than fit into the cache.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from operator import attrgetter
from typing import Any

import pytest

from benchmarks.core import PLAN, decoder
from benchmarks.micro.conftest import PerFlow
from skyfast.flows.fields import flow_types
from skyfast.flows.filters import classifier, make_flow_filter, matcher, reads
from skyfast.flows.plan import FieldPath
from skyfast.flows.rewrites import BoundedCache
from skyfast.flows.selection import Condition, Filter, Rule

ROUNDS = 1_000

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
"""Five rules that each drop few flows, so that every rule tests nearly all flows."""

FILTERS = {
    "no filter": Filter(excluded_tags=frozenset(), drop=(), keep=()),
    "excluded tag": Filter(excluded_tags=frozenset({"other"}), drop=(), keep=()),
    "one port": Filter(excluded_tags=frozenset(), drop=(PORT,), keep=()),
    "one network": Filter(excluded_tags=frozenset(), drop=(NETWORK,), keep=()),
    "five rules": Filter(excluded_tags=frozenset(), drop=FIVE, keep=()),
}

Pick = Callable[[list[Any]], list[Any]]


FIVE_RULES = "five rules"


@pytest.fixture(scope="module")
def decode() -> Callable[[bytes], Any]:
    """Return a decoder for the fields in the filters."""
    also = {path for config in FILTERS.values() for path in reads(config)}
    return decoder(flow_types(PLAN, also=sorted(also)).Update).decode


Decode = Callable[[bytes], Any]


def test_decoding(per_flow: PerFlow, decode: Decode, messages: list[bytes]) -> None:
    """The times of the filters are compared with this time."""

    def decode_and_free(message: bytes) -> None:
        decode(message)

    arguments = ((message,) for message in itertools.cycle(messages))
    per_flow(decode_and_free, arguments, rounds=ROUNDS)


@pytest.mark.parametrize("name", FILTERS)
def test_filter(per_flow: PerFlow, decode: Decode, messages: list[bytes], name: str) -> None:
    pick = _compiled(FILTERS[name])
    arguments = ((decode(message).Obj,) for message in itertools.cycle(messages))
    per_flow(pick, arguments, rounds=ROUNDS, to="decoding")


def test_five_rules_as_closures(per_flow: PerFlow, decode: Decode, messages: list[bytes]) -> None:
    compiled, closures = _compiled(FILTERS[FIVE_RULES]), _closures(FIVE)
    for message in messages:
        flows = decode(message).Obj
        assert compiled(flows) == closures(flows)
    arguments = ((decode(message).Obj,) for message in itertools.cycle(messages))
    per_flow(closures, arguments, rounds=ROUNDS, to="filter: five rules")


def test_one_network_with_new_addresses(
    per_flow: PerFlow, decode: Decode, messages: list[bytes]
) -> None:
    def new() -> Iterator[tuple[Pick, list[Any]]]:
        while True:
            pick = _compiled(FILTERS["one network"])
            for message in messages:
                yield pick, decode(message).Obj

    per_flow(lambda pick, flows: pick(flows), new(), rounds=ROUNDS, to="filter: one network")


def _compiled(config: Filter) -> Pick:
    return make_flow_filter(
        config, classifier(CLUSTER), requirements=PLAN.requirements, skipped={}, filtered={}
    )


def _closures(rules: tuple[Rule, ...]) -> Pick:
    """Return a filter with a function per condition, and with skyfast's caches."""

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
        for drop in drops:  # noqa: SIM110 # any() over a generator is slower
            if drop(flow):
                return False
        return True

    return lambda flows: [flow for flow in flows if admits(flow)]
