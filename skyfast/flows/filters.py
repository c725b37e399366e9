"""Decides which flows reach the table: classification by networks, and filter rules.

All rules are compiled to one function, because calling closures would take twice as long. The
source of this function contains names of constants, and names of fields in
`skyfast.flows.fields.FIELDS`. The values from the configuration are in the constants, so no text
from the configuration is executed.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

from skyfast.flows import addresses
from skyfast.flows.fields import FIELDS
from skyfast.flows.plan import FieldPath, Requirement
from skyfast.flows.rewrites import OTHER, BoundedCache
from skyfast.flows.selection import KEEP, Condition, Filter, Network, Rule

Flow = Any
"""A flow, decoded as one of the plan's `FlowTypes`. Its fields are known only at run time."""

EXCLUDED = "excluded"
"""The reason under which flows with excluded tags are counted."""

_OUTSIDE, _INSIDE, _NO_ADDRESS = range(3)

# The tag of a flow is ``_TAGS[i][j]``: i is the location of the initiator's address (one of the
# three constants above), and j is the location of the target's address.
_TAGS = (
    (OTHER, "ingress", OTHER),
    ("egress", "internal", OTHER),
    (OTHER, OTHER, OTHER),
)


class Classifier:
    """A `skyfast.flows.plan.LabelMapper` that maps a flow to its tag.

    The tag depends on the cluster's networks:

    * ``internal``: both addresses are in the networks
    * ``egress``: only the initiator's address is in the networks
    * ``ingress``: only the target's address is in the networks
    * ``other``: neither address is in the networks, an address is invalid, or the flow has no
      ``Network``
    """

    READS: ClassVar[tuple[FieldPath, ...]] = (("Network", "A"), ("Network", "B"))

    __slots__ = ("_locations",)

    def __init__(self, locations: Mapping[str, int]) -> None:
        self._locations = locations

    def __getitem__(self, flow: Flow) -> str:
        network = flow.Network
        if network is None:
            return OTHER
        return _TAGS[self._locations[network.A]][self._locations[network.B]]


def classifier(masks: Sequence[Network]) -> Classifier:
    cluster = addresses.Networks(masks)

    def location(text: str) -> int:
        address = addresses.read(text)
        if address is None:
            return _NO_ADDRESS
        return _INSIDE if address in cluster else _OUTSIDE

    return Classifier(BoundedCache(location))


def reads(config: Filter) -> tuple[FieldPath, ...]:
    fields = [condition.path for condition in _conditions(config)]
    paths = [path for path in fields if path is not None]
    if config.excluded_tags or None in fields:
        paths += Classifier.READS
    return tuple(dict.fromkeys(paths))


class FlowFilter:
    """Selects which flows of a message reach the table: see `make_flow_filter`."""

    def __init__(
        self,
        pick: Callable[[list[Flow], list[int]], list[Flow]] | None,
        counters: Sequence[tuple[MutableMapping[str, int], str]],
    ) -> None:
        self._pick = pick
        self._counters = counters

    def __call__(self, flows: list[Flow]) -> list[Flow]:
        """Return the flows that pass, in order; count the dropped flows."""
        if self._pick is None:
            return flows
        dropped = [0] * len(self._counters)
        admitted = self._pick(flows, dropped)
        if len(admitted) < len(flows):
            for (counts, name), number in zip(self._counters, dropped, strict=True):
                counts[name] += number
        return admitted

    def refilter(self, flows: list[Flow]) -> list[Flow]:
        """Filter flows that have been decoded again.

        Dropped flows are not counted, because they were counted after the first decoding.
        """
        return flows if self._pick is None else self._pick(flows, [0] * len(self._counters))


