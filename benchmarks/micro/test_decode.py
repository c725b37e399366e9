"""What does it cost to decode a flow, and how much of this cost is due to the fields in use?

Not measured: messages that are not in the CPU cache.
"""

import itertools
import json
from collections.abc import Callable

import msgspec
import pytest

from benchmarks.core import TYPES, decoder
from benchmarks.micro.conftest import PerFlow
from skyfast.flows.fields import Envelope

ROUNDS = 1_000

USED = "msgspec, used fields"

DECODERS: dict[str, Callable[[bytes], object]] = {
    USED: decoder().decode,
    "msgspec, fields of known flows": decoder(TYPES.KnownReport).decode,
    "msgspec, used fields and LastUpdateMetric": decoder(TYPES.FullReport).decode,
    "msgspec, envelope only": msgspec.json.Decoder(Envelope).decode,
    "msgspec, into dicts": msgspec.json.Decoder().decode,
    "json, into dicts": json.loads,
}


@pytest.mark.parametrize("name", DECODERS)
def test_decode(per_flow: PerFlow, messages: list[bytes], name: str) -> None:
    decode = DECODERS[name]

    def decode_and_free(message: bytes) -> None:
        decode(message)

    arguments = ((message,) for message in itertools.cycle(messages))
    per_flow(
        decode_and_free, arguments, rounds=ROUNDS, to="" if name == USED else f"decode: {USED}"
    )
