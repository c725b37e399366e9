"""Info series that describe the capture points of the exported flows.

Queries join info series to other series by ``node_tid``. Therefore the other series need no labels
with the names of interfaces.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Literal

from skyfast.flows.catalog import INTERFACE_INFO, NODE_NAMES, NODE_TID_LABEL
from skyfast.text_format import label_text

CHUNK_SERIES: Final = 1000
"""The number of series in a chunk of the page. A chunk has about 250 KB."""

_NAMES: Final = {
    "interface_name": "name",
    "host": "host",
    "node_netns": "netns",
    "node_container": "container",
    "node_namespace": "namespace",
    "node_pod": "pod",
    "node_workload": "workload",
}
"""Maps each label except ``node_tid`` to the item of `NODE_NAMES` that the label shows.

Prometheus adds labels of the scrape target, such as ``namespace`` and ``pod`` in Kubernetes, to
each series. If skyfast exports a label of the same name, Prometheus renames skyfast's label, for
example to ``exported_pod``. Therefore most of the labels here have the prefix ``node_``."""

LABELS: Final = (NODE_TID_LABEL, *_NAMES)

_INDEXES: Final = tuple(NODE_NAMES.index(name) for name in _NAMES.values())


class InterfaceInfo:
    """Renders one series for each capture point, whether or not the topology knows its names."""

    def __init__(
        self,
        names: Mapping[str, tuple[str, ...]],
        *,
        naming: Literal["compatible", "standard"] = "compatible",
    ) -> None:
        """``names`` maps each ``NodeTID`` to its `NODE_NAMES`, which can be empty strings.

        The names may change while a page is rendered.
        """
        self._names = names
        self._family = INTERFACE_INFO[naming]

    @property
    def name(self) -> str:
        return self._family.name

    def render(self, node_tids: Sequence[str], *, openmetrics: int = 0) -> Iterator[bytes]:
        """Yield the family with a series for each of ``node_tids``, which must be distinct."""
        head = self._family.head(openmetrics=openmetrics) if node_tids else ""
        rest = iter(node_tids)
        while chunk := list(islice(rest, CHUNK_SERIES)):
            lines = self._family.lines((self._labels(node_tid), "1") for node_tid in chunk)
            yield f"{head}{lines}".encode(errors="replace")
            head = ""

    def _labels(self, node_tid: str) -> str:
        names = self._names[node_tid]
        values = (node_tid, *(names[index] for index in _INDEXES))
        return label_text(dict(zip(LABELS, values, strict=True)))
