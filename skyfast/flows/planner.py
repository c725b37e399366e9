"""Creates a plan from the labels, metrics and views that a configuration selects."""

from collections.abc import Mapping
from typing import Final, Literal, Protocol

from skyfast.flows.catalog import (
    ADDRESS_FIELDS,
    ADDRESS_NAMES,
    DIRECTION,
    ENDPOINTS,
    HISTOGRAMS_BY_NAME,
    INITIATOR_IP,
    INITIATOR_PORT,
    LABELS_BY_NAME,
    METRICS_BY_NAME,
    NODE_TID,
    PROTOCOL,
    STANDARD_PREFIX,
    TARGET_IP,
    TARGET_PORT,
)
from skyfast.flows.filters import Classifier, classifier
from skyfast.flows.plan import (
    Column,
    Conversation,
    Counter,
    Direction,
    Family,
    FieldPath,
    FlowCount,
    Gauge,
    Histogram,
    LabelMapper,
    Lookup,
    Names,
    NewFlows,
    Plan,
    Requirement,
    ShardSelector,
    Value,
    View,
)
from skyfast.flows.rewrites import OTHER, FlowProtocol, group_ports, mask
from skyfast.flows.selection import (
    UNSHARDED,
    Amount,
    Bounds,
    ExportSelection,
    LabelSpec,
    Mask,
    MetricSpec,
    Shard,
    ViewSpec,
)
from skyfast.text_format import MetricType
from skyfast.wording import noun


class NameSource(Protocol):
    """Names from the topology, and own names (given by users). Unknown names are empty."""

    @property
    def combined(self) -> Names:
        """Maps an address to a tuple of its names.

        The tuple contains, in this order:

        * the names in `ADDRESS_NAMES`
        * the values of the pod labels in `ExportSelection.k8s_labels`
        * the name of the address's network
        * the values of the keys in `ExportSelection.names_keys`

        If no label shows own names, the tuple may end before the name of the network. The names of
        an ambiguous address depend on the flow's other address and capture point.
        """

    @property
    def nodes(self) -> Names:
        """Maps the ``NodeTID`` of a capture point to the names in `NODE_NAMES`."""


def make_plan(export: ExportSelection, *, names: NameSource, shard: Shard = UNSHARDED) -> Plan:
    columns = _Columns(export, names)
    return Plan(
        views=tuple(_view(view, columns, export) for view in export.views),
        requirements=(
            Requirement(paths=(("Network",),), reason="no_network"),
            *_transport(export),
            Requirement(paths=(("Metric",),), reason="no_metric"),
        ),
        conversation=_CONVERSATION if export.deduplicate == "first" else None,
        overflow=OTHER if export.overflow == "other" else None,
        shard=(
            ShardSelector(conversation=_CONVERSATION, index=shard.index, count=shard.count)
            if shard.count > 1
            else None
        ),
    )


def _transport(export: ExportSelection) -> tuple[Requirement, ...]:
    if export.include_icmp and export.include_other:
        return ()
    transport: tuple[FieldPath, ...] = (("Transport",),)
    return (
        Requirement(
            paths=(*transport, ("ICMP",)) if export.include_icmp else transport,
            unless_missing=("ICMP",) if export.include_other else (),
            reason="no_transport",
        ),
    )


_CONVERSATION: Final = Conversation(
    protocol=PROTOCOL,
    ends=((INITIATOR_IP, INITIATOR_PORT), (TARGET_IP, TARGET_PORT)),
    point=NODE_TID,
)


def shown_field(label: LabelSpec) -> FieldPath:
    """Return the field that a label shows (ignoring rewrites), or () if it shows no field."""
    if label.path is not None:
        return label.path
    known = LABELS_BY_NAME[label.name] if label.is_known else None
    return known.path if known and not known.lookup else ()


_CONTEXTS: Final[Mapping[FieldPath, tuple[()] | tuple[FieldPath, FieldPath]]] = {
    INITIATOR_IP: (TARGET_IP, NODE_TID),
    TARGET_IP: (INITIATOR_IP, NODE_TID),
    NODE_TID: (),
}
"""For each field by which names are looked up: two further fields of the flow.

If an address is ambiguous, these two fields select its names. A ``NodeTID`` is never ambiguous, so
its tuple is empty."""


