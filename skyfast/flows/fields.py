"""The messages of analyzers, as msgspec structs.

The structs of a flow are made for a plan and hold only the fields that it uses: a field that no
struct names costs the decoder nothing but the scan. Names, types and optionality are those
of Skydive's protobuf messages with Go's JSON rules: whatever is empty may be missing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec

from skyfast.flows.plan import Path, Plan

# Bad UTF-8 and deep nesting have Python's own errors.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that it cannot decode."""


def _fields() -> dict[Path, type]:
    metric = ("ABPackets", "ABBytes", "BAPackets", "BABytes", "Start", "Last", "RTT")
    tcp_sides = (
        *("SynStart", "SynTTL", "FinStart", "RstStart"),
        *("SegmentOutOfOrder", "SegmentSkipped", "SegmentSkippedBytes"),
        *("Packets", "Bytes", "SawStart", "SawEnd"),
    )
    texts = (
        *("UUID", "LayersPath", "Application", "TrackingID", "L3TrackingID", "ParentUUID"),
        *("NodeTID", "CaptureID"),
    )
    integers = {
        "ICMP": ("Code", "ID"),
        "Metric": metric,
        "LastUpdateMetric": metric,
        "IPMetric": ("Fragments", "FragmentErrors"),
        "TCPMetric": tuple(side + name for side in ("AB", "BA") for name in tcp_sides),
        "Link": ("ID",),
        "Network": ("ID",),
        "Transport": ("A", "B", "ID"),
    }
    nested_texts = {
        "Link": ("Protocol", "A", "B"),
        "Network": ("Protocol", "A", "B"),
        "Transport": ("Protocol",),
        "ICMP": ("Type",),
    }
    return {
        **{(name,): str for name in texts},
        **{(name,): int for name in ("Start", "Last", "FinishType", "RawPacketsCaptured")},
        **{(part, name): str for part, names in nested_texts.items() for name in names},
        **{(part, name): int for part, names in integers.items() for name in names},
    }


FIELDS: Final[Mapping[Path, type]] = MappingProxyType(_fields())
"""Every field of a flow that is a text or an integer, and which; from Skydive's ``flow.proto``."""

PATHS: Final[Mapping[str, Path]] = {".".join(path): path for path in FIELDS}
"""The same fields by the name that a configuration gives them, such as ``Link.ID``."""

CLOSING: Final = 1
"""``FinishType`` of a flow's last report. Others stand in ordinary reports."""

# Read for every flow, whatever the plan: the table's own bookkeeping.
_BOOKKEEPING: tuple[Path, ...] = (("UUID",), ("Last",), ("FinishType",))

# They tell a flow's first report, whose first two are equal, when the flow began, and a closing
# report that repeats the one before.
_MARKS: tuple[Path, ...] = (
    ("Start",),
    ("LastUpdateMetric", "Start"),
    ("LastUpdateMetric", "Last"),
)


class Envelope(msgspec.Struct, gc=False):
    """A message whose content is not decoded yet. ``Obj`` is raw JSON, or empty when missing."""

    Namespace: str = ""
    Type: str = ""
    Obj: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True, slots=True)
class FlowTypes:
    """The decoders' types for one plan; values of each are accepted by the plan's table.

    ``Update`` has what reports of known flows need, and the labels. ``FirstReport`` has beside it
    what tells a flow's first report from others: all that flows need which are new in fact.
    ``FullReport`` has what is needed of a flow that is not known and not new: ``LastUpdateMetric``.

    ``omissible`` are the fields, and parts, of ``FullReport`` without which a flow is still worth
    something: gauges, counters that flows can lack, and what tells a first or a last report from
    others.
    """

    Update: type[msgspec.Struct]
    FirstReport: type[msgspec.Struct]
    FullReport: type[msgspec.Struct]
    omissible: frozenset[Path]


def flow_types(plan: Plan, *, also: Iterable[Path] = ()) -> FlowTypes:
    """Make the structs that hold what ``plan`` uses, and the fields ``also``."""
    also = tuple(also)
    paths = [*_BOOKKEEPING, *also]
    for column in plan.columns:
        paths += [path for path in (column.path, *column.reads) if path]
    for counter in plan.counters:
        paths += counter.paths
    paths += [gauge.path for gauge in plan.gauges]
    paths += [path for requirement in plan.requirements for path in requirement.reads]
    if plan.conversation is not None:
        paths += [*plan.conversation.paths, plan.conversation.point]
    if plan.share is not None:
        paths += plan.share.conversation.paths
    amounts = [path for counter in plan.counters for path in counter.amounts]
    full = [*paths, *_MARKS, *amounts]
    return FlowTypes(
        Update=_struct("Update", paths),
        FirstReport=_struct("FirstReport", [*paths, *_MARKS]),
        FullReport=_struct("FullReport", full),
        omissible=_omissible(plan, full, needed=also),
    )


def _omissible(plan: Plan, paths: Iterable[Path], *, needed: Iterable[Path]) -> frozenset[Path]:
    """Return what ``FullReport``, which holds ``paths``, can do without."""
    may_lack = {("FinishType",), *_MARKS, *(gauge.path for gauge in plan.gauges)}
    may_lack |= {path for counter in plan.counters for path in counter.amounts}
    may_lack |= {path for each in plan.counters if each.optional for path in each.paths}
    # What else is made of a field decides.
    must_have = {*needed, ("UUID",), ("Last",)}
    must_have |= {path for each in plan.counters if not each.optional for path in each.paths}
    must_have |= {path for column in plan.columns for path in (column.path, *column.reads)}
    must_have |= {path for requirement in plan.requirements for path in requirement.reads}
    for known in (plan.conversation, plan.share and plan.share.conversation):
        must_have |= {*known.paths} if known else set()
    if plan.conversation:
        must_have.add(plan.conversation.point)
    omissible = {path for path in paths if path in may_lack - must_have}
    parts = {path[:1] for path in omissible if len(path) > 1}
    needed_parts = {path[:1] for path in paths if path not in omissible}
    return frozenset(omissible | (parts - needed_parts))


def _struct(name: str, paths: Iterable[Path]) -> type[msgspec.Struct]:
    """Make the struct that holds ``paths``: fields of `FIELDS`, or whole parts of a flow.

    A part of which no field is asked for is decoded as an empty struct: there or not.
    """
    scalars: list[str] = []
    parts: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        if path in FIELDS and len(path) == 1:
            scalars.append(path[0])
        else:
            parts.setdefault(path[0], []).extend(path[1:])
    fields: list[tuple[str, Any, Any]] = [(each, *_type_and_default((each,))) for each in scalars]
    for part, names in parts.items():
        inner = [(each, *_type_and_default((part, each))) for each in names]
        fields.append((part, msgspec.defstruct(part, inner, gc=False) | None, None))
    return msgspec.defstruct(name, fields, gc=False)


def _type_and_default(path: Path) -> tuple[type, str | int]:
    kind = FIELDS[path]
    return kind, kind()
