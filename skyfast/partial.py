"""Decoding a flow without the values that have another JSON type than Skydive gives them.

A flow whose round-trip time is a text still has bytes and packets. What may be missing is said by
`skyfast.wire.FlowTypes.omissible`; anything else that cannot be decoded costs the whole flow.
"""

import contextlib
import typing
from typing import Any, Final

import msgspec

from skyfast.plan import Path
from skyfast.wire import UNDECODABLE, FlowTypes

UNKNOWN_MS: Final = 1 << 62
"""Both times of a ``LastUpdateMetric`` that stands for one that is not known.

No flow starts then, so the report is not a flow's first one; the flow is older than anything that
skyfast has seen; and the update took no time and added nothing."""

_MARKS: Final = frozenset(
    {
        ("Start",),
        ("FinishType",),
        ("LastUpdateMetric",),
        ("LastUpdateMetric", "Start"),
        ("LastUpdateMetric", "Last"),
    }
)
"""What says whether a report is a flow's first one, and whether it repeats the one before."""


class PartialDecoder:
    """Decodes flows as ``FullFlow``, each from its own JSON, and leaves out what it has to.

    A number that is left out is None, a part likewise. The table takes a counter that is None for
    unchanged, and any other number for 0. Where one of the marks is left out, nobody can tell a
    first report, or a repeat, from others: then ``LastUpdateMetric`` has the times `UNKNOWN_MS` and
    adds nothing. So a flow that the table does not know adds 0 where its total might have been
    counted before.
    """

    def __init__(self, types: FlowTypes) -> None:
        self._flow = _Struct(types.FullFlow, (), types)
        self._amounts = types.amounts
        (self._update_type,) = (
            field.part.type
            for field in self._flow.fields
            if field.path == ("LastUpdateMetric",) and field.part is not None
        )

    def decode(self, data: msgspec.Raw) -> tuple[Any, list[Path]]:
        """Return a flow, and the fields that are left out.

        Raises one of `skyfast.wire.UNDECODABLE` where something cannot be decoded that a flow
        needs, or that is not a flow at all.
        """
        left_out: list[Path] = []
        flow = self._flow.decode(data, left_out)
        if not _MARKS.isdisjoint(left_out):
            update = flow.LastUpdateMetric
            if update is None:
                update = flow.LastUpdateMetric = self._update_type()
            update.Start = update.Last = UNKNOWN_MS
            for _, name in self._amounts:
                setattr(update, name, 0)
        return flow, left_out


class _Struct:
    """Decodes an object field by field."""

    def __init__(self, struct: type[msgspec.Struct], path: Path, types: FlowTypes) -> None:
        fields = msgspec.structs.fields(struct)
        raw = [(field.name, msgspec.Raw, msgspec.Raw()) for field in fields]
        self.type = struct
        self._raw = msgspec.json.Decoder(msgspec.defstruct("Raw", raw, gc=False))
        self.fields = [_Field(field, path, types) for field in fields]

    def decode(self, data: msgspec.Raw, left_out: list[Path]) -> Any:
        raw = self._raw.decode(data)
        values = {}
        for field in self.fields:
            text = getattr(raw, field.name)
            if text:
                values[field.name] = field.decode(text, left_out)
        return self.type(**values)


class _Field:
    """Decodes a field, or leaves it out where it may be missing."""

    def __init__(self, field: msgspec.structs.FieldInfo, parent: Path, types: FlowTypes) -> None:
        self.name = field.name
        self.path = (*parent, field.name)
        self.part: _Struct | None = None
        self._is_omissible = self.path in types.omissible
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(field.type)
        for struct in typing.get_args(field.type):
            if struct is not type(None):
                self.part = _Struct(struct, self.path, types)

    def decode(self, data: msgspec.Raw, left_out: list[Path]) -> Any:
        try:
            return self._decoder.decode(data)
        except UNDECODABLE:
            if self.part is not None:
                with contextlib.suppress(*UNDECODABLE):
                    return self.part.decode(data, left_out)
            if not self._is_omissible:
                raise
        left_out.append(self.path)
        return None
