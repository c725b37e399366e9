"""The groupings that the status page offers: by network, workload or port, for example."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from skyfast.flows.catalog import ADDRESS_FIELDS, LABELS_BY_NAME, NODE_TID_LABEL
from skyfast.web.ranked_views import RankedView

TITLES: Final[Mapping[str, str]] = {
    "ip": "address",
    "name": "name",
    "network": "network",
    "namespace": "namespace",
    "workload": "workload",
    "pod": "pod",
    "service": "service",
    "host": "host",
    "port": "port",
    "protocol": "protocol",
    "application": "application",
    NODE_TID_LABEL: "interface",
}
"""The titles of groupings, by label, in the order of the page.

The labels are given without prefix: ``ip`` stands for ``initiator_ip`` and ``target_ip``."""

SINGLE_LABELS: Final[Mapping[str, str]] = {"port": "target_port"}
"""Maps a key of `TITLES` to a label, for groupings by only one end (initiator or target).

Groups by the initiator's port would be too small, because most clients use a new port for each
connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """A choice of what the status page ranks: rows of a view, or groups of rows."""

    title: str
    group: tuple[str, ...] = ()
    """The labels to group by. If empty, the rows themselves are shown."""
    view: str = ""
    """The prefix of the view. If empty, the first view with all labels in ``group`` is used."""


def groupings(views: Mapping[str, RankedView]) -> Iterator[Grouping]:
    """Yield the connections, then the groupings that the labels allow, then the other views.

    There are groupings by the labels in `TITLES`, and by user-defined labels of initiators and
    targets. The grouping by x uses these labels:

    * If `SINGLE_LABELS` contains x: only the label in `SINGLE_LABELS`
    * Otherwise, if a view has both ``initiator_x`` and ``target_x``: both labels
    * Otherwise: the first of ``initiator_x``, ``target_x`` and x that a view has
    """
    yield Grouping(title="connection")
    for name, title in {**TITLES, **_defined(views)}.items():
        group = _group(name, views)
        if group and {*group} != {*views[""].labels}:
            yield Grouping(title=title, group=group)
    for prefix in views:
        if prefix:
            yield Grouping(title=f"view {prefix}", view=prefix)


def _defined(views: Mapping[str, RankedView]) -> dict[str, str]:
    """Return titles like `TITLES`, for initiator and target labels that the user defines."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(label for view in views.values() for label in view.labels):
        end, _, name = label.partition("_")
        if end in ADDRESS_FIELDS and name and label not in LABELS_BY_NAME:
            names[name] = name.replace("_", " ")
    return names


def _group(name: str, views: Mapping[str, RankedView]) -> tuple[str, ...]:
    """Return the labels of the grouping ``name``; empty if no view has these labels."""
    ends = tuple(f"{end}_{name}" for end in ADDRESS_FIELDS)
    candidates: list[tuple[str, ...]] = [ends, *((label,) for label in (*ends, name))]
    if name in SINGLE_LABELS:
        candidates = [(SINGLE_LABELS[name],)]
    for group in candidates:
        if any({*group} <= {*view.labels} for view in views.values()):
            return group
    return ()


def pairs(labels: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield each pair of labels (``initiator_x``, ``target_x``), then each single label."""
    for label in labels:
        target = label.replace("initiator_", "target_", 1)
        if target != label and target in labels:
            yield label, target
    for label in labels:
        yield (label,)
