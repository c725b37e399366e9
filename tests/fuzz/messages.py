"""Fuzzes the ingest with modified messages of recordings.

A case consists of records that start with the byte 0x1E (RFC 7464). The first record is the name of
a configuration in ``tests/data/configs``. The other records are messages.
"""

import json
import random
from functools import cache
from itertools import count
from typing import Any, ClassVar

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from skyfast import _table
from skyfast.config import loader, model
from skyfast.flows.fields import FIELDS
from tests.fuzz.driver import Target
from tests.fuzz.mutation import NUMBERS, TEXTS, change_bytes, change_value, copy_tree, list_entries
from tests.support.paths import DATA, RECORDINGS
from tests.support.sink import IngestSetup

RECORD = b"\x1e"
MAX_CONNECTIONS = 20
MAX_TABLE_BYTES = 64 << 20
LIMIT_SKIPS = ("table_full", "duplicate", "other_shard")

KEYS = sorted({name for path in FIELDS for name in path} | {"Obj", "Namespace", "Type", "uuid"})

GOOD = {
    "Network": {"Protocol": "IPV4", "A": "192.0.2.1", "B": "192.0.2.2"},
    "Transport": {"Protocol": "TCP", "A": 50_000, "B": 65_000},
    "Metric": {"ABPackets": 1, "ABBytes": 1234567, "BAPackets": 1, "BABytes": 1},
    "NodeTID": "sentinel",
    "Start": 1,
    "Last": 2,
}


class Verbatim(bytes):
    """Valid or invalid JSON that is inserted unchanged."""


VERBATIM = tuple(
    Verbatim(text)
    for text in (
        *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\xff\xfe"', b'"\xc0\x80"'),
        *(b'"\xed\xa0\x80"', b'"\\u0000"', b'"\0"', b'"\\x"', b'"a\nb"', b"NaN", b"-Infinity"),
        *(b"01", b"1.", b"-", b"1e400", b"1E+2", b"-0", b"1.0", b"9" * 5000, b"0." + b"1" * 5000),
        *(b"[" * 70 + b"]" * 70, b"[" * 3000 + b"]" * 3000, b'{"a":' * 2000 + b"1" + b"}" * 2000),
        *(b"[" * 500, b"tru", b"", b",", b'{"a":1,"a":2}', b"{1:2}", b"'a'", b"/**/1"),
    )
)


