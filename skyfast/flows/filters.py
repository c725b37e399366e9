"""Decides which flows reach the table: classification by networks, and filter rules.

The rules of a configuration become one function, whose source is written here, for each flow
passes through it: closures take twice as long. Its text has fields' names from
`skyfast.flows.fields.FIELDS` and names of constants; what a person has written is only ever a
constant that it refers to.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

from skyfast.flows import addresses
from skyfast.flows.fields import FIELDS
from skyfast.flows.plan import Path, Requirement
from skyfast.flows.rewrites import OTHER, Memory
from skyfast.flows.selection import KEEP, Condition, Filter, Network, Rule

Flow = Any
"""A struct of the plan's flow types: which fields it has is known at run time only."""

EXCLUDED = "excluded"
"""The reason under which flows of excluded tags are counted."""

_OUTSIDE, _INSIDE, _NO_ADDRESS = range(3)

# By the initiator's place, then by the target's.
_TAGS = (
    (OTHER, "ingress", OTHER),
    ("egress", "internal", OTHER),
    (OTHER, OTHER, OTHER),
)


class Classifier:
    """Tells a flow's classification: ``internal``, ``egress``, ``ingress`` or ``other``.

    A flow is ``internal`` when both its addresses lie in the cluster's networks, ``egress`` or
    ``ingress`` when only the initiator's or the target's does, and ``other`` when neither does,
    one is no address, or it has no Network. It is a `skyfast.flows.plan.Rewrite` of the flow
    itself.
    """

    READS: ClassVar[tuple[Path, ...]] = (("Network", "A"), ("Network", "B"))

    __slots__ = ("_places",)

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places

    def __getitem__(self, flow: Flow) -> str:
        network = flow.Network
        if network is None:
            return OTHER
        return _TAGS[self._places[network.A]][self._places[network.B]]


def classifier(masks: Sequence[Network]) -> Classifier:
    """Return the classifier of a cluster with these networks."""
    cluster = addresses.Networks(masks)

    def place(text: str) -> int:
        address = addresses.read(text)
        if address is None:
            return _NO_ADDRESS
        return _INSIDE if address in cluster else _OUTSIDE

    return Classifier(Memory(place))


def reads(config: Filter) -> tuple[Path, ...]:
    """Return the fields that the rules look at, beside those of the plan's requirements."""
    fields = [condition.path for condition in _conditions(config)]
    paths = [path for path in fields if path is not None]
    if config.excluded_tags or None in fields:
        paths += Classifier.READS
    return tuple(dict.fromkeys(paths))


class Admission:
    """Picks the flows of a message that go on to the table; see `admission`."""

    def __init__(
        self,
        pick: Callable[[list[Flow], list[int]], list[Flow]] | None,
        counters: Sequence[tuple[MutableMapping[str, int], str]],
    ) -> None:
        self._pick = pick
        self._counters = counters

    def __call__(self, flows: list[Flow]) -> list[Flow]:
        """Return the flows that are let in, in their order; count the others.

        Where nothing is configured, it is the very list that was given.
        """
        if self._pick is None:
            return flows
        dropped = [0] * len(self._counters)
        admitted = self._pick(flows, dropped)
        if len(admitted) < len(flows):
            for (counts, name), number in zip(self._counters, dropped, strict=True):
                counts[name] += number
        return admitted

    def again(self, flows: list[Flow]) -> list[Flow]:
        """Return the same as a call, for flows that have been counted before."""
        return flows if self._pick is None else self._pick(flows, [0] * len(self._counters))


def admission(
    config: Filter,
    classifier: Classifier,
    *,
    requirements: Iterable[Requirement],
    skipped: MutableMapping[str, int],
    filtered: MutableMapping[str, int],
) -> Admission:
    """Return what applies ``excluded_tags``, ``drop`` and ``keep`` of a filter, in this order.

    A flow is counted once: where its tag is excluded, as `EXCLUDED` in ``skipped``; else under the
    first drop rule that holds, in ``filtered``; else, where there are keep rules and none holds, as
    `KEEP` in ``filtered``. All names are in ``filtered`` from the start.

    A condition on a field of a part that the flow lacks does not hold, its negation does. No flow
    lacks a tag: see `Classifier`.

    Flows that the table would skip, for they have no UUID or fail one of ``requirements``, are let
    in whatever the rules say: the table counts them under its own reasons, and a rule's count is
    that of flows which would have been exported without it.
    """
    if not (config.excluded_tags or config.drop or config.keep):
        return Admission(None, ())
    source = _Source()
    counters: list[tuple[MutableMapping[str, int], str]] = []
    if config.excluded_tags:
        source.drop(f"{source.tag()} in {source.constant(config.excluded_tags)}")
        counters.append((skipped, EXCLUDED))
    for rule in config.drop:
        source.drop(source.rule(rule))
        counters.append((filtered, rule.name))
    if config.keep:
        held = " or ".join(map(source.rule, config.keep))
        source.drop(f"not ({held})")
        counters.append((filtered, KEEP))
    for counts, name in counters:
        counts.setdefault(name, 0)
    return Admission(source.function(classifier, requirements), counters)


