"""A network that never rests, for soak tests: the same one for the same seed.

Conversations begin with every step and end; ports are used again; agents restart; nodes, names,
applications and captures come, change and go, and their texts never come back. What comes out
are an analyzer's messages, the topology's answers, and what a correct sum of it all is.
"""

import contextlib
import itertools
import json
import multiprocessing
import random
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

FLOWS_PER_MESSAGE = 100
MAX_MESSAGE_BYTES = 400_000
NODES = 40
CAPTURES = 5
SERVERS = [f"192.168.{i // 250}.{1 + i % 250}" for i in range(500)]
PORTS = (443, 80, 53, 5432, 9100)
ROUNDS = (1, 1, 1, 2, 3)
"""How often a conversation is reported..."""
LONG_ROUNDS, LONG_ONE_IN = 12, 64
"""... and how often one in so many is."""
UNIT = (3, 1000, 2, 5000)
"""Packets and bytes, there and back, of each report."""
_UNITS = '"ABPackets":3,"ABBytes":1000,"BAPackets":2,"BABytes":5000'
MAX_PADDING = 900
RX_BYTES_A_STEP = 3_000_000_000
"""Of every interface, whose counters have 32 bits: they wrap with nearly every answer."""

_FIRST = '{"Namespace":"flow","Type":"store","UUID":"","Status":200,"Obj":['


class _Node:
    """An interface, whose agent has restarted ``restarts`` times."""

    __slots__ = ("labels", "name", "restarts", "rx_bytes", "tid")

    def __init__(self, tid: str) -> None:
        self.tid = tid
        self.name = f"eth-{tid[:8]}"
        self.restarts = 0
        self.rx_bytes = 0
        self.labels = ""  # of its latest conversation


class _Talk:
    """A conversation as one agent sees it."""

    __slots__ = ("labels", "left", "node", "reported", "restarts", "start_ms", "uuid")