@cache
def recorded_messages() -> list[dict[str, Any]]:
    lines = [
        line
        for path in sorted(RECORDINGS.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


@cache
def load_config(name: str) -> model.Config:
    """Return the configuration ``name``; the default configuration if there is no such file."""
    path = DATA / "configs" / f"{name}.yml"
    text = path.read_text() if path.is_file() else ""
    environ = {"SKYDIVE_ANALYZERS": "192.0.2.9:8082"}
    return loader.parse(text, environ, source=path.name)


class Messages(Target):
    """Passes messages to an ingest with a table."""

    name: ClassVar[str] = "messages"

    def __init__(self) -> None:
        self._configurations = [
            "default",
            *sorted(path.stem for path in (DATA / "configs").glob("*.yml")),
        ]

    def generate(self, rng: random.Random) -> bytes:
        records = [rng.choice(self._configurations).encode()]
        known: list[dict[str, Any]] = []
        records += [_message(rng, known) for _ in range(rng.choice((1, 2, 3, 6)))]
        return RECORD + RECORD.join(records)

    def run(self, case: bytes) -> None:
        """Check the counters and the page after every message, and finally send a good message."""
        _, name, *messages = (case if case.startswith(RECORD) else RECORD + case).split(RECORD)
        ingest = _CheckedIngest(name.decode(errors="replace"))
        for now, message in enumerate(messages, 100):
            ingest.now = float(now)
            ingest.chance = float(now % 2)  # check every second message for lost reports
            if now % 4 == 1:
                ingest.omit_labels()
            ingest.receive(message)
            ingest.checker.tick()
            ingest.check_page()
        ingest.receive_good_message()
        ingest.check_page()


def _message(rng: random.Random, known: list[dict[str, Any]]) -> bytes:
    """Generate a message with new flows and flows in ``known``. Add its flows to ``known``."""
    message = dict(rng.choice(recorded_messages()))
    if isinstance(message["Obj"], list):
        flows = rng.sample(message["Obj"], min(len(message["Obj"]), rng.randrange(1, 4)))
        if known and rng.random() < 0.5:
            flows.append(_later(rng, rng.choice(known)))
        message["Obj"] = flows
        known += flows
    message = copy_tree(message)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        change_value(rng, message, KEYS)
    if rng.random() < 0.2:
        _put_verbatim(rng, message)
    data = _encoded(rng, message)
    if rng.random() < 0.15:
        data = change_bytes(rng, data)
    if rng.random() < 0.03:
        data = rng.choice((data + data, data.decode(errors="replace").encode("utf-16"), b""))
    return data.replace(RECORD, b"")


def _later(rng: random.Random, flow: dict[str, Any]) -> dict[str, Any]:
    """Return a later report of a flow, with higher, lower or absurd numbers."""
    later: dict[str, Any] = copy_tree(flow)
    later["Last"] = rng.choice((later.get("Last", 0) + 1000, *NUMBERS))
    metric = later.get("Metric")
    if isinstance(metric, dict):
        for name in metric:
            metric[name] = rng.choice((metric[name], rng.randrange(10**6), rng.choice(NUMBERS)))
    if rng.random() < 0.2:
        later["FinishType"] = rng.choice((1, 2, 3, 4, -1, 2**40))
    if rng.random() < 0.2:
        later["UUID"] = rng.choice(TEXTS)
    return later


def _put_verbatim(rng: random.Random, message: dict[str, Any]) -> None:
    holder: Any = message
    if isinstance(message.get("Obj"), list) and message["Obj"] and rng.random() < 0.8:
        holder = rng.choice(message["Obj"])
        parts = [entry for entry in list_entries(holder) if isinstance(entry[0][entry[1]], dict)]
        if parts and rng.random() < 0.5:
            owner, key = rng.choice(parts)
            holder = owner[key]
    if isinstance(holder, dict):
        holder[rng.choice([*holder, "x"])] = rng.choice(VERBATIM)


def _encoded(rng: random.Random, tree: Any) -> bytes:
    """Encode a tree as JSON with random spacing, escaping and duplicate keys."""
    space = rng.choice((b"", b"", b"", b" ", b"\n\t"))
    ascii_only = rng.random() < 0.5
    repeats_key = rng.random() < 0.1

    def write(value: Any) -> bytes:
        if isinstance(value, Verbatim):
            return value
        if isinstance(value, dict):
            items = list(value.items())
            if repeats_key and items:
                items.append(rng.choice(items))
            return (
                b"{"
                + (b"," + space).join(
                    write(str(key)) + b":" + space + write(item) for key, item in items
                )
                + b"}"
            )
        if isinstance(value, list):
            return b"[" + (b"," + space).join(map(write, value)) + b"]"
        text = json.dumps(value, ensure_ascii=ascii_only)
        return text.encode(errors="surrogatepass")

    return write(tree)


class _CheckedIngest(IngestSetup):
    """An ingest that is checked after each message."""

    _numbers = count()

    def __init__(self, name: str) -> None:
        config = load_config(name)
        super().__init__(config, max_connections=MAX_CONNECTIONS, max_flows=2 * MAX_CONNECTIONS)
        self.name = name
        self.standard = config.export.naming == "standard"
        self._check = getattr(_table, "check", lambda table: None)

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of counted messages, counted flows, and skipped or dropped flows."""
        errors = self.analyzer.errors
        return (
            sum(self.analyzer.messages.values()) + errors["malformed"] + errors["not_a_message"],
            self.analyzer.flows,
            sum(self.table.skipped.values())
            + sum(self.stats.flows_skipped.values())
            + sum(self.stats.flows_filtered.values()),
        )

    def receive(self, message: bytes) -> None:
        messages, flows, unused = self.counts()
        errors = dict(self.analyzer.errors)
        self.ingest.message(message, self.analyzer)
        self._check(self.table)
        now_messages, now_flows, now_unused = self.counts()
        assert now_messages == messages + 1, "the message is not counted exactly once"
        new_flows = now_flows - flows
        assert 0 <= now_unused - unused <= new_flows, "more flows are skipped than received"
        if now_unused - unused < new_flows:
            assert self.table.flows or self.table.overflowed_total, (
                "an accepted flow is not in the table"
            )
        if self.analyzer.errors == errors and (seen := _flows_in(message)) is not None:
            assert new_flows == seen, "not every flow is counted"
        assert self.table.bytes < MAX_TABLE_BYTES
        assert self.table.connections <= MAX_CONNECTIONS + 1
        assert self.table.flows <= 2 * MAX_CONNECTIONS

    def receive_good_message(self) -> None:
        flow = GOOD | {"UUID": f"5e{next(self._numbers):x}"}
        before = self.counts()
        message = {"Namespace": "flow", "Type": "store", "Obj": [flow]}
        skipped = self.table.skipped
        self.ingest.message(json.dumps(message).encode(), self.analyzer)
        self._check(self.table)
        messages, flows, unused = self.counts()
        assert (messages, flows) == (before[0] + 1, before[1] + 1)
        if unused == before[2]:
            assert self.table.flows or self.table.overflowed_total
            if self.name == "default":
                assert b" 1234567\n" in self.page()
        elif not sum(self.stats.flows_filtered.values()):
            (reason,) = (r for r, n in self.table.skipped.items() if n != skipped[r])
            assert reason in LIMIT_SKIPS, reason

    def page(self, *, openmetrics: bool = False) -> bytes:
        page = self.table.page(self.now, openmetrics=openmetrics)
        return b"".join(iter(lambda: page.read(10_000), b""))

    def check_page(self) -> None:
        names = {family.name for view in self.plan.views for family in view.families}
        # the parser appends _total to names of counters
        suffixes = ("", "_total", "_bucket", "_sum", "_count")
        known = {f"{name}{suffix}" for name in names for suffix in suffixes}
        text = self.page().decode()
        series = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                assert sample.name in known, sample.name
                assert sample.value >= 0
                series.add((sample.name, *sorted(sample.labels.items())))
        lines = [line for line in text.split("\n") if line and not line.startswith("#")]
        assert len(series) == len(lines), "a series is not unique"
        if self.standard:
            marked = self.page(openmetrics=True).decode() + "# EOF\n"
            assert len(list(text_string_to_openmetrics_families(marked))) == len(names)
        captures = self.captures.page(self.now).decode()
        for _ in text_string_to_metric_families(captures):
            pass


def _flows_in(message: bytes) -> int | None:
    """Return the number of flows that Python's JSON module reads in a message.

    Return None if the message has no list of flows, or if an object has two equal keys.
    """
    try:
        tree = json.loads(message.decode(), object_pairs_hook=_reject_equal_keys)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or tree.get("Type") != "store":
        return None
    namespace = tree.get("Namespace")
    if namespace != "flow" and not str(namespace).startswith("flow/"):
        return None
    return len(tree["Obj"]) if isinstance(tree.get("Obj"), list) else None


def _reject_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("parsers treat equal keys differently")
    return dict(pairs)
