"""Replaces addresses and names in messages by pseudonyms, with a key that is never stored.

Only fields that skyfast reads (`skyfast.flows.fields.FIELDS`) are kept. DNS, DHCP and VRRP data,
raw packets and unknown fields are removed, so that no address remains in an unexpected place. The
kept fields are anonymized as follows:

* IP and MAC addresses get pseudonyms of the same type. Pseudonyms of IP addresses preserve
  prefixes: two addresses share as many leading bits as before. This is the construction of
  Crypto-PAn (Xu, Fan, Ammar, Moon: "Prefix-Preserving IP Address Anonymization", 2002) with BLAKE2.
  The type of an address (loopback, private, link-local, multicast) and the prefix lengths of
  networks stay visible.
* UUIDs, tracking IDs (hashes of addresses), nodes, captures and analyzers get pseudonyms.
* Numbers, times, ports, VLANs, protocols, and the names of layers and applications are unchanged.

Pseudonyms are one to one, so an anonymized recording has as many connections as the original, with
the same totals.
"""

import ipaddress
import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import msgspec

from skyfast.flows.fields import FIELDS, UNDECODABLE
from skyfast.stats import MESSAGE_TYPES, NAMESPACES

CACHED: Final = 1 << 16
"""Maximum number of cached pseudonyms of each type."""

MAX_CACHED_CHARS: Final = 64
"""Maximum length of cached strings. Addresses and IDs are shorter; others may have megabytes."""

_STATISTICS: Final = (
    *("FlowCount", "FlowDropped", "KernelFlowDropped", "PacketsDropped", "PacketsReceived"),
)
"""The numbers in a capture report, see ``flow.proto`` in Skydive."""

_KINDS: Final = (
    # Address ranges, and how many leading bits of their addresses are unchanged.
    *(("0.0.0.0/32", 32), ("255.255.255.255/32", 32), ("127.0.0.0/8", 8), ("10.0.0.0/8", 8)),
    *(("172.16.0.0/12", 12), ("192.168.0.0/16", 16), ("169.254.0.0/16", 16), ("224.0.0.0/4", 4)),
    *(("::/128", 128), ("::1/128", 128), ("fc00::/7", 8), ("fe80::/10", 64), ("ff00::/8", 16)),
    ("2000::/3", 3),
)
_KEPT_BITS: Final = tuple((ipaddress.ip_network(range_), bits) for range_, bits in _KINDS)

