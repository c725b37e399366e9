"""Valid and invalid messages of an analyzer."""

import json
from typing import Any

from skyfast.skydive.json_repair import MAX_REPAIRED_TOKENS
from tests.support.sink import Sink

METRIC = {"ABPackets": 1, "ABBytes": 100, "BAPackets": 2, "BABytes": 200}


def flow(uuid: str = "ab", **changes: Any) -> dict[str, Any]:
    return {
        "UUID": uuid,
        "Network": {"Protocol": "IPV4", "A": "10.0.0.1", "B": "10.0.0.2"},
        "Transport": {"Protocol": "TCP", "A": 40000, "B": 443},
        "Metric": METRIC,
        "Start": 1000,
        "Last": 2000,
        "NodeTID": "tid",
    } | changes


def message(*flows: dict[str, Any] | bytes, namespace: str = "flow") -> bytes:
    parts = [f if isinstance(f, bytes) else json.dumps(f).encode() for f in flows]
    head = json.dumps({"Namespace": namespace, "Type": "store"}).encode()
    return head[:-1] + b',"Obj":[' + b",".join(parts) + b"]}"


DEEP = b"[" * 100_000 + b"]" * 100_000

BAD_FLOWS = {
    "a number as UUID": (b'{"UUID":5}', "invalid"),
    "not an object": (b"5", "invalid"),
    "null": (b"null", "invalid"),
    "a list": (b"[[]]", "invalid"),
    "no UUID": (flow(""), "no_uuid"),
    "an empty object": (b"{}", "no_uuid"),
    "no Network": (flow(Network=None), "no_network"),
    "no Transport": (flow(Transport=None), "no_transport"),
    "no Metric": (flow(Metric=None), "no_metric"),
    "Network of another type": (flow(Network=[1]), "invalid"),
    "a port in quotes": (flow(Transport={"A": "80", "B": 1}), "invalid"),
    "a fraction": (flow(Metric={"ABBytes": 1.5}), "invalid"),
    "a float": (flow(Metric={"ABBytes": 1e3}), "invalid"),
    "a negative number": (flow(Metric={"ABBytes": -1}), "out_of_range"),
    "a number above 2^62": (flow(Metric={"ABBytes": 2**62 + 1}), "out_of_range"),
    "a number with 30 digits": (flow(Metric={"ABBytes": 10**29}), "out_of_range"),
    "a number with 6,000 digits": (b'{"UUID":"x","Last":1' + b"0" * 5999 + b"}", "out_of_range"),
    "a negative port": (flow(Transport={"A": -1, "B": 1}), "out_of_range"),
    "a negative Last": (flow(Last=-1), "out_of_range"),
    "a long UUID": (flow("x" * 10_000_000), "text_too_long"),
    "a long label": (flow(NodeTID="x" * 10_000_000), "text_too_long"),
    "invalid UTF-8 in the UUID": (b'{"UUID":"\xff"}', "invalid"),
    "a lone high surrogate": (rb'{"UUID":"\ud800"}', "invalid"),
    "a lone low surrogate": (rb'{"UUID":"a\udc00b"}', "invalid"),
    "a high surrogate before another escape": (rb'{"UUID":"\ud800\u0041"}', "invalid"),
    "deep nesting in a used field": (b'{"UUID":' + DEEP + b"}", "invalid"),
    "deep nesting in an unused field": (b'{"Evil":' + DEEP + b"}", "no_uuid"),
}

BAD_MESSAGES = {
    "empty": (b"", "malformed"),
    "truncated": (message(flow())[:-1], "malformed"),
    "truncated in a flow": (message(flow())[:-40], "malformed"),
    "an extra comma": (message(flow(), b'{"a":1,}'), "malformed"),
    "trailing data": (message(flow()) + b"x", "malformed"),
    "binary": (bytes(range(256)), "malformed"),
    "UTF-16": (message(flow()).decode().encode("utf-16"), "malformed"),
    "deep and truncated": (b'{"Obj":' + b"[" * 100_000, "malformed"),
    "too deep for its size": (
        b'{"Namespace":"flow","Type":"store","Obj":' + b"[{}," * MAX_REPAIRED_TOKENS,
        "malformed",
    ),
    "a list": (b"[]", "not_a_message"),
    "a number": (b"5", "not_a_message"),
    "null": (b"null", "not_a_message"),
    "a number as namespace": (b'{"Namespace":5}', "not_a_message"),
    "Obj is an object": (b'{"Namespace":"flow","Type":"store","Obj":{}}', "not_a_list"),
    "Obj is a string": (b'{"Namespace":"flow","Type":"store","Obj":"x"}', "not_a_list"),
}


def later(uuid: str, start: int, **changes: Any) -> dict[str, Any]:
    """Return a report that is not the first report of its flow."""
    update = {"ABPackets": 1, "ABBytes": 7, "Start": start + 1, "Last": 2000}
    return flow(uuid, Start=start, LastUpdateMetric=update) | changes


def values(sink: Sink, family: str) -> list[str]:
    """Return the values of a family, in the order of the page."""
    lines = [line for line in sink.page().splitlines() if line.startswith(family + "{")]
    return [line.rpartition(" ")[2] for line in lines]
