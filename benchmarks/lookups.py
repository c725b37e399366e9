"""Tables that look up names of addresses, as skyfast does with names from the topology."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterator

from benchmarks.core import Parts, in_batches, tidy, trim
from benchmarks.flows import FIRST_ROUND, Flows
from skyfast.flows.plan import Column, Lookup, Plan

LABELS = (
    *("name", "host", "namespace", "pod", "workload", "workload_kind", "container", "service"),
    "team",
)
"""The labels that show a name of an initiator or target. The value of ``team`` comes from a pod
label."""

PODS = 5_000
"""Number of pods. Each pod has four of the `ADDRESSES`."""

A, B, POINT = ("Network", "A"), ("Network", "B"), ("NodeTID",)
ADDRESS_FIELDS = {"initiator": (A, B), "target": (B, A)}
"""Maps each end of a flow to the path of its address, and to the path of the other address."""

MESSAGES = 25
"""Number of messages per turn and table."""


class PodNames(dict[str, tuple[str, ...] | None]):
    """Maps addresses to names, and ambiguous addresses to None."""

    resolved: dict[str, tuple[str, ...]]
    """Maps all addresses, including ambiguous addresses, to names."""

    def __missing__(self, key: str) -> tuple[str, ...]:
        return ("",) * len(LABELS)

    def resolve(self, key: str, other: str, point: str) -> tuple[str, ...]:
        return self.resolved[key]


def pod_names(addresses: list[str], *, ambiguous: bool) -> PodNames:
    """Return names of pods for ``addresses``. Equal names share one string object."""
    chance = random.Random(3)
    strings: dict[str, str] = {}
    pods = []
    for number in range(PODS):
        namespace, workload = f"namespace-{number % 40}", f"workload-{number % 700}"
        pod = (
            *(f"{namespace}/{workload}", f"worker-{number % 200}.example.net", namespace),
            *(f"{workload}-{chance.getrandbits(40):010x}-{chance.getrandbits(20):05x}", workload),
            *("Deployment", f"app-{number % 50}", workload, f"team-{number % 12}"),
        )
        pods.append(tuple(strings.setdefault(name, name) for name in pod))
    known = {address: pods[n % PODS] for n, address in enumerate(addresses)}
    names = PodNames(dict.fromkeys(known) if ambiguous else known)
    names.resolved = known
    return names


def with_names(plan: Plan, names: PodNames, ends: int) -> Plan:
    """Return a copy of the plan with labels that show names of initiators.

    If ``ends`` is 2, there are also labels that show names of targets.
    """
    view = plan.views[0]
    columns = [*view.columns]
    for end, (key, other) in list(ADDRESS_FIELDS.items())[:ends]:
        lookup = Lookup(names=names, key=key, context=(other, POINT))
        columns += [
            Column(name=f"{end}_{label}", path=key, lookup=lookup, index=index)
            for index, label in enumerate(LABELS)
        ]
    named = dataclasses.replace(view, columns=tuple(columns))
    return dataclasses.replace(plan, views=(named, *plan.views[1:]))


class Lookups:
    """Four tables that take turns to process the same flows.

    1. without lookups of names
    2. with lookups of names of initiators
    3. with lookups of names of initiators and targets
    4. like the third table, but with only ambiguous addresses

    Each turn begins with another table, so that the order favors no table.
    """

    def __init__(self, count: int) -> None:
        self._flows = Flows(count)
        addresses = [address.decode() for address in self._flows.addresses]
        self.names = pod_names(addresses, ambiguous=False)
        ambiguous = pod_names(addresses, ambiguous=True)
        self._parts = {
            "none": Parts(),
            "one end": Parts(change=lambda plan: with_names(plan, self.names, 1)),
            "both ends": Parts(change=lambda plan: with_names(plan, self.names, 2)),
            "ambiguous": Parts(change=lambda plan: with_names(plan, ambiguous, 2)),
        }
        self._turn = 0
        tidy()

    def take_new(self) -> dict[str, list[float]]:
        """Process first reports of all flows. Return, by table, the ns per flow of each turn."""
        ns: dict[str, list[float]] = defaultdict(list)
        messages = self._flows.messages(range(self._flows.count), FIRST_ROUND)
        for batch in in_batches(messages, MESSAGES):
            for name, parts in self._in_turn():
                flows, _, update_ns = parts.take_new(batch)
                ns[name].append(update_ns / flows)
        trim()
        return ns

    def _in_turn(self) -> Iterator[tuple[str, Parts]]:
        names = list(self._parts)
        self._turn = (self._turn + 1) % len(names)
        for name in names[self._turn :] + names[: self._turn]:
            yield name, self._parts[name]

    def relabel(self, pods: int, budget: int) -> list[float]:
        """Move ``pods`` pods to another host, and return the ms of each slice of relabeling."""
        moved = {pod: (pod[0], pod[1] + "x", *pod[2:]) for pod in {*self.names.resolved.values()}}
        changed = [address for n, address in enumerate(self.names) if n % PODS < pods]
        for address in changed:
            pod = self.names.resolved[address]
            self.names[address] = self.names.resolved[address] = moved[pod]
        return self._parts["both ends"].relabel(self.names, changed, budget)