def make_flow_filter(
    config: Filter,
    classifier: Classifier,
    *,
    requirements: Iterable[Requirement],
    skipped: MutableMapping[str, int],
    filtered: MutableMapping[str, int],
) -> FlowFilter:
    """Return a filter that applies ``excluded_tags``, ``drop`` and ``keep``, in this order.

    A dropped flow is counted once, under the first reason that applies:

    * Its tag is excluded: counted as `EXCLUDED` in ``skipped``.
    * A drop rule matches: counted under the name of the first matching rule in ``filtered``.
    * There are keep rules, but none matches: counted as `KEEP` in ``filtered``.

    If a condition's field belongs to a part that the flow lacks, such as ``Transport``, a negated
    condition matches, and any other condition does not.

    Flows that have no UUID or fail one of ``requirements`` always pass this filter, so that no rule
    counts them. The table skips these flows and counts them under its own reasons.
    """
    if not (config.excluded_tags or config.drop or config.keep):
        return FlowFilter(None, ())
    source = _FunctionSource()
    counters: list[tuple[MutableMapping[str, int], str]] = []
    if config.excluded_tags:
        source.drop(f"{source.tag()} in {source.constant(config.excluded_tags)}")
        counters.append((skipped, EXCLUDED))
    for rule in config.drop:
        source.drop(source.rule(rule))
        counters.append((filtered, rule.name))
    if config.keep:
        kept = " or ".join(map(source.rule, config.keep))
        source.drop(f"not ({kept})")
        counters.append((filtered, KEEP))
    for counts, name in counters:
        counts.setdefault(name, 0)
    return FlowFilter(source.function(classifier, requirements), counters)


class _FunctionSource:
    def __init__(self) -> None:
        self._constants: dict[str, Any] = {"bisect": bisect}
        self._locals: dict[str, str] = {}
        self._drops: list[str] = []
        self._caches: dict[object, str] = {}

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
        """Compile a function that returns the flows that no condition drops.

        The function counts each dropped flow in its argument ``dropped``, at the index of the first
        condition that drops the flow.
        """
        # The expressions in `complete` are all true for a flow that the table accepts. To save
        # time, the function evaluates them only for flows that match a condition.
        complete = ["flow.UUID"]
        for requirement in requirements:
            alternatives = [f"flow.{part} is not None" for (part,) in requirement.paths]
            alternatives += [f"flow.{part} is None" for part in requirement.unless_missing]
            complete.append(f"({' or '.join(alternatives)})")
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
        exec("\n".join(lines), names)  # noqa: S102  # no part of the source is user input
        pick: Callable[[list[Flow], list[int]], list[Flow]] = names["pick"]
        return pick

    def _local(self, name: str, expression: str) -> str:
        self._locals[name] = expression
        return name

    def _condition(self, condition: Condition) -> str:
        if condition.path is None:
            text = self._test(condition, self.tag(), str)
        else:
            # Unknown fields raise KeyError, so only names of known fields get into the source.
            kind = FIELDS[condition.path]
            if len(condition.path) == 1:
                text = self._test(condition, f"flow.{condition.path[0]}", kind)
            else:
                part, name = condition.path
                text = self._test(condition, f"{self._local(part, f'flow.{part}')}.{name}", kind)
                text = f"({part} is not None and {text})"
        return f"not {text}" if condition.negated else text

    def _test(self, condition: Condition, value: str, kind: type) -> str:
        """Return an expression that tests ``value`` in the same way as `matcher`.

        The expression needs no parentheses after ``not``.
        """
        if condition.pattern is not None or condition.networks:
            tested = (condition.values, condition.ranges, condition.networks, condition.pattern)
            if tested not in self._caches:
                self._caches[tested] = self.constant(BoundedCache(matcher(condition)))
            return f"{self._caches[tested]}[{value}]"
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
        # Each interval has two bounds: its first number, and the first number after the interval. A
        # value is in an interval if an odd number of bounds are less than or equal to the value.
        bounds = [bound for low, high in intervals for bound in (low, high + 1)]
        return f"(bisect({self.constant(bounds)}, {value}) & 1)"


def matcher(condition: Condition) -> Callable[[str | int], bool]:
    """Return a function that tests whether a value matches ``condition``, ignoring ``negated``."""
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
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _conditions(config: Filter) -> Iterable[Condition]:
    return (condition for rule in (*config.drop, *config.keep) for condition in rule.conditions)