class Churn:
    """The network. ``step_s`` is the time between two batches, ``report_s`` between two reports.

    ``begins_s`` is the Unix time before the first step.
    """

    def __init__(self, *, step_s: int, report_s: int, begins_s: float, seed: int = 1) -> None:
        self._chance = random.Random(seed)
        self._step_ms = step_s * 1000
        self._now_ms = int(begins_s * 1000)
        self._due: deque[list[_Talk]] = deque([] for _ in range(report_s // step_s))
        self._report_ms = report_s * 1000
        self._serial = itertools.count(1)
        self._nodes = [self._node() for _ in range(NODES)]
        self._captures = [f"capture-{next(self._serial)}" for _ in range(CAPTURES)]
        self._steps = 0
        self.reports = 0
        """How many were sent: each is worth `UNIT`."""
        self.begun = 0
        """Conversations so far, each of whose capture points counts."""

    @property
    def talks(self) -> int:
        """Conversations that will be reported again."""
        return sum(map(len, self._due))

    def step(self, fresh: int) -> Iterator[bytes]:
        """Yield the messages of the next step, in which ``fresh`` conversations begin."""
        self._steps += 1
        self._now_ms += self._step_ms
        now_ms = self._now_ms
        talks = self._due.popleft()
        talks += [self._talk(now_ms) for _ in range(fresh)]
        self._due.append([talk for talk in talks if talk.left > 1])
        for first in range(0, len(talks), FLOWS_PER_MESSAGE):
            some = talks[first : first + FLOWS_PER_MESSAGE]
            reports = ",".join([self._report(talk, now_ms) for talk in some])
            yield f"{_FIRST}{reports}]}}".encode()
        self.reports += len(talks)
        self.begun += fresh
        capture = self._captures[self._steps % CAPTURES]
        report = {"CaptureID": capture, "FlowCount": fresh, "FlowDropped": 1}
        yield json.dumps({"Namespace": "stats", "Type": "stats", "Obj": report}).encode()

    def rest(self, seconds: int) -> None:
        """Let so much time pass without a word."""
        self._now_ms += 1000 * seconds

    def restart_agent(self) -> None:
        """Let an agent forget its flows: they start over, most under new UUIDs."""
        self._chance.choice(self._nodes).restarts += 1

    def change_topology(self) -> None:
        """Replace a node and a capture, rename some nodes, and let counters of 32 bits wrap."""
        self._nodes[self._chance.randrange(NODES)] = self._node()
        self._captures[self._chance.randrange(CAPTURES)] = f"capture-{next(self._serial)}"
        for node in self._chance.sample(self._nodes, 4):
            node.name = f"eth-{next(self._serial):x}" + "-renamed" * self._chance.randrange(12)
        for node in self._nodes:
            node.rx_bytes = (node.rx_bytes + RX_BYTES_A_STEP) % 2**32

    def topology(self) -> bytes:
        """Return the topology as it is now."""
        return json.dumps([self._described(number) for number in range(NODES)]).encode()

    def _described(self, number: int) -> dict[str, Any]:
        node = self._nodes[number]
        servers = SERVERS[number::NODES]
        return {
            "ID": node.tid,
            "Host": f"host-{number}",
            "Metadata": {
                "TID": node.tid,
                "Name": node.name,
                "Type": "device",
                "EncapType": "ether",
                # Its last ones are nobody else's, and never come back.
                "IPV4": [f"{one}/16" for one in (*servers, *self._addresses(node))],
                "Metric": {"RxBytes": node.rx_bytes, "TxBytes": 2**63 - 1},
            },
            "UpdatedAt": self._steps,
        }

    def _addresses(self, node: _Node) -> list[str]:
        number = hash_of(node.name)
        return [f"172.{16 + number % 16}.{number >> 8 & 255}.{number >> 16 & 255}"]

    def _node(self) -> _Node:
        number = next(self._serial)
        padding = "" if number % 4 else "-" + "x" * self._chance.randrange(MAX_PADDING)
        return _Node(f"{number:08x}-0000-5000-b000-{number:012x}{padding}")

    def _talk(self, now_ms: int) -> _Talk:
        chance = self._chance.getrandbits(64)
        talk = _Talk()
        talk.node = node = self._nodes[chance % NODES]
        talk.restarts = node.restarts
        talk.uuid = self._uuid()
        talk.start_ms = now_ms - 1000
        talk.reported = 0
        talk.left = ROUNDS[(chance >> 8) % len(ROUNDS)]
        if not (chance >> 16) % LONG_ONE_IN:
            talk.left = LONG_ROUNDS
        if node.labels and not (chance >> 24) % 8:  # the ports are used again
            talk.labels = node.labels
        else:
            talk.labels = node.labels = self._labels(chance >> 28, node)
        return talk

    def _uuid(self) -> str:
        bits = self._chance.getrandbits(64)
        return f"{bits:x}" if bits % 16 else f"flow {bits:x} of another maker"

    def _labels(self, chance: int, node: _Node) -> str:
        number = next(self._serial)
        application = "TCP"
        if not chance % 8:
            application = rf"made of \\{number:x}\n" + "y" * (chance >> 3 & 511)
        target = SERVERS[(chance >> 12) % len(SERVERS)]
        if not chance >> 20 & 3:
            target = f"fd00::{number >> 16:x}:{number & 0xFFFF:x}"
        initiator = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        return (
            f'"LayersPath":"Ethernet/IPv4/TCP","Application":"{application}","Network":'
            f'{{"Protocol":"IPV4","A":"{initiator}","B":"{target}"}},"Transport":{{"Protocol":"TCP",'
            f'"A":{32768 + (chance >> 22 & 16383)},"B":{PORTS[(chance >> 5) % len(PORTS)]}}},'
            f'"NodeTID":"{node.tid}","CaptureID":"{self._captures[chance % CAPTURES]}"'
        )

    def _report(self, talk: _Talk, now_ms: int) -> str:
        node = talk.node
        if talk.restarts != node.restarts:
            talk.restarts = node.restarts
            # One that came back with just what it had could not be told from one that stood still.
            if node.restarts % 2 or talk.reported < 2:
                talk.uuid = self._uuid()
            talk.reported = 0
            talk.start_ms = now_ms - 1000
        first_ms = now_ms - self._report_ms if talk.reported else talk.start_ms
        talk.reported += 1
        talk.left -= 1
        n, start_ms = talk.reported, talk.start_ms
        return (
            f'{{"UUID":"{talk.uuid}",{talk.labels},"LastUpdateMetric":{{{_UNITS},"Start":{first_ms}'
            f',"Last":{now_ms}}},"Metric":{{"ABPackets":{3 * n},"ABBytes":{1000 * n},"BAPackets":'
            f'{2 * n},"BABytes":{5000 * n},"Start":{start_ms},"Last":{now_ms},"RTT":{1 + n}}},'
            f'"Start":{start_ms},"Last":{now_ms},"FinishType":{int(not talk.left)}}}'
        )


class Elsewhere:
    """A `Churn` in a process of its own, whose memory is not mixed with ours. To be closed.

    What a network remembers of its conversations would lie between what is measured.
    """

    def __init__(self, **options: Any) -> None:
        """Begin a churn with these options."""
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_answer, args=(theirs, options), daemon=True)
        self._process.start()
        theirs.close()
        # All messages come here: those that are kept for later would lie there, too.
        self._message = bytearray(MAX_MESSAGE_BYTES)
        self.reports = self.begun = 0
        """As a `Churn`'s, after the last step of which all messages were read."""
        self.topology: bytes | None = None
        """As it is after that step, if it has changed in it."""

    def steps(self, fresh: Sequence[int], *, eventful: int) -> Iterator[Iterator[memoryview]]:
        """Play as many steps, and yield the messages of each: to be read before the next.

        A message holds until the next one. The process goes on while they are looked at. After the
        first step, and each ``eventful`` ones, an agent restarts and the topology changes.
        """
        self._pipe.send(("steps", (fresh, eventful)))
        for _ in fresh:
            yield self._messages()

    def rest(self, seconds: int) -> None:
        self._pipe.send(("rest", (seconds,)))

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _messages(self) -> Iterator[memoryview]:
        while size := self._pipe.recv_bytes_into(self._message):
            yield memoryview(self._message)[:size]
        self.reports, self.begun, self.topology = self._pipe.recv()


def _answer(pipe: Connection, options: dict[str, Any]) -> None:
    churn = Churn(**options)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name, arguments = pipe.recv()
            if name == "rest":
                churn.rest(*arguments)
            else:
                _play(pipe, churn, *arguments)


def _play(pipe: Connection, churn: Churn, fresh: Sequence[int], eventful: int) -> None:
    for step, each in enumerate(fresh):
        for message in churn.step(each):
            pipe.send_bytes(message)
        pipe.send_bytes(b"")
        topology = None
        if step % eventful == 0:
            churn.restart_agent()
            churn.change_topology()
            topology = churn.topology()
        pipe.send((churn.reports, churn.begun, topology))


def hash_of(text: str) -> int:
    """Return a number that a text has in every process."""
    return int.from_bytes(text.encode()[-24:]) % 1_000_003
