"""Finds out why labels that show names from the topology are empty in all flows."""

from dataclasses import dataclass
from typing import Final

from skyfast.flows.catalog import CONTAINER_POD_LABELS, POD_LABELS
from skyfast.flows.selection import ExportSelection
from skyfast.runtime.logs import printable
from skyfast.skydive.name_resolver import Resolution

MAX_LABELS: Final = 3
"""Maximum number of labels that a hint lists."""

MAX_KEYS: Final = 10
"""Maximum number of missing pod labels that a hint lists."""


@dataclass(frozen=True, slots=True)
class Hints:
    """The reasons why labels are empty, as printable texts of bounded length."""

    without_pods: str = ""
    """The names of the labels that are empty because the topology has no pods."""
    missing_labels: tuple[str, ...] = ()
    """The keys of pod labels that no pod has. If the topology has no pods, this tuple is empty."""


def find_hints(export: ExportSelection, resolution: Resolution) -> Hints:
    """Return the hints for the labels of ``export``. The topology must have been read completely.

    Labels that can have values even if there are no pods are left out. For example, the name of an
    address can be the name of a host.
    """
    if resolution.has_pods:
        return Hints(missing_labels=tuple(map(printable, resolution.missing_labels[:MAX_KEYS])))
    known = CONTAINER_POD_LABELS if resolution.has_pod_names else frozenset[str]()
    labels = {
        label.name: None
        for view in export.views
        for label in view.labels
        if label.k8s_label or (label.is_known and label.name in POD_LABELS - known)
    }
    names = [printable(name) for name in labels]
    more = f" and {len(names) - MAX_LABELS} more" if len(names) > MAX_LABELS else ""
    return Hints(without_pods=", ".join(names[:MAX_LABELS]) + more)
