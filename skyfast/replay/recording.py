"""The format of recordings: one JSON message per line, optionally compressed.

Messages are read and written one at a time, so a recording can have any size.

Any file with one message or one flow per line can be replayed. When skyfast records a message,
skyfast adds a key at the start::

    {"Recorded":{"At":1795352101512,"Analyzer":"analyzer-1:8082"},"Namespace":"flow",…}

``At`` is the time of receipt in Unix milliseconds. After the key ``Recorded``, the message follows
byte for byte, without surrounding white space. If the message is not UTF-8, not a JSON object, or
not on one line, the line has only the key ``Recorded``. In this case, the object in ``Recorded``
also has the key ``Base64``, which contains the message in base64.

Changes of the topology have lines of their own. These lines name no analyzer, because every
analyzer knows the whole topology (:mod:`skyfast.replay.topology`)::

    {"Recorded":{"At":1795352101498},"Topology":{"Nodes":[…],"Edges":[…],"Removed":["ID",…]}}
"""

import base64
import binascii
import gzip
import heapq
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from importlib.resources import files
from itertools import repeat, takewhile
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

import msgspec

from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.fields import UNDECODABLE, Envelope
from skyfast.replay.topology import Update, decode_update
from skyfast.wording import counted

MAX_LINE_BYTES: Final = 256 << 20
"""Maximum length of a line: enough for the largest messages in base64."""

MAX_ANALYZERS: Final = 64
"""Maximum number of analyzers of a recording: each analyzer becomes a server."""

MAX_GAP_MS: Final = 300_000
"""A replay shortens longer periods without messages to this time.

If a line has no recorded time, skyfast uses the latest flow time in the line. But it ignores flow
times that are more than ``MAX_GAP_MS`` later than the median of all flow times in the line."""

_OF_MESSAGE: Final = frozenset({"Namespace", "Type", "Obj"})
_OF_FLOW: Final = frozenset(
    {"LastUpdateMetric", "LayersPath", "Link", "Metric", "Network", "NodeTID", "Transport"}
)
"""A line with a key of `_OF_MESSAGE` is a message. Any other line with a key of `_OF_FLOW` is a
flow."""

_UUID_STEP: Final = 0x9E3779B97F4A7C15  # odd, so that each of 2^64 loops has a different mask

_GZIP: Final = b"\x1f\x8b"

_HEAD: Final = re.compile(
    rb'\{"Recorded":\{"At":(\d{1,15}),"Analyzer":("(?:[^"\\]|\\.)*+")'
    rb'(?:,"Base64":"([A-Za-z0-9+/=]*+)"\}\}|\}(?:,|(?=\s*\})))'
)

_TOPOLOGY_HEAD: Final = re.compile(rb'\{"Recorded":\{"At":(\d{1,15})\},"Topology":')

# From 2001 to 2286, times in Unix milliseconds have 13 digits. These patterns match only keys,
# because quotes inside strings are escaped.
_LAST: Final = re.compile(rb'"Last"\s*:\s*([1-9]\d{12})(?!\d)')
_TIME: Final = re.compile(
    rb'("(?:Start|Last|(?:AB|BA)(?:Syn|Fin|Rst)Start)"\s*:\s*)([1-9]\d{12})(?!\d)'
)
_IDENTITY: Final = re.compile(
    rb'("(?:Parent)?UUID"\s*:\s*")'
    rb"(?:([0-9a-f]{1,16})|([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))(?=\")"
)

