"""A simple connector, compared with skyfast.

    python -m benchmarks.naive ANALYZER_PORT PORT

The connector uses websockets, json, a dict, and gauges of prometheus_client. The functions and
metrics are those of the Go connector, with one difference: if several flows have the same label
values, only one of these flows is exported.
"""

import asyncio
import json
import sys
import time
from typing import Any

import websockets
from prometheus_client import CollectorRegistry, Gauge, start_http_server

TIMEOUT_S = 600
CLEAN_UP_INTERVAL_S = 60

LABELS = (
    "initiator_ip",
    "target_ip",
    "initiator_port",
    "target_port",
    "direction",
    "node_tid",
    "protocol",
)


class Connector:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bytes, self._packets, self._rtt = (
            Gauge(f"skydive_network_connection_{name}", text, LABELS, registry=self.registry)
            for name, text in (
                ("total_bytes", "Bytes transferred on this connection."),
                ("total_packets", "Packets transferred on this connection."),
                ("rtt_nanoseconds", "Round-trip time of this connection."),
            )
        )
        self._seen: dict[tuple[str, ...], float] = {}

    def message(self, data: str | bytes) -> None:
        message = json.loads(data)
        if message["Type"] != "store":
            return
        for flow in message["Obj"] or ():
            if "Transport" in flow:
                self._flow(flow)

    def _flow(self, flow: dict[str, Any]) -> None:
        network, transport, metric = flow["Network"], flow["Transport"], flow["Metric"]
        ends = (network["A"], network["B"], str(transport["A"]), str(transport["B"]))
        rest = (flow["NodeTID"], transport["Protocol"])
        there = (*ends, "initiator_to_target", *rest)
        back = (*ends, "target_to_initiator", *rest)
        self._bytes.labels(*there).set(metric["ABBytes"])
        self._bytes.labels(*back).set(metric["BABytes"])
        self._packets.labels(*there).set(metric["ABPackets"])
        self._packets.labels(*back).set(metric["BAPackets"])
        if metric.get("RTT"):
            self._rtt.labels(*there).set(metric["RTT"])
        self._seen[ends + rest] = time.monotonic()

    def clean_up(self) -> None:
        oldest_s = time.monotonic() - TIMEOUT_S
        for labels in [labels for labels, seen_s in self._seen.items() if seen_s < oldest_s]:
            del self._seen[labels]
            there = (*labels[:4], "initiator_to_target", *labels[4:])
            back = (*labels[:4], "target_to_initiator", *labels[4:])
            for gauge, tuples in (
                (self._bytes, (there, back)),
                (self._packets, (there, back)),
                (self._rtt, (there,)),
            ):
                for values in tuples:
                    gauge.remove(*values)


async def main(analyzer_port: int, port: int) -> None:
    connector = Connector()
    start_http_server(port, "127.0.0.1", registry=connector.registry)
    url = f"ws://127.0.0.1:{analyzer_port}/ws/subscriber/flow"
    headers = {"X-Host-ID": "naive", "X-Client-Type": "naive", "X-Websocket-Namespace": "flow"}
    cleaned_s = time.monotonic()
    async with websockets.connect(url, additional_headers=headers) as connection:
        async for data in connection:
            connector.message(data)
            if time.monotonic() - cleaned_s > CLEAN_UP_INTERVAL_S:
                connector.clean_up()
                cleaned_s = time.monotonic()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
