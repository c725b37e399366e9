"""Flows to measure with: a real one's shape, any number of connections, the same in every run
but for their dates, which are those of the last minutes.

A message is made once as a template, in which every running total and every time has the same
two bytes, `ROUND`, where a round's two digits belong. So the reports of another round are one
`bytes.replace`, cheaper than anything that is measured.
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
"""What an analyzer puts into one at most."""

ADDRESSES = 20_000
NODES = 500
TARGET_PORTS = (443, 80, 53, 5432, 6379, 8080, 9092, 9100)
FIRST_PORT, PORTS = 32_768, 28_232
"""Linux's ephemeral ports."""

ROUND = b"@@"
BEHIND_MS = 10_000
FIRST_ROUND = 10
LAST_ROUND = 99

_HEAD = b'{"Namespace":"flow","Type":"store","UUID":"%032x","Status":200,"Obj":['


def _recorded() -> dict[str, Any]:
    """Return the longest TCP flow of the recording."""
    flows = [
        flow
        for line in RECORDING.read_bytes().splitlines()
        if (message := json.loads(line))["Type"] == "store"
        for flow in message["Obj"] or ()
        if flow.get("Transport", {}).get("Protocol") == "TCP" and "RTT" in flow["Metric"]
    ]
    return max(flows, key=lambda flow: len(json.dumps(flow)))


def _template() -> bytes:
    """Return a flow as Go writes it, with places for what differs, in the order of `_flow`."""
    flow = _recorded()
    texts, numbers = "<text>", "<number>"
    total = f"<{ROUND.decode()}number>"
    # A round is a tenth of a second of ten seconds in the past. Flows that are dated minutes before
    # now, or in the future, are looked at one by one.
    dated = str(int(1000 * time.time()) - BEHIND_MS)
    before, after = dated[:9], dated[11:]
    time_ms = f"<{before}{ROUND.decode()}{after}>"
    flow["UUID"] = texts
    flow["Network"] |= {"A": texts, "B": texts}
    flow["Transport"] |= {"A": numbers, "B": numbers}
    # In its first report, a flow's update begins with the flow.
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
    """``count`` flows, each of a connection of its own, known by their numbers from 0 on."""

    def __init__(self, count: int) -> None:
        chance = random.Random(1)
        self.count = count
        self._template = _template()
        self._keys = array("Q", chance.randbytes(8 * count))
        self._noise = array("Q", chance.randbytes(8 * count))
        self._addresses = [
            b"10.%d.%d.%d" % tuple(n.to_bytes(3, "big"))
            for n in chance.sample(range(1 << 24), ADDRESSES)
        ]
        self._nodes = [
            b"%08x-%04x-5%03x-b%03x-%012x"
            % tuple(chance.getrandbits(n) for n in (32, 16, 12, 12, 48))
            for _ in range(NODES)
        ]

    def templates(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield messages that report these flows, with `ROUND` in them."""
        for start in range(0, len(numbers), FLOWS_PER_MESSAGE):
            head = _HEAD % start
            yield (
                head
                + b",".join(map(self._flow, numbers[start : start + FLOWS_PER_MESSAGE]))
                + b"]}"
            )

    def messages(self, numbers: Sequence[int], round_: int) -> Iterator[bytes]:
        """Yield messages of one round."""
        return of_round(self.templates(numbers), round_)

    def some(self, count: int, among: int) -> list[int]:
        """Return ``count`` numbers below ``among``, each once, in an order that is not theirs."""
        return random.Random(2).sample(range(among), min(count, among))

    def _flow(self, number: int) -> bytes:
        key, noise = self._keys[number], self._noise[number]
        initiator = number * 7_919 % ADDRESSES
        tracking = b"%x" % (key ^ 0x5555)
        return self._template % (
            b"%x" % key,
            self._addresses[initiator],
            self._addresses[noise % ADDRESSES],
            # An initiator never has the same port twice: that makes the connections distinct.
            FIRST_PORT + (number // ADDRESSES * 7_919 + initiator * 31) % PORTS,
            TARGET_PORTS[noise >> 16 & 7],
            100 + (noise >> 20) % 900,
            100_000 + (noise >> 24) % 900_000,
            100 + (noise >> 28) % 900,
            10_000 + (noise >> 32) % 90_000,
            10_000 + (noise >> 36) % 90_000,
            tracking,
            tracking,
            self._nodes[initiator % NODES],
        )


def of_round(templates: Iterable[bytes], round_: int) -> Iterator[bytes]:
    """Yield the messages of one round of ``templates``."""
    assert FIRST_ROUND <= round_ <= LAST_ROUND
    digits = b"%d" % round_
    return (template.replace(ROUND, digits) for template in templates)
