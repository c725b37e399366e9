"""Replaces addresses and names with pseudonyms, using a key that is never stored.

Only fields that skyfast reads (`skyfast.flows.fields.FIELDS`) are kept. DNS, DHCP and VRRP data,
raw packets and unknown fields are removed, because they could contain addresses. The kept fields:

* IP and MAC addresses get pseudonyms. The type of an address (loopback, private, link-local,
  multicast) and the prefix lengths of networks stay visible. Common prefixes are preserved: for
  example, if two IP addresses of the same type share exactly the first 20 bits, so do their
  pseudonyms. The algorithm is Crypto-PAn (Xu, Fan, Ammar, Moon: "Prefix-Preserving IP Address
  Anonymization", 2002) with BLAKE2 as the hash function. There is one exception: if an address has
  no special type, but its pseudonym would have one, skyfast computes a pseudonym of this pseudonym.
  Then a short common prefix with another address can be lost.
* UUIDs, tracking IDs (hashes of addresses), nodes, captures and analyzers get pseudonyms.
* In the topology, hosts, network namespaces, containers, pods, Kubernetes namespaces, workloads,
  services, clusters, virtual machines and label values get pseudonyms. In names, each word gets a
  pseudonym, and ASCII punctuation such as ``-``, ``.`` and ``_`` stays. Example: the pseudonym of a
  replica set begins with the pseudonym of its deployment. Words that have a meaning for skyfast
  (``k8s``, ``POD``) and names that most hosts have (``eth0``) are unchanged.
* Numbers, times, ports, VLANs, protocols, and the names of layers and applications are unchanged.
  The keys of labels, the types and states of nodes, and the kinds of Kubernetes' own workloads are
  also unchanged.

Equal values get equal pseudonyms, and different values get different pseudonyms. Therefore an
anonymized recording has as many connections as the original, with the same counters.
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

from skyfast.flows import addresses
from skyfast.flows.fields import FIELDS, UNDECODABLE
from skyfast.replay.topology import (
    EDGE,
    MAX_LABEL_DEPTH,
    NODE,
    Path,
    Rewrite,
    Update,
    decode_element,
    empty_like,
    rewriter,
)
from skyfast.stats import MESSAGE_TYPES, NAMESPACES

CACHED: Final = 1 << 16
"""Maximum number of cached pseudonyms of each type."""

MAX_CACHED_CHARS: Final = 64
"""Longer strings are not cached. Addresses and IDs are shorter."""

_STATISTICS: Final = (
    *("FlowCount", "FlowDropped", "KernelFlowDropped", "PacketsDropped", "PacketsReceived"),
)
"""The numeric fields of a capture report, named as in Skydive's ``flow.proto``."""

