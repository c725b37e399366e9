"""Decodes a flow, and leaves out values that have a wrong JSON type.

For example, if the round-trip time of a flow is a string, the numbers of bytes and packets can
still be used. `skyfast.flows.fields.FlowTypes.omissible` lists the optional fields. If any other
field cannot be decoded, the whole flow is skipped.
"""

import contextlib
import typing
from typing import Any

import msgspec

from skyfast.flows.fields import UNDECODABLE, FlowTypes
from skyfast.flows.plan import FieldPath


class PartialDecoder:
    """Decodes flows, and replaces undecodable optional values with None.

    If the value of an optional nested object is neither a JSON object nor null, all fields of the
    nested object are None. The table counts None as an unusable field, and uses the rest of the
    flow.
    """

    def __init__(self, types: FlowTypes) -> None:
        self._flow = _Struct(types.FullReport, (), types)

    def decode(self, data: msgspec.Raw) -> Any:
        """Return the flow as a ``FullReport``.

        Raises:
            UNDECODABLE: A required field cannot be decoded, or ``data`` is not a flow.

        """
        return self._flow.decode(data)


class _Struct:
    def __init__(self, struct: type[msgspec.Struct], path: FieldPath, types: FlowTypes) -> None:
        fields = msgspec.structs.fields(struct)
        raw = [(field.name, msgspec.Raw, msgspec.Raw()) for field in fields]
        self._type = struct
        self._raw = msgspec.json.Decoder(msgspec.defstruct("Raw", raw, gc=False))
        self._fields = [_Field(field, path, types) for field in fields]

    def decode(self, data: msgspec.Raw) -> Any:
        raw = self._raw.decode(data)
        values = {}
        for field in self._fields:
            text = getattr(raw, field.name)
            if text:
                values[field.name] = field.decode(text)
        return self._type(**values)

    def without_values(self) -> Any:
        return self._type(**dict.fromkeys(field.name for field in self._fields))


class _Field:
    def __init__(
        self, field: msgspec.structs.FieldInfo, parent: FieldPath, types: FlowTypes
    ) -> None:
        path = (*parent, field.name)
        self.name = field.name
        self._is_omissible = path in types.omissible
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(field.type)
        self._part: _Struct | None = None
        for struct in typing.get_args(field.type):
            if struct is not type(None):
                self._part = _Struct(struct, path, types)

    def decode(self, data: msgspec.Raw) -> Any:
        try:
            return self._decoder.decode(data)
        except UNDECODABLE:
            if self._part is not None:
                with contextlib.suppress(*UNDECODABLE):
                    return self._part.decode(data)
            if not self._is_omissible:
                raise
        return None if self._part is None else self._part.without_values()
