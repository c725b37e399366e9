"""What an analyzer sends, as msgspec structs.

The structs of a flow are made for a plan and hold only the fields that it uses: a field that no
struct names costs the decoder nothing but the scan. Names, types and optionality are those
of Skydive's protobuf messages with Go's JSON rules: whatever is empty may be missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from skyfast.plan import Path, Plan

_TEXT_FIELDS: tuple[Path, ...] = (
    ("UUID",),
    ("LayersPath",),
    ("Application",),
    ("Link", "Protocol"),
    ("Link", "A"),
    ("Link", "B"),
    ("Network", "Protocol"),
    ("Network", "A"),
    ("Network", "B"),
    ("Transport", "Protocol"),
    ("ICMP", "Type"),
    ("TrackingID",),
    ("L3TrackingID",),
    ("ParentUUID",),
    ("NodeTID",),
    ("CaptureID",),
)
"""Every text of a flow that a plan may use; all other fields are integers."""

# Read for every flow, whatever the plan: the table's own bookkeeping.
_BOOKKEEPING: tuple[Path, ...] = (("UUID",), ("Last",), ("FinishType",))

# Read in addition where a flow that was never seen before must be told from a lost one.
_FIRST_REPORT: tuple[Path, ...] = (
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
    """The decoders' types for one plan.

    ``Flow`` has what updates of known flows need, ``FullFlow`` has ``Start`` and
    ``LastUpdateMetric`` beside it. Values of both are accepted by the plan's table. They are the
    same where the plan's labels are not complete: then every unknown flow needs them.
    """

    Flow: type[msgspec.Struct]
    FullFlow: type[msgspec.Struct]


def _struct(name: str, paths: Iterable[Path]) -> type[msgspec.Struct]:
    """Make the struct that holds ``paths``, each one or two names deep.

    A path that ends in an empty name asks for its parent, and for nothing inside it.
    """
    scalars: list[Path] = []
    nested: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        match path:
            case (_,):
                scalars.append(path)
            case (parent, child):
                nested.setdefault(parent, []).append(child)
            case _:
                raise ValueError(f"a path has one or two names, not {path!r}")
    fields: list[tuple[str, Any, Any]] = [(path[0], *_scalar(path)) for path in scalars]
    for parent, children in nested.items():
        inner = msgspec.defstruct(
            parent, [(child, *_scalar((parent, child))) for child in children if child], gc=False
        )
        fields.append((parent, inner | None, None))
    return msgspec.defstruct(name, fields, gc=False)


def _scalar(path: Path) -> tuple[type, str | int]:
    return (str, "") if path in _TEXT_FIELDS else (int, 0)


def flow_types(plan: Plan) -> FlowTypes:
    """Make the structs that hold what ``plan`` uses."""
    used = [
        *_BOOKKEEPING,
        *(column.path for column in plan.columns),
        *(counter.path for counter in plan.counters),
        *(gauge.path for gauge in plan.gauges),
    ]
    # A required part of which nothing is used is decoded as an empty struct: there or not.
    used += [(*requirement.path, "") for requirement in plan.requirements]
    amounts = [counter.amount for counter in plan.counters]
    full = _struct("FullFlow", [*used, *_FIRST_REPORT, *amounts])
    return FlowTypes(Flow=_struct("Flow", used) if plan.complete else full, FullFlow=full)
