"""Generated flows: modified copies of one recorded flow, with any number of connections.

Only the times of flows differ between runs.

A *round* is one report of each flow. Each message is generated once, as a template whose totals and
times contain the two bytes `ROUND`. For each round, `bytes.replace` replaces these bytes with the
two digits of the round. The replacement takes less time than any measured operation.
"""

import json
import random
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

RECORDING = Path(__file__).parent.parent / "tests/data/recordings/one-analyzer.jsonl"

FLOWS_PER_MESSAGE = 100
"""The maximum number of flows in a message of an analyzer."""

ADDRESSES = 20_000
NODES = 500
TARGET_PORTS = (443, 80, 53, 5432, 6379, 8080, 9092, 9100)
FIRST_PORT, PORTS = 32_768, 28_232
"""The ephemeral ports of Linux."""

ROUND = b"@@"
BEHIND_MS = 10_000
FIRST_ROUND = 10
LAST_ROUND = 99

_HEAD = b'{"Namespace":"flow","Type":"store","UUID":"%032x","Status":200,"Obj":['


def _longest_recorded_tcp_flow() -> dict[str, Any]:
    flows = [
        flow
        for line in RECORDING.read_bytes().splitlines()
        if (message := json.loads(line))["Type"] == "store"
        for flow in message["Obj"] or ()
        if flow.get("Transport", {}).get("Protocol") == "TCP" and "RTT" in flow["Metric"]
    ]
    return max(flows, key=lambda flow: len(json.dumps(flow)))


def _template() -> bytes:
    """Return a flow as Go writes it, with a placeholder for each value of `Flows._flow`."""
    flow = _longest_recorded_tcp_flow()
    texts, numbers = "<text>", "<number>"
    total = f"<{ROUND.decode()}number>"
    # The times of the first round are 9 to 19 s in the past. Each further round is 0.1 s later. If
    # times were minutes off, skyfast would spend CPU time on checking the clock skew of each flow.
    dated = str(int(1000 * time.time()) - BEHIND_MS)
    before, after = dated[:9], dated[11:]
    time_ms = f"<{before}{ROUND.decode()}{after}>"
    flow["UUID"] = texts
    flow["Network"] |= {"A": texts, "B": texts}
    flow["Transport"] |= {"A": numbers, "B": numbers}
    # In first reports, ``LastUpdateMetric.Start`` equals ``Start``.
    flow["Start"] = flow["Metric"]["Start"] = int(f"{before}{FIRST_ROUND}{after}")
    flow["LastUpdateMetric"] |= {"Start": time_ms, "Last": time_ms}
    flow["Metric"] |= dict.fromkeys(("ABPackets", "ABBytes", "BAPackets", "BABytes"), total)
    flow["Metric"] |= {"Last": time_ms, "RTT": numbers}
    flow["Last"] = time_ms
    flow["TrackingID"] = flow["L3TrackingID"] = texts
    flow["NodeTID"] = texts
    text = json.dumps(flow, separators=(",", ":"))
    text = text.replace('"<number>"', "%d").replace("<text>", "%b")
    text = text.replace(f'"<{ROUND.decode()}number>"', f"{ROUND.decode()}%d")
    return text.replace('"<', "").replace('>"', "").encode()


class Flows:
    """``count`` flows, numbered from 0. Each flow has its own connection."""

    def __init__(self, count: int, flows_per_message: int = FLOWS_PER_MESSAGE) -> None:
        chance = random.Random(1)
        self.count = count
        self._flows_per_message = flows_per_message
        self._template = _template()
        self._keys = array("Q", chance.randbytes(8 * count))
        self._noise = array("Q", chance.randbytes(8 * count))
        self.addresses = [
            b"10.%d.%d.%d" % tuple(n.to_bytes(3, "big"))
            for n in chance.sample(range(1 << 24), ADDRESSES)
        ]
        self.nodes = [
            b"%08x-%04x-5%03x-b%03x-%012x"
            % tuple(chance.getrandbits(n) for n in (32, 16, 12, 12, 48))
            for _ in range(NODES)
        ]

    def templates(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield templates of messages that report the flows with these numbers."""
        size = self._flows_per_message
        for start in range(0, len(numbers), size):
            flows = map(self._flow, numbers[start : start + size])
            yield _HEAD % start + b",".join(flows) + b"]}"

    def messages(self, numbers: Sequence[int], round_: int) -> Iterator[bytes]:
        """Yield the messages of a round that report the flows with these numbers."""
        return of_round(self.templates(numbers), round_)

    def sample(self, count: int, among: int) -> list[int]:
        """Return ``count`` distinct numbers below ``among``, in random order."""
        return random.Random(2).sample(range(among), min(count, among))

    def _flow(self, number: int) -> bytes:
        key, noise = self._keys[number], self._noise[number]
        initiator = number * 7_919 % ADDRESSES
        tracking = b"%x" % (key ^ 0x5555)
        return self._template % (
            b"%x" % key,
            self.addresses[initiator],
            self.addresses[noise % ADDRESSES],
            # Each port of an initiator is used once, so all connections are distinct.
            FIRST_PORT + (number // ADDRESSES * 7_919 + initiator * 31) % PORTS,
            TARGET_PORTS[noise >> 16 & 7],
            100 + (noise >> 20) % 900,
            100_000 + (noise >> 24) % 900_000,
            100 + (noise >> 28) % 900,
            10_000 + (noise >> 32) % 90_000,
            10_000 + (noise >> 36) % 90_000,
            tracking,
            tracking,
            self.nodes[initiator % NODES],
        )


def of_round(templates: Iterable[bytes], round_: int) -> Iterator[bytes]:
    """Yield the messages of a round, made from templates."""
    assert FIRST_ROUND <= round_ <= LAST_ROUND
    digits = b"%d" % round_
    return (template.replace(ROUND, digits) for template in templates)