class _Source:
    """The text of the function that picks flows, and the constants that the text names."""

    def __init__(self) -> None:
        self._constants: dict[str, Any] = {"bisect": bisect}
        self._locals: dict[str, str] = {}
        self._drops: list[str] = []
        self._memories: dict[object, str] = {}

    def constant(self, value: object) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = value
        return name

    def tag(self) -> str:
        return self._local("tag", "classifier[flow]")

    def drop(self, condition: str) -> None:
        self._drops.append(condition)

    def rule(self, rule: Rule) -> str:
        return f"({' and '.join(map(self._condition, rule.conditions)) or True})"

    def function(
        self, classifier: Classifier, requirements: Iterable[Requirement]
    ) -> Callable[[list[Flow], list[int]], list[Flow]]:
        """Compile the text: one drop after another, each counted at its position."""
        # Only of flows that would be dropped is it asked whether the table would skip them.
        complete = ["flow.UUID"]
        for requirement in requirements:
            ways = [f"flow.{part} is not None" for (part,) in requirement.paths]
            ways += [f"flow.{part} is None" for part in requirement.or_without]
            complete.append(f"({' or '.join(ways)})")
        lines = [
            "def pick(flows, dropped):",
            "    admitted = []",
            "    for flow in flows:",
            *(f"        {name} = {expression}" for name, expression in self._locals.items()),
        ]
        for position, drop in enumerate(self._drops):
            lines += [
                f"        if {drop} and {' and '.join(complete)}:",
                f"            dropped[{position}] += 1",
                "            continue",
            ]
        lines += ["        admitted.append(flow)", "    return admitted"]
        names: dict[str, Any] = {**self._constants, "classifier": classifier}
        exec("\n".join(lines), names)  # noqa: S102  # none of the text is from outside
        pick: Callable[[list[Flow], list[int]], list[Flow]] = names["pick"]
        return pick

    def _local(self, name: str, expression: str) -> str:
        self._locals[name] = expression
        return name

    def _condition(self, condition: Condition) -> str:
        if condition.path is None:
            text = self._test(condition, self.tag(), str)
        else:
            # Looked up here, so that only names of known fields get into the text.
            kind = FIELDS[condition.path]
            if len(condition.path) == 1:
                text = self._test(condition, f"flow.{condition.path[0]}", kind)
            else:
                part, name = condition.path
                text = self._test(condition, f"{self._local(part, f'flow.{part}')}.{name}", kind)
                text = f"({part} is not None and {text})"
        return f"not {text}" if condition.negated else text

    def _test(self, condition: Condition, value: str, kind: type) -> str:
        """Return an expression that tells what `matcher`'s does; it binds closer than ``not``."""
        if condition.pattern is not None or condition.networks:
            alike = (condition.values, condition.ranges, condition.networks, condition.pattern)
            if alike not in self._memories:
                self._memories[alike] = self.constant(Memory(matcher(condition)))
            return f"{self._memories[alike]}[{value}]"
        if kind is int and condition.ranges:
            return self._within(condition, value)
        if len(condition.values) == 1:
            return f"({value} == {self.constant(*condition.values)})"
        return f"({value} in {self.constant(condition.values)})"

    def _within(self, condition: Condition, value: str) -> str:
        numbers = (number for number in condition.values if isinstance(number, int))
        intervals = _merged((*condition.ranges, *((number, number) for number in numbers)))
        if len(intervals) == 1:
            low, high = map(self.constant, intervals[0])
            return f"({low} <= {value} <= {high})"
        # A value lies in an interval where the number of bounds up to it is odd.
        bounds = [bound for low, high in intervals for bound in (low, high + 1)]
        return f"(bisect({self.constant(bounds)}, {value}) & 1)"


def matcher(condition: Condition) -> Callable[[str | int], bool]:
    """Return what tells whether any of a condition's alternatives matches a field's value.

    Whether the condition is negated is not looked at.
    """
    networks = addresses.Networks(condition.networks)

    def matches(value: str | int) -> bool:
        if value in condition.values:
            return True
        if isinstance(value, int):
            if any(low <= value <= high for low, high in condition.ranges):
                return True
        elif condition.networks:
            address = addresses.read(value)
            if address is not None and address in networks:
                return True
        return condition.pattern is not None and condition.pattern.search(str(value)) is not None

    return matches


def _merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same numbers as intervals that are in order and do not overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _conditions(config: Filter) -> Iterable[Condition]:
    return (condition for rule in (*config.drop, *config.keep) for condition in rule.conditions)