def key_fields(label: LabelSpec) -> tuple[FieldPath, ...]:
    """Return the fields that are needed to look up a label's value; () if it is not looked up."""
    key = _looked_up_field(label)
    return (key, *_CONTEXTS[key]) if key else ()


def shows_topology(label: LabelSpec) -> bool:
    return bool(key_fields(label)) and not shows_only_own(label)


def shows_only_own(label: LabelSpec) -> bool:
    return bool(label.names_key) or (label.is_known and LABELS_BY_NAME[label.name].is_own)


def _looked_up_field(label: LabelSpec) -> FieldPath:
    if label.has_key:
        return ADDRESS_FIELDS[label.name.partition("_")[0]]
    known = LABELS_BY_NAME[label.name] if label.is_known else None
    return known.path if known and known.lookup in ("address", "node") else ()


class _Columns:
    def __init__(self, export: ExportSelection, names: NameSource) -> None:
        self._export = export
        self._made: dict[LabelSpec, Column] = {}
        self._lookups = {
            key: Lookup(
                names=names.nodes if key == NODE_TID else names.combined,
                key=key,
                context=context,
            )
            for key, context in _CONTEXTS.items()
        }

    def __getitem__(self, label: LabelSpec) -> Column:
        if label not in self._made:
            self._made[label] = self._make(label)
        return self._made[label]

    def _make(self, label: LabelSpec) -> Column:
        if label.path is not None:
            return Column(name=label.name, path=label.path)
        if key := _looked_up_field(label):
            index = self._index(label)
            return Column(name=label.name, path=key, lookup=self._lookups[key], index=index)
        known = LABELS_BY_NAME[label.name]
        if known.lookup == "classification":
            return Column(
                name=known.name,
                path=(),
                rewrite=classifier(self._export.cluster_net_masks),
                reads=Classifier.READS,
            )
        export = self._export
        if known.path == PROTOCOL and (export.include_icmp or export.include_other):
            rewrite = FlowProtocol(other=export.include_other)
            return Column(name=known.name, path=(), rewrite=rewrite, reads=rewrite.reads)
        return Column(name=known.name, path=known.path, rewrite=self._rewrite(known.name))

    def _index(self, label: LabelSpec) -> int:
        export = self._export
        own = len(ADDRESS_NAMES) + len(export.k8s_labels)
        if label.k8s_label:
            return len(ADDRESS_NAMES) + export.k8s_labels.index(label.k8s_label)
        if label.names_key:
            return own + 1 + export.names_keys.index(label.names_key)
        known = LABELS_BY_NAME[label.name]
        return own + known.index if known.is_own else known.index

    def _rewrite(self, name: str) -> LabelMapper | None:
        wanted = self._export.rewrite.get(name)
        if wanted is None:
            return None
        return mask(wanted) if isinstance(wanted, Mask) else group_ports(wanted)


def _view(view: ViewSpec, columns: _Columns, export: ExportSelection) -> View:
    chosen = tuple(columns[label] for label in view.labels if label.name != DIRECTION)
    names = [label.name for label in view.labels]
    split = view.direction == "split"
    shown = families(view, naming=export.naming)
    counted = {value for family in shown for value in family.values}
    amounts = {
        name: counters
        for name, counters in ((name, amount_counters(name, view.direction)) for name in AMOUNTS)
        if name in view.amounts or counted >= {*counters}
    }
    return View(
        columns=chosen,
        direction=Direction(position=names.index(DIRECTION)) if split else None,
        families=shown,
        bytes=amounts.get("bytes", ()),
        packets=amounts.get("packets", ()),
        # Flows without ports, such as ICMP flows between two hosts, can share a row.
        identifies_connection=not (export.include_icmp or export.include_other)
        and {column.path for column in chosen if column.is_field} >= ENDPOINTS,
    )