_KINDS: Final = (
    # Address ranges, and the number of leading bits that stay unchanged in each range.
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
_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{32,64}")
_NAME_PART: Final = re.compile(
    # A UUID or a word. Characters that are not ASCII belong to words.
    r"(?<![0-9A-Za-z])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9A-Za-z])"
    r"|[0-9A-Za-z\x80-\U0010ffff]+"
)
_UNCHANGED_NAMES: Final = re.compile(r"POD|None|lo|eth[0-9]{1,2}|docker0|cni0|kube-ipvs0")
"""Names that get no pseudonym, because they are the same in most clusters.

``POD`` is the name of a pod's sandbox, and ``None`` is the address of a headless service."""

_KUBELET_NAME: Final = re.compile(r"k8s_(POD_)?(.*?)(_[0-9]{1,5})?", re.DOTALL)
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_WORD_LETTERS: Final = 10
"""Number of letters in the pseudonym of a word. Ten letters contain 50 bits."""

_IDS: Final = frozenset(
    [("ID",), ("Parent",), ("Child",), ("Metadata", "TID"), ("Metadata", "ExtID", "vm-uuid")]
)

_K8S: Final = ("Metadata", "K8s")
_CONTAINER_LABELS: Final = ("Metadata", "Container", "Labels")
_KUBERNETES_LABELS: Final = (*_CONTAINER_LABELS, "io", "kubernetes")

_KIND: Final = (*_K8S, "Extra", "ObjectMeta", "OwnerReferences", "Kind")
_KINDS_OF_KUBERNETES: Final = frozenset(
    [
        *("ReplicaSet", "Deployment", "DaemonSet", "StatefulSet", "Job", "CronJob"),
        *("ReplicationController", "Node"),
    ]
)
"""The kinds of owners that get no pseudonym. Other kinds can contain the name of a company."""

_WORDS: Final = frozenset(
    [
        *(("Metadata", key) for key in ("Type", "EncapType", "Manager", "RelationType")),
        (*_K8S, "Status"),
        (*_KUBERNETES_LABELS, "docker", "type"),
        (*_KUBERNETES_LABELS, "cri", "container-type"),
        (*_KUBERNETES_LABELS, "cri-o", "ContainerType"),
        (*_CONTAINER_LABELS, "io.kubernetes.docker.type"),
    ]
)
"""The fields whose values are words of Skydive, Kubernetes or a container runtime. These words stay
unchanged."""

_ADDRESSES: Final = frozenset(
    [
        *(("Metadata", key) for key in ("IPV4", "IPV6")),
        *(("Metadata", "Neutron", key) for key in ("IPV4", "IPV6")),
        *((*_K8S, key) for key in ("IP", "ClusterIP")),
        (*_K8S, "Extra", "Spec", "ClusterIPs"),
        (*_K8S, "Extra", "Status", "PodIPs", "IP"),
        (*_K8S, "Extra", "Status", "HostIP"),
    ]
)
"""The fields with IP addresses.

String fields that are not in `_ADDRESSES`, `_IDS` or `_WORDS` are names, except `_KIND`."""

_WORD: Final = re.compile(r"[A-Za-z0-9_/-]{0,200}")

Pseudonym = Callable[[str], str]


class Anonymizer:
    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._address, self._mac = _cached(self._address_of), _cached(self._mac_of)
        self._hash, self._id = _cached(self._hash_of), _cached(self._id_of)
        self._name_part = _cached(self._name_part_of)
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
            # If a string field is missing from `texts`, raise KeyError, so that no value leaks.
            fields[path[-1]] = texts[path] if kind is str else None

        self._node = rewriter(NODE, self._rewrite_of)
        self._edge = rewriter(EDGE, self._rewrite_of)

    def topology(self, update: Update) -> Update:
        return Update(
            nodes=[_rewritten(raw, self._node) for raw in update.nodes],
            edges=[_rewritten(raw, self._edge) for raw in update.edges],
            removed=[self._id(removed) for removed in update.removed],
        )

    def _rewrite_of(self, path: Path, kind: type) -> Rewrite:
        """Return the function that anonymizes the values of a field of nodes or edges."""
        if kind is dict:
            return self._labels
        if kind is not str:
            return self._number
        if path in _IDS:
            pseudonym = self._id
        elif path in _WORDS:
            pseudonym = self._word
        elif path == _KIND:
            pseudonym = self._kind
        elif path in _ADDRESSES:
            pseudonym = self._network
        else:
            pseudonym = self._name

        def rewrite(value: object) -> object:
            return pseudonym(value) if isinstance(value, str) else empty_like(value)

        return rewrite

    def _number(self, value: object) -> object:
        if isinstance(value, str):
            return self._text(value)
        return value if isinstance(value, int | float) else empty_like(value)

    def _labels(self, value: object, depth: int = 0) -> object:
        match value:
            case str():
                return self._name(value) if depth else ""
            case dict() if depth < MAX_LABEL_DEPTH:
                return {key: self._labels(inner, depth + 1) for key, inner in value.items()}
            case _:
                return empty_like(value)

    def __call__(self, data: bytes, analyzer: str) -> tuple[bytes, str] | None:
        """Return the anonymized message and analyzer; None if ``data`` is not a JSON object."""
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
        content = {"flow": self._flows, "stats": self._statistics}.get(namespace, empty_like)
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
                    kept[key] = empty_like(value)
        return kept

    def _flows(self, flows: object) -> object:
        if not isinstance(flows, list):
            return empty_like(flows)
        return [self._flow(flow) for flow in flows]

    def _flow(self, flow: object) -> object:
        if not isinstance(flow, dict):
            return empty_like(flow)
        kept = _fields(flow, self._scalars)
        for part, fields in self._parts.items():
            if part in flow:
                inner = flow[part]
                kept[part] = (
                    _fields(inner, fields) if isinstance(inner, dict) else empty_like(inner)
                )
        return kept

    def _statistics(self, report: object) -> object:
        if not isinstance(report, dict):
            return empty_like(report)
        return _fields(report, {"CaptureID": self._id, **dict.fromkeys(_STATISTICS)})

    # Pseudonyms

    def _digest(self, kind: bytes, value: bytes, size: int) -> bytes:
        return blake2b(value, digest_size=size, key=self._key, person=kind).digest()

    def _text(self, text: str) -> str:
        """Return a pseudonym that is at least as long as ``text``, or "" if ``text`` is empty."""
        data = text.encode(errors="surrogatepass")
        return f"x{self._digest(b'text', data, 12).hex()}".ljust(len(data), "x") if data else ""

    def _word(self, text: str) -> str:
        return text if _WORD.fullmatch(text) else self._text(text)

    def _hash_of(self, text: str) -> str:
        if not _HASH.fullmatch(text):
            return self._text(text)
        return f"{int.from_bytes(self._digest(b'hash', text.encode(), 8)):x}"

    def _id_of(self, text: str) -> str:
        if not _UUID.fullmatch(text):
            return self._text(text)
        return str(UUID(bytes=self._digest(b"id", text.encode(), 16)))

    def _name(self, text: str) -> str:
        if _UNCHANGED_NAMES.fullmatch(text):
            return text
        if kubelet := _KUBELET_NAME.fullmatch(text):
            sandbox, parts, attempt = kubelet[1] or "", kubelet[2], kubelet[3] or ""
            return f"k8s_{sandbox}{self._words(parts)}{attempt}"
        return self._words(text)

    def _kind(self, text: str) -> str:
        return text if text in _KINDS_OF_KUBERNETES else self._name(text)

    def _words(self, text: str) -> str:
        return _NAME_PART.sub(lambda part: self._name_part(part[0]), text)

    def _name_part_of(self, text: str) -> str:
        if _UUID.fullmatch(text):
            return self._id(text)
        data = text.encode(errors="surrogatepass")
        if _CONTAINER_ID.fullmatch(text):
            return self._digest(b"container", data, 32).hex()[: len(text)]
        number = int.from_bytes(self._digest(b"name", data, 8))
        return "".join(_LETTERS[number >> 5 * i & 31] for i in range(_WORD_LETTERS))

    def _network(self, text: str) -> str:
        """Return the pseudonym of an address with a prefix length, such as ``10.1.2.3/24``.

        The address gets the same pseudonym as in flows, and the prefix length does not change.
        """
        text, slash, length = text.partition("/")
        text, percent, zone = text.partition("%")
        octets = addresses.read(text)
        shown = self._name(text) if octets is None else self._address(addresses.write(octets))
        if not (length.isascii() and length.isdecimal()):
            length = self._name(length)
        return f"{shown}{percent}{self._name(zone)}{slash}{length}"

    def _address_of(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return self._text(text)
        # Two notations of an address are two label values, so the notations need different
        # pseudonyms. Therefore handle unusual notations, and addresses with a zone, like any text.
        if str(address) != text or "%" in text:
            return self._text(text)
        kept_bits = _kept_bits(address)
        while True:
            octets = self._scramble(b"ip", address.packed, kept_bits)
            address = ipaddress.ip_address(octets)
            # If an address is outside all ranges in `_KINDS`, its pseudonym must also be outside.
            # Otherwise, an address in one of these ranges could have the same pseudonym.
            if kept_bits or not _kept_bits(address):
                return str(address)

    def _mac_of(self, text: str) -> str:
        if not _MAC.fullmatch(text):
            return self._text(text)
        if text == _BROADCAST:
            return text
        octets = bytes.fromhex(text.replace(":", ""))
        while True:
            # Keep the last two bits of the first octet: the group bit and the local bit.
            first, others = _reverse_bits(octets[0]), octets[1:]
            scrambled = self._scramble(b"mac", bytes((first,)) + others, 2)
            octets = bytes((_reverse_bits(scrambled[0]),)) + scrambled[1:]
            if octets != b"\xff" * 6:
                return octets.hex(":")

    def _scramble(self, kind: bytes, octets: bytes, kept_bits: int) -> bytes:
        """Return the octets with some bits flipped, but not the first ``kept_bits`` bits.

        The key and all preceding bits decide whether a bit is flipped. Therefore different inputs
        give different outputs, and inputs with a common prefix give outputs with a common prefix.
        """
        result = bytearray()
        for i, octet in enumerate(octets):
            # If bit number `node` of the digest is 1, flip the current bit. In binary, `node` is
            # a 1 followed by the preceding bits of this octet.
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


def _rewritten(raw: msgspec.Raw, rewrite: Rewrite) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(rewrite(decode_element(bytes(raw)))))


def _kept_bits(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return next((bits for network, bits in _KEPT_BITS if address in network), 0)


def _reverse_bits(octet: int) -> int:
    return int(f"{octet:08b}"[::-1], 2)


def _fields(part: dict[str, Any], fields: dict[str, Pseudonym | None]) -> dict[str, Any]:
    """Return the known fields of ``part``: strings as pseudonyms, and numbers unchanged."""
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
            kept[key] = empty_like(value)
    return kept
