"""The messages of analyzers, as msgspec structs.

Each plan has its own structs for flows. They contain only the fields that the plan uses, and the
decoder skips all other fields. The names and types of fields are those of Skydive's protobuf
messages. Empty fields may be missing in messages, because Go omits them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec

from skyfast.flows.plan import FieldPath, Plan

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The exceptions that decoders raise.

For invalid UTF-8 and deep nesting, msgspec raises built-in exceptions."""


def _fields() -> Iterator[tuple[FieldPath, type]]:
    """Yield the path and type of each field, in the order in which Skydive encodes the fields."""
    layer = {"Protocol": str, "A": str, "B": str, "ID": int}
    metric = ("ABPackets", "ABBytes", "BAPackets", "BABytes", "Start", "Last", "RTT")
    tcp_flags = ("SynStart", "SynTTL", "FinStart", "RstStart")
    tcp_segments = (
        *("SegmentOutOfOrder", "SegmentSkipped", "SegmentSkippedBytes"),
        *("Packets", "Bytes", "SawStart", "SawEnd"),
    )
    tcp_metric = [
        *(side + name for name in tcp_flags for side in ("AB", "BA")),
        *(side + name for side in ("AB", "BA") for name in tcp_segments),
    ]
    flow: dict[str, type | dict[str, type]] = {
        **dict.fromkeys(("UUID", "LayersPath", "Application"), str),
        "Link": layer,
        "Network": layer,
        "Transport": layer | {"A": int, "B": int},
        "ICMP": {"Type": str, "Code": int, "ID": int},
        "LastUpdateMetric": dict.fromkeys(metric, int),
        "Metric": dict.fromkeys(metric, int),
        "TCPMetric": dict.fromkeys(tcp_metric, int),
        "IPMetric": {"Fragments": int, "FragmentErrors": int},
        **dict.fromkeys(("Start", "Last"), int),
        **dict.fromkeys(("TrackingID", "L3TrackingID", "ParentUUID", "NodeTID", "CaptureID"), str),
        **dict.fromkeys(("RawPacketsCaptured", "FinishType"), int),
    }
    for name, kind in flow.items():
        if isinstance(kind, dict):
            yield from (((name, inner), kind[inner]) for inner in kind)
        else:
            yield (name,), kind


FIELDS: Final[Mapping[FieldPath, type]] = MappingProxyType(dict(_fields()))
"""The type of every string or integer field of a flow, from Skydive's ``flow.proto``."""

_POSITIONS: Final[Mapping[FieldPath, int]] = {
    **{path[:1]: position for position, path in reversed([*enumerate(FIELDS)])},
    **{path: position for position, path in enumerate(FIELDS)},
}
"""The position of each field in `FIELDS`. A part of a flow, such as ``Metric``, has the position of
its first field."""

PATHS: Final[Mapping[str, FieldPath]] = {".".join(path): path for path in FIELDS}
"""Maps the name that a field has in the configuration, such as ``Link.ID``, to the field's path."""

CLOSING: Final = 1
"""The value of ``FinishType`` in the last report of a flow."""

_ALWAYS_READ: tuple[FieldPath, ...] = (("UUID",), ("Last",), ("FinishType",))

# The fields that show the kind of a report. In the first report of a flow, both ``Start`` fields
# are equal. In a closing report that repeats the previous report, ``LastUpdateMetric.Last`` differs
# from ``Last``.
_REPORT_KIND_FIELDS: tuple[FieldPath, ...] = (
    ("Start",),
    ("LastUpdateMetric", "Start"),
    ("LastUpdateMetric", "Last"),
)


class Envelope(msgspec.Struct, gc=False):
    """A message whose content is not decoded."""

    Namespace: str = ""
    Type: str = ""
    Obj: msgspec.Raw = msgspec.Raw()
    """The content as raw JSON; empty if the message has no content."""