def families(view: ViewSpec, *, naming: str) -> tuple[Family, ...]:
    """Return the families of a view. ``naming`` only affects the first view (the connections)."""
    return tuple(_family(view, metric, naming=naming) for metric in view.metrics)


def _family(view: ViewSpec, metric: MetricSpec, *, naming: str) -> Family:
    if metric.is_histogram:
        return _histogram(view, metric)
    return _custom(view, metric) if metric.paths else _known(view, metric.name, naming=naming)


AMOUNTS: Final[tuple[Amount, ...]] = ("bytes", "packets")


def amount_counters(name: Amount, direction: str) -> tuple[Counter, ...]:
    paths = METRICS_BY_NAME[name].paths
    return (_counter(paths),) if direction == "sum" else tuple(_counter((path,)) for path in paths)


def hidden_amounts(view: ViewSpec, bounds: Bounds) -> tuple[Amount, ...]:
    """Return the amounts that bounds need but no metric of the view shows.

    Bytes are needed even for ``min_packets`` alone, because ``skyfast_hidden_bytes`` exports the
    bytes of hidden connections.
    """
    shown = {value for family in families(view, naming="standard") for value in family.values}
    needed: list[Amount] = ["bytes"] if bounds.are_set else []
    if bounds.min_packets:
        needed.append("packets")
    return tuple(name for name in needed if not shown >= {*amount_counters(name, view.direction)})


def _known(view: ViewSpec, name: str, *, naming: str) -> Family:
    metric = METRICS_BY_NAME[name]
    compatible = not view.prefix and naming == "compatible"
    values = _values(metric.paths, metric.type, metric.keep, direction=view.direction)
    return Family(
        name=(
            metric.compatible
            if compatible
            else f"{view.prefix or STANDARD_PREFIX}_{metric.standard}"
        ),
        help=metric.help
        + ("" if view.prefix else " on this connection")
        + (" in this direction." if len(values) == 2 else "."),
        type=metric.type,
        values=values,
        decimals=metric.compatible_decimals if compatible else metric.standard_decimals,
    )


def _histogram(view: ViewSpec, metric: MetricSpec) -> Family:
    known = HISTOGRAMS_BY_NAME[metric.name]
    directions = [known.paths] if view.direction == "sum" else [(path,) for path in known.paths]
    return Family(
        name=f"{view.prefix or STANDARD_PREFIX}_{known.standard}",
        help=known.help + (" in this direction." if len(directions) == 2 else "."),
        type="histogram",
        values=tuple(
            Histogram(observes=known.observes, paths=paths, bounds=metric.buckets)
            for paths in directions
        ),
        decimals=known.standard_decimals,
    )


def _custom(view: ViewSpec, metric: MetricSpec) -> Family:
    fields = " and ".join(map(".".join, metric.paths))
    return Family(
        name=f"{view.prefix}_{metric.name}" if view.prefix else metric.name,
        help=metric.help or f"Skydive flow {noun(len(metric.paths), 'field')} {fields}.",
        type=metric.type,
        values=_values(metric.paths, metric.type, "latest", direction=view.direction),
        decimals=0,
    )


def _values(
    paths: tuple[FieldPath, ...],
    kind: MetricType,
    keep: Literal["latest", "least", "most"],
    *,
    direction: str,
) -> tuple[Value, ...]:
    if not paths:
        return (NewFlows() if kind == "counter" else FlowCount(),)
    if kind == "gauge":
        return tuple(Gauge(path=path, keep=keep) for path in paths)
    if direction == "sum":
        return (_counter(paths),)
    return tuple(_counter((path,)) for path in paths)


def _counter(paths: tuple[FieldPath, ...]) -> Counter:
    if all(path[0] == "Metric" for path in paths):
        # The counter is not optional, because flows without Metric are skipped.
        return Counter(
            paths=paths, last_update=tuple(("LastUpdateMetric", path[1]) for path in paths)
        )
    optional = any(len(path) > 1 and path[0] != "Metric" for path in paths)
    return Counter(paths=paths, optional=optional)