_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_envelope: Final = msgspec.json.Decoder(Envelope)
_text: Final = msgspec.json.Decoder(str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A recorded message, or an update of the topology."""

    data: bytes
    """The bytes of the message or update. For a recorded flow: a message with only this flow."""
    at_ms: int | None
    """The time of receipt in Unix milliseconds, or None if no time was recorded."""
    analyzer: str
    """The name of the analyzer; empty in updates, and in messages without a recorded time."""
    kind: Literal["message", "flow", "other", "topology"] = "message"
    """What the line contains; "other" for an object that is not of a known form."""

    def update(self) -> Update:
        """Decode the update of the topology; ``kind`` must be "topology"."""
        return decode_update(self.data)


def message_line(data: bytes, *, at_ms: int, analyzer: str) -> bytes:
    """Return the line to record for a message, without the newline."""
    head = b'{"Recorded":{"At":%d,"Analyzer":%b' % (at_ms, msgspec.json.encode(analyzer))
    data = data.strip()
    if not _is_plain(data):
        return b'%b,"Base64":"%b"}}' % (head, base64.b64encode(data))
    return b"%b}%b%b" % (head, b"" if data[1:].lstrip() == b"}" else b",", data[1:])


def topology_line(update: Update, *, at_ms: int) -> bytes:
    return b'{"Recorded":{"At":%d},"Topology":%b}' % (at_ms, msgspec.json.encode(update))


def _is_plain(data: bytes) -> bool:
    """Return whether ``data`` is a JSON object in valid UTF-8, on one line."""
    if not data.startswith(b"{") or b"\n" in data or b"\r" in data:
        return False
    try:
        _object.decode(data)
        data.decode()
    except UNDECODABLE:
        return False
    return True


def parse(text: bytes) -> Message:
    """Parse a line.

    Raises:
        ValueError: The line is invalid. The text of the error describes the problem, such as "not
            a JSON object".

    """
    text = text.strip()
    if head := _TOPOLOGY_HEAD.match(text):
        return _parse_topology(text, head)
    head = _HEAD.match(text)
    if head is None:
        if (keys := _keys(text)) is None:
            raise ValueError("not a JSON object")
        kind = _kind(keys)
        data = b'{"Namespace":"flow","Type":"store","Obj":[%b]}' % text if kind == "flow" else text
        return Message(data=data, at_ms=None, analyzer="", kind=kind)
    try:
        analyzer = _text.decode(head[2])
    except UNDECODABLE:
        raise ValueError("invalid analyzer name") from None
    if head[3] is None:
        data = b"{" + text[head.end() :]
        if _keys(data) is None:
            raise ValueError("not a JSON object")
    else:
        try:
            data = base64.b64decode(head[3], validate=True)
        except binascii.Error:
            raise ValueError("invalid base64") from None
        if head.end() != len(text):
            raise ValueError("not a JSON object")
    return Message(data=data, at_ms=int(head[1]), analyzer=analyzer)


def _parse_topology(text: bytes, head: re.Match[bytes]) -> Message:
    data = text[head.end() : -1]
    try:
        decode_update(data)
    except UNDECODABLE:
        raise ValueError("invalid topology") from None
    if not text.endswith(b"}"):
        raise ValueError("not a JSON object")
    return Message(data=data, at_ms=int(head[1]), analyzer="", kind="topology")


def _keys(text: bytes) -> Set[str] | None:
    try:
        return _object.decode(text).keys()
    except UNDECODABLE:
        # Lone surrogates are valid JSON, and analyzers can send them.
        try:
            value = json.loads(text.decode())
        except (ValueError, RecursionError):
            return None
        return value.keys() if isinstance(value, dict) else None


def _kind(keys: Set[str]) -> Literal["message", "flow", "other"]:
    if keys & _OF_MESSAGE:
        return "message"
    return "flow" if keys & _OF_FLOW else "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A validated recording."""

    path: str
    analyzers: tuple[str, ...]
    """The names of the analyzers, in the order of their first messages."""
    messages: int
    """Number of lines that are not updates of the topology, including ``flows`` and ``others``."""
    flows: int
    """Number of lines that contain a single flow instead of a message."""
    others: int
    """Number of lines that no analyzer sends."""
    first_ms: int
    """The time of the first message in Unix milliseconds."""
    last_ms: int
    """The time of the last message in Unix milliseconds."""
    updates: int
    """Number of updates of the topology."""
    truncated: bool
    """Whether the last line is incomplete. An incomplete line is ignored."""

    @classmethod
    def load(cls, path: str) -> "Recording":
        """Read and validate a file.

        Raises:
            ConfigError: The file cannot be read, or is not a recording.

        """
        lines = _Lines(path)
        times = _Times(0)
        analyzers: dict[str, None] = {}
        first_ms = 0
        kinds: Counter[str] = Counter()
        last_ms = 0
        for message in lines:
            kinds[message.kind] += 1
            at_ms = times.of(message)
            if message.kind == "topology":
                continue
            analyzers.setdefault(message.analyzer)
            if len(analyzers) > MAX_ANALYZERS:
                raise ConfigError(f"{path} has more than {MAX_ANALYZERS} analyzers")
            first_ms, last_ms = first_ms or at_ms, at_ms
        if not kinds["message"] + kinds["flow"]:
            others = f", but {counted(kinds['other'], 'other line')}" if kinds["other"] else ""
            raise ConfigError(f"{path} contains no messages and no flows{others}")
        return cls(
            path=path,
            analyzers=tuple(analyzers),
            messages=kinds.total() - kinds["topology"],
            flows=kinds["flow"],
            others=kinds["other"],
            first_ms=first_ms,
            last_ms=last_ms,
            updates=kinds["topology"],
            truncated=lines.truncated,
        )

    def summary(self) -> str:
        seconds = (self.last_ms - self.first_ms) / 1000
        messages = counted(self.messages, "message")
        analyzers = counted(len(self.analyzers), "analyzer")
        flows = others = ""
        if self.flows:
            single = "is a single flow" if self.flows == 1 else "are single flows"
            flows = f"; {self.flows} of the messages {single}"
        if self.others:
            verb = "has" if self.others == 1 else "have"
            others = f"; {self.others} of the messages {verb} an unknown form"
        updates = f"; {counted(self.updates, 'topology update')}" if self.updates else ""
        truncated = "; the file is truncated" if self.truncated else ""
        return f"{messages} from {analyzers} in {seconds:.0f} s{updates}{flows}{others}{truncated}"

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        """Read the file again, and yield the time and the message of each line.

        The times are Unix milliseconds, and never decrease. Updates of the topology that precede
        the first message get the time of the first message.
        """
        times = _Times(self.first_ms)
        for message in _Lines(self.path):
            yield times.of(message), message


class _Times:
    """Determines the time of each message, from the recorded time or from the flow times."""

    def __init__(self, first_ms: int) -> None:
        self.latest_ms = first_ms
        self._set_back_ms = 0
        self._has_begun = False

    def of(self, message: Message) -> int:
        if message.kind != "topology":
            self._has_begun = True
        elif not self._has_begun:
            return self.latest_ms
        if message.at_ms is None:
            # The analyzer sent this message after the newest flow time in it, and after the
            # previous message.
            self.latest_ms = max(self.latest_ms, _newest_ms(message.data))
        else:
            at_ms = message.at_ms + self._set_back_ms
            # If the clock was set back during the recording, add the difference to all later times.
            self._set_back_ms += max(self.latest_ms - at_ms, 0)
            self.latest_ms = max(self.latest_ms, at_ms)
        return self.latest_ms


def _newest_ms(data: bytes) -> int:
    """Return the newest plausible flow time in a message, or 0 if there is none."""
    times = sorted(map(int, _LAST.findall(data)))
    if not times:
        return 0
    # A wrong time in the future would delay all following messages. Therefore leave out times that
    # are far above the lower median. The lower median is right even if half of the times are in the
    # future.
    latest_ms = times[(len(times) - 1) // 2] + MAX_GAP_MS
    return max(time for time in times if time <= latest_ms)


class _Lines:
    """Reads the messages of a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.truncated = False
        """After an iteration: whether the last line was incomplete."""

    def __iter__(self) -> Iterator[Message]:
        number = 0
        try:
            with _opened(self.path) as file:
                while text := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(text) > MAX_LINE_BYTES:
                        raise self._error(number, f"longer than {MAX_LINE_BYTES} bytes")
                    if text.isspace():
                        continue
                    try:
                        message = parse(text)
                    except ValueError as problem:
                        self.truncated = number > 1 and not text.endswith(b"\n")
                        if self.truncated:
                            return
                        raise self._error(number, str(problem)) from None
                    yield message
        except EOFError:
            self.truncated = True  # the gzip stream is incomplete: the writer was killed
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._error(number + 1, f"invalid gzip data: {error}") from None
        except OSError as error:
            raise ConfigError(f"{self.path!r} cannot be read: {error.strerror}") from None

    def _error(self, number: int, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: line {number}: {problem}")


def _opened(path: str) -> gzip.GzipFile | io.BufferedReader:
    if Path(path).exists() and not Path(path).is_file():
        raise ConfigError(f"{path!r} is not a regular file")
    with Path(path).open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
    return gzip.open(path) if is_packed else Path(path).open("rb")


# Replay --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Playback:
    """Recordings to replay together, once or in a loop."""

    recordings: tuple[Recording, ...]
    speed: float = 1
    """Number of recorded seconds that are replayed per second."""
    loop_s: float = 0
    """Time from the start of one loop to the start of the next, in seconds; 0 for one replay."""
    is_demo: bool = False
    """Whether this is the playback of `demo`."""

    @property
    def first_ms(self) -> int:
        """The time of the first message in Unix milliseconds."""
        return min(recording.first_ms for recording in self.recordings)

    def schedule(self, loop: int = 0) -> Iterator["ScheduledMessage"]:
        """Yield the messages and updates of a loop in the order in which they are sent.

        Messages of several recordings are merged in the order of their recorded times.
        """
        origin_ms = latest_ms = self.first_ms
        streams = [
            zip(repeat(number), recording, strict=False)
            for number, recording in enumerate(self.recordings)
        ]
        for number, (at_ms, message) in heapq.merge(*streams, key=lambda item: item[1][0]):
            origin_ms += max(at_ms - latest_ms - MAX_GAP_MS, 0)
            latest_ms = at_ms
            yield ScheduledMessage(
                recording=number,
                message=message,
                due_s=loop * self.loop_s + (at_ms - origin_ms) / self.speed / 1000,
                origin_ms=origin_ms,
                begins_ms=round(loop * self.loop_s * 1000),
                speed=self.speed,
                mask=loop * _UUID_STEP % 2**64,
            )

    def first_topology(self) -> list[Update]:
        """Return the updates of the topology before the first message. Blocks while it reads."""
        first = takewhile(lambda scheduled: scheduled.message.kind == "topology", self.schedule())
        return [scheduled.message.update() for scheduled in first]


DEMO_LOOP_S: Final = 20.0
"""Time from the start of one loop of the demo to the start of the next, in seconds."""

_DATA: Final = Path(str(files("skyfast") / "data"))

DEMO_CONFIG: Final = _DATA / "demo.yml"


def demo() -> Playback:
    """Return the playback of the packaged recording.

    The recording shows containers and pods for 80 s. Every connection is reported at least once in
    each loop of `DEMO_LOOP_S` seconds. This time is shorter than the default
    ``connection_timeout``, so connections never expire. At a scrape interval of 15 s, this time is
    also short enough for a ``rate()`` over one minute.
    """
    return Playback(
        recordings=(Recording.load(str(_DATA / "recording.jsonl.gz")),),
        speed=5,
        loop_s=DEMO_LOOP_S,
        is_demo=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledMessage:
    """A message, or an update of the topology, and when to send it."""

    recording: int
    """The index of the recording in `Playback.recordings`."""
    message: Message
    due_s: float
    """Seconds from the start of the replay to the time at which the message is sent."""
    origin_ms: int
    """The recorded time, in Unix milliseconds, that corresponds to the start of the loop."""
    begins_ms: int
    """Milliseconds from the start of the replay to the start of the loop."""
    speed: float
    """Number of recorded seconds that are replayed per second."""
    mask: int
    """The number that is XORed with the UUIDs of flows and messages; 0 in the first loop."""

    def data(self, started_ms: int) -> bytes:
        """Return the bytes to send if the replay started at ``started_ms`` (Unix milliseconds).

        The times of flows are shifted to the present. From the second loop on, flows and messages
        have new UUIDs, so each loop has new flows with the same labels. All other data is sent as
        recorded.
        """
        base_ms = started_ms + self.begins_ms
        return shift_times(
            self.message.data,
            lambda recorded_ms: base_ms + int((recorded_ms - self.origin_ms) // self.speed),
            mask=self.mask,
        )


def shift_times(data: bytes, present_ms: Callable[[int], int], *, mask: int) -> bytes:
    data = _TIME.sub(lambda match: b"%b%d" % (match[1], max(present_ms(int(match[2])), 0)), data)
    if not mask:
        return data

    def masked(match: re.Match[bytes]) -> bytes:
        if match[2]:
            return b"%b%x" % (match[1], int(match[2], 16) ^ mask)
        return match[1] + str(UUID(int=UUID(match[3].decode()).int ^ mask)).encode()

    return _IDENTITY.sub(masked, data)


def for_namespaces(data: bytes, namespaces: frozenset[str]) -> Iterator[bytes]:
    """Yield the messages that a subscriber to ``namespaces`` gets for a recorded message.

    * If the namespace of the message is unknown: the message, once
    * For each of ``namespaces`` that contains the whole message: the message
    * For any other namespace ``flow/CAPTURE_ID``: the message with only the flows of this capture,
      if there are any
    """
    try:
        namespace = _envelope.decode(data).Namespace
    except UNDECODABLE:
        namespace = ""
    kind = namespace.partition("/")[0]
    if kind not in {"flow", "stats"}:
        yield data
        return
    for wanted in sorted(namespaces):
        capture_id = wanted.removeprefix("flow/")
        if wanted in {namespace, kind}:
            yield data
        elif capture_id != wanted and namespace == "flow":
            yield from _of_capture(data, capture_id)


def _of_capture(data: bytes, capture_id: str) -> Iterator[bytes]:
    try:
        message = msgspec.json.decode(data)
    except UNDECODABLE:
        yield data  # the message cannot be decoded, so its captures are unknown
        return
    flows = message.get("Obj")
    flows = flows if isinstance(flows, list) else []
    selected = [
        flow for flow in flows if isinstance(flow, dict) and flow.get("CaptureID") == capture_id
    ]
    if selected:
        yield msgspec.json.encode(message | {"Namespace": f"flow/{capture_id}", "Obj": selected})