_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
_HASH: Final = re.compile(r"0|[1-9a-f][0-9a-f]{0,15}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD: Final = re.compile(r"[A-Za-z0-9_/-]{0,200}")

Pseudonym = Callable[[str], str]


class Anonymizer:
    """Anonymizes messages with its own random key, which is never stored."""

    def __init__(self) -> None:
        """Generate a key."""
        self._key = secrets.token_bytes(32)
        self._address, self._mac = _cached(self._address_of), _cached(self._mac_of)
        self._hash, self._id = _cached(self._hash_of), _cached(self._id_of)
        texts: dict[tuple[str, ...], Pseudonym] = {
            **dict.fromkeys([("Network", "A"), ("Network", "B")], self._address),
            **dict.fromkeys([("Link", "A"), ("Link", "B")], self._mac),
            **dict.fromkeys([("UUID",), ("ParentUUID",)], self._hash),
            **dict.fromkeys([("TrackingID",), ("L3TrackingID",)], self._hash),
            **dict.fromkeys([("NodeTID",), ("CaptureID",)], self._id),
            **dict.fromkeys([("LayersPath",), ("Application",), ("ICMP", "Type")], self._word),
            **{(part, "Protocol"): self._word for part in ("Link", "Network", "Transport")},
        }
        self._scalars: dict[str, Pseudonym | None] = {}
        self._parts: dict[str, dict[str, Pseudonym | None]] = {}
        for path, kind in FIELDS.items():
            fields = self._scalars if len(path) == 1 else self._parts.setdefault(path[0], {})
            # A string field without a pseudonym raises KeyError here, instead of leaking.
            fields[path[-1]] = texts[path] if kind is str else None

    def __call__(self, data: bytes, analyzer: str) -> tuple[bytes, str] | None:
        """Return the anonymized message and analyzer name.

        Returns None if the message cannot be parsed, and therefore not be anonymized.
        """
        try:
            message = msgspec.json.decode(data)
        except UNDECODABLE:
            return None
        if not isinstance(message, dict):
            return None
        return msgspec.json.encode(self._message(message)), self._text(analyzer)

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        namespace, capture = str(message.get("Namespace", "")), ""
        if namespace.startswith("flow/"):
            namespace, _, capture = namespace.partition("/")
        content = {"flow": self._flows, "stats": self._statistics}.get(namespace, _empty_like)
        kept: dict[str, Any] = {}
        for key, value in message.items():
            match key, value:
                case "Namespace", str():
                    kept[key] = namespace if namespace in NAMESPACES else "other"
                    if capture:
                        kept[key] += f"/{self._id(capture)}"
                case "Type", str():
                    kept[key] = value if value in MESSAGE_TYPES else "other"
                case "UUID", str():
                    kept[key] = self._id(value)
                case "Status", int():
                    kept[key] = value
                case "Obj", _:
                    kept[key] = content(value)
                case (("Namespace" | "Type" | "UUID" | "Status"), _):
                    kept[key] = _empty_like(value)
        return kept

    def _flows(self, flows: object) -> object:
        if not isinstance(flows, list):
            return _empty_like(flows)
        return [self._flow(flow) for flow in flows]

    def _flow(self, flow: object) -> object:
        if not isinstance(flow, dict):
            return _empty_like(flow)
        kept = _fields(flow, self._scalars)
        for part, fields in self._parts.items():
            if part in flow:
                inner = flow[part]
                kept[part] = (
                    _fields(inner, fields) if isinstance(inner, dict) else _empty_like(inner)
                )
        return kept

    def _statistics(self, report: object) -> object:
        if not isinstance(report, dict):
            return _empty_like(report)
        return _fields(report, {"CaptureID": self._id, **dict.fromkeys(_STATISTICS)})

    # Pseudonyms

    def _digest(self, kind: bytes, value: bytes, size: int) -> bytes:
        return blake2b(value, digest_size=size, key=self._key, person=kind).digest()

    def _text(self, text: str) -> str:
        """Return a pseudonym for any string; empty strings stay empty, long ones stay long."""
        data = text.encode(errors="surrogatepass")
        return f"x{self._digest(b'text', data, 12).hex()}".ljust(len(data), "x") if data else ""

    def _word(self, text: str) -> str:
        """Return a name in Skydive's format unchanged, or a pseudonym."""
        return text if _WORD.fullmatch(text) else self._text(text)

    def _hash_of(self, text: str) -> str:
        """Return a different 64-bit hash, in hexadecimal without leading zeros."""
        if not _HASH.fullmatch(text):
            return self._text(text)
        return f"{int.from_bytes(self._digest(b'hash', text.encode(), 8)):x}"

    def _id_of(self, text: str) -> str:
        if not _UUID.fullmatch(text):
            return self._text(text)
        return str(UUID(bytes=self._digest(b"id", text.encode(), 16)))

    def _address_of(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return self._text(text)
        # Other notations, and addresses with a zone, are other label values and thus other series.
        if str(address) != text or "%" in text:
            return self._text(text)
        kept_bits = _kept_bits(address)
        while True:
            octets = self._scramble(b"ip", address.packed, kept_bits)
            address = ipaddress.ip_address(octets)
            # An ordinary address must not become one of _KINDS: these are pseudonyms of others.
            if kept_bits or not _kept_bits(address):
                return str(address)

    def _mac_of(self, text: str) -> str:
        if not _MAC.fullmatch(text):
            return self._text(text)
        if text == _BROADCAST:
            return text
        octets = bytes.fromhex(text.replace(":", ""))
        while True:
            # The last two bits of the first octet stay: the group bit and the local bit.
            first, others = _reverse_bits(octets[0]), octets[1:]
            scrambled = self._scramble(b"mac", bytes((first,)) + others, 2)
            octets = bytes((_reverse_bits(scrambled[0]),)) + scrambled[1:]
            if octets != b"\xff" * 6:
                return octets.hex(":")

    def _scramble(self, kind: bytes, octets: bytes, kept_bits: int) -> bytes:
        """Flip each bit after the kept ones or not, depending on the key and all bits before it.

        The result is one to one and preserves common prefixes.
        """
        result = bytearray()
        for i, octet in enumerate(octets):
            # One bit of the digest for each node of the binary tree of the octet's 8 bits.
            flips = int.from_bytes(self._digest(kind, octets[:i], 32))
            node, scrambled = 1, 0
            for bit in range(8):
                given = octet >> (7 - bit) & 1
                flip = flips >> node & 1 if 8 * i + bit >= kept_bits else 0
                scrambled = scrambled << 1 | given ^ flip
                node = node << 1 | given
            result.append(scrambled)
        return bytes(result)


def _cached(pseudonym: Pseudonym) -> Pseudonym:
    cached = lru_cache(CACHED)(pseudonym)
    return lambda text: cached(text) if len(text) <= MAX_CACHED_CHARS else pseudonym(text)


def _kept_bits(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return next((bits for network, bits in _KEPT_BITS if address in network), 0)


def _reverse_bits(octet: int) -> int:
    return int(f"{octet:08b}"[::-1], 2)


def _fields(part: dict[str, Any], fields: dict[str, Pseudonym | None]) -> dict[str, Any]:
    """Return the known fields of a part of a flow: pseudonyms of strings, unchanged numbers."""
    kept: dict[str, Any] = {}
    for key, value in part.items():
        if key not in fields:
            continue
        pseudonym = fields[key]
        if pseudonym is not None and isinstance(value, str):
            kept[key] = pseudonym(value)
        elif pseudonym is None and isinstance(value, int | float):
            kept[key] = value
        else:
            kept[key] = _empty_like(value)
    return kept


def _empty_like(value: object) -> object:
    """Return an empty value of the same type, which is as invalid in its place."""
    match value:
        case None | bool():
            return value
        case float():
            return 0.5
        case _:
            return type(value)()