@dataclass(frozen=True, slots=True)
class FlowTypes:
    """The types that decode flow reports for one plan. The plan's table accepts all four types."""

    KnownReport: type[msgspec.Struct]
    """Has the fields that are needed to count a flow that is already in the table.

    With shards, this is the same type as ``Update``: the table needs further fields to find the
    shard of a flow."""
    Update: type[msgspec.Struct]
    """Has the fields of ``KnownReport``, and the fields that labels, conversations and shards
    need."""
    FirstReport: type[msgspec.Struct]
    """Has the fields that are needed to count a new flow: the fields of ``Update``, and the fields
    that identify the first report of a flow."""
    FullReport: type[msgspec.Struct]
    """Has the fields that are needed to count a flow whose first report was missed: the fields of
    ``FirstReport``, and the increases in ``LastUpdateMetric``."""
    omissible: frozenset[FieldPath]
    """The fields and parts of ``FullReport`` that are not necessary to count a flow:

    * the fields of gauges and histograms
    * the fields of optional counters
    * the increases of counters in ``LastUpdateMetric``
    * the fields that identify the first and the last report of a flow
    """


def flow_types(plan: Plan, *, also: Iterable[FieldPath] = ()) -> FlowTypes:
    also = tuple(also)
    known = [*_ALWAYS_READ, *also]
    known += [path for requirement in plan.requirements for path in requirement.reads]
    known += [path for counter in plan.counters for path in counter.paths]
    known += [gauge.path for gauge in (*plan.gauges, *plan.closing_gauges)]
    paths = [*known, *(path for column in plan.columns for path in column.fields if path)]
    if plan.conversation is not None:
        paths += [*plan.conversation.paths, plan.conversation.point]
    if plan.shard is not None:
        paths += plan.shard.conversation.paths
    last_updates = [path for counter in plan.counters for path in counter.last_update]
    full = [*paths, *_REPORT_KIND_FIELDS, *last_updates]
    update = _struct("Update", paths)
    return FlowTypes(
        KnownReport=_struct("KnownReport", known) if plan.shard is None else update,
        Update=update,
        FirstReport=_struct("FirstReport", [*paths, *_REPORT_KIND_FIELDS]),
        FullReport=_struct("FullReport", full),
        omissible=_omissible(plan, full, needed=also),
    )


def _omissible(
    plan: Plan, paths: Iterable[FieldPath], *, needed: Iterable[FieldPath]
) -> frozenset[FieldPath]:
    gauges = (*plan.gauges, *plan.closing_gauges)
    optional = {("FinishType",), *_REPORT_KIND_FIELDS, *(gauge.path for gauge in gauges)}
    optional |= {path for counter in plan.counters for path in counter.last_update}
    optional |= {path for counter in plan.counters if counter.optional for path in counter.paths}
    # A field can be optional for one purpose and required for another.
    required = {*needed, ("UUID",), ("Last",)}
    required |= {
        path for counter in plan.counters if not counter.optional for path in counter.paths
    }
    required |= {path for column in plan.columns for path in column.fields}
    required |= {path for requirement in plan.requirements for path in requirement.reads}
    for known in (plan.conversation, plan.shard and plan.shard.conversation):
        required |= {*known.paths} if known else set()
    if plan.conversation:
        required.add(plan.conversation.point)
    omissible = {path for path in paths if path in optional - required}
    parts = {path[:1] for path in omissible if len(path) > 1}
    needed_parts = {path[:1] for path in paths if path not in omissible}
    return frozenset(omissible | (parts - needed_parts))


def _struct(name: str, paths: Iterable[FieldPath]) -> type[msgspec.Struct]:
    """Return a struct type. Each of ``paths`` leads to a field in `FIELDS` or to a part of a flow.

    If ``paths`` contains a part but no field of this part, the part is decoded as an empty struct.
    The empty struct shows that the part exists.
    """
    # The decoder is fastest if the fields are in the same order as in messages.
    parts: dict[str, list[FieldPath]] = {}
    for path in sorted(set(paths), key=_POSITIONS.__getitem__):
        parts.setdefault(path[0], []).append(path)
    fields: list[tuple[str, Any, Any]] = []
    for part, inner_paths in parts.items():
        if (part,) in FIELDS:
            fields.append((part, *_type_and_default((part,))))
        else:
            inner = [(path[1], *_type_and_default(path)) for path in inner_paths if path[1:]]
            fields.append((part, msgspec.defstruct(part, inner, gc=False) | None, None))
    return msgspec.defstruct(name, fields, gc=False)


def _type_and_default(path: FieldPath) -> tuple[type, str | int]:
    kind = FIELDS[path]
    return kind, kind()
