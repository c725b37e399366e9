"""Generates random traffic of a constantly changing network for soak tests.

Conversations start and end in every step, and their ports are reused. Agents restart. Nodes, names,
applications and captures appear, change and disappear. Most strings occur only once. Equal seeds
give equal traffic.
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
"""Most conversations have one of these numbers of reports."""
LONG_ROUNDS, LONG_ONE_IN = 12, 64
"""One in ``LONG_ONE_IN`` conversations has ``LONG_ROUNDS`` reports."""
UNIT = (3, 1000, 2, 5000)
"""The packets and bytes in each report, from initiator to target and from target to initiator."""
_UNITS = '"ABPackets":3,"ABBytes":1000,"BAPackets":2,"BABytes":5000'
MAX_PADDING = 900
RX_BYTES_PER_CHANGE = 3_000_000_000
"""Increase of each interface counter at each topology change. The 32-bit counters wrap at seven of
ten changes."""

_FIRST = '{"Namespace":"flow","Type":"store","UUID":"","Status":200,"Obj":['


class _Node:
    """An interface, and the number of restarts of its agent."""

    __slots__ = ("labels", "name", "restarts", "rx_bytes", "tid")

    def __init__(self, tid: str) -> None:
        self.tid = tid
        self.name = f"eth-{tid[:8]}"
        self.restarts = 0
        self.rx_bytes = 0
        self.labels = ""
        """Labels of the latest conversation at this interface."""


class _Conversation:
    """A conversation as one agent sees it."""

    __slots__ = ("labels", "left", "node", "reported", "restarts", "start_ms", "uuid")


class LoadGenerator:
    """``start_s`` is the Unix time before the first step."""

    def __init__(self, *, step_s: int, report_s: int, start_s: float, seed: int = 1) -> None:
        self._chance = random.Random(seed)
        self._step_ms = step_s * 1000
        self._now_ms = int(start_s * 1000)
        self._due: deque[list[_Conversation]] = deque([] for _ in range(report_s // step_s))
        self._report_ms = report_s * 1000
        self._serial = itertools.count(1)
        self._nodes = [self._node() for _ in range(NODES)]
        self._captures = [f"capture-{next(self._serial)}" for _ in range(CAPTURES)]
        self._steps = 0
        self.reports = 0
        """Number of reports so far. Each report adds `UNIT` to the totals."""
        self.started = 0

    @property
    def conversations(self) -> int:
        """Number of conversations that will be reported again."""
        return sum(map(len, self._due))

    def step(self, new_conversations: int) -> Iterator[bytes]:
        """Start ``new_conversations``, and yield the messages of this step."""
        self._steps += 1
        self._now_ms += self._step_ms
        now_ms = self._now_ms
        conversations = self._due.popleft()
        conversations += [self._conversation(now_ms) for _ in range(new_conversations)]
        self._due.append([conversation for conversation in conversations if conversation.left > 1])
        for first in range(0, len(conversations), FLOWS_PER_MESSAGE):
            batch = conversations[first : first + FLOWS_PER_MESSAGE]
            reports = ",".join([self._report(conversation, now_ms) for conversation in batch])
            yield f"{_FIRST}{reports}]}}".encode()
        self.reports += len(conversations)
        self.started += new_conversations
        capture = self._captures[self._steps % CAPTURES]
        report = {"CaptureID": capture, "FlowCount": new_conversations, "FlowDropped": 1}
        yield json.dumps({"Namespace": "stats", "Type": "stats", "Obj": report}).encode()

    def advance(self, seconds: int) -> None:
        self._now_ms += 1000 * seconds

    def restart_agent(self) -> None:
        """Restart an agent: its totals start again from zero, and most flows get new UUIDs."""
        self._chance.choice(self._nodes).restarts += 1

    def change_topology(self) -> None:
        """Replace a node and a capture, rename some nodes, and increase the interface counters."""
        self._nodes[self._chance.randrange(NODES)] = self._node()
        self._captures[self._chance.randrange(CAPTURES)] = f"capture-{next(self._serial)}"
        for node in self._chance.sample(self._nodes, 4):
            node.name = f"eth-{next(self._serial):x}" + "-renamed" * self._chance.randrange(12)
        for node in self._nodes:
            node.rx_bytes = (node.rx_bytes + RX_BYTES_PER_CHANGE) % 2**32

    def topology(self) -> bytes:
        return json.dumps([self._describe(number) for number in range(NODES)]).encode()

    def _describe(self, number: int) -> dict[str, Any]:
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
                # The last address comes from the node's name. Renaming the node removes this
                # address forever.
                "IPV4": [f"{address}/16" for address in (*servers, *self._addresses(node))],
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

    def _conversation(self, now_ms: int) -> _Conversation:
        chance = self._chance.getrandbits(64)
        conversation = _Conversation()
        conversation.node = node = self._nodes[chance % NODES]
        conversation.restarts = node.restarts
        conversation.uuid = self._uuid()
        conversation.start_ms = now_ms - 1000
        conversation.reported = 0
        conversation.left = ROUNDS[(chance >> 8) % len(ROUNDS)]
        if not (chance >> 16) % LONG_ONE_IN:
            conversation.left = LONG_ROUNDS
        # Some conversations have the endpoints of the previous conversation at this node.
        if node.labels and not (chance >> 24) % 8:
            conversation.labels = node.labels
        else:
            conversation.labels = node.labels = self._labels(chance >> 28, node)
        return conversation

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

    def _report(self, conversation: _Conversation, now_ms: int) -> str:
        node = conversation.node
        if conversation.restarts != node.restarts:
            conversation.restarts = node.restarts
            # At every second restart, all flows get new UUIDs. At the other restarts, only flows
            # with at most one report (since the previous restart) get new UUIDs. With the old UUID,
            # the next report of such a flow would repeat the same totals, as if the flow was idle.
            if node.restarts % 2 or conversation.reported < 2:
                conversation.uuid = self._uuid()
            conversation.reported = 0
            conversation.start_ms = now_ms - 1000
        first_ms = now_ms - self._report_ms if conversation.reported else conversation.start_ms
        conversation.reported += 1
        conversation.left -= 1
        n, start_ms = conversation.reported, conversation.start_ms
        return (
            f'{{"UUID":"{conversation.uuid}",{conversation.labels},"LastUpdateMetric":{{{_UNITS},'
            f'"Start":{first_ms},"Last":{now_ms}}},"Metric":{{"ABPackets":{3 * n},'
            f'"ABBytes":{1000 * n},"BAPackets":{2 * n},"BABytes":{5000 * n},"Start":{start_ms},'
            f'"Last":{now_ms},"RTT":{1 + n}}},"Start":{start_ms},"Last":{now_ms},'
            f'"FinishType":{int(not conversation.left)}}}'
        )


class LoadGeneratorProcess:
    """A `LoadGenerator` in a separate process. Call `close` at the end.

    Soak tests measure the memory of their own process, which must not contain the conversations.
    """

    def __init__(self, **options: Any) -> None:
        """The options are the arguments of `LoadGenerator`."""
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, options), daemon=True)
        self._process.start()
        child_pipe.close()
        # Separate buffers would change the measured memory.
        self._message = bytearray(MAX_MESSAGE_BYTES)
        self.reports = self.started = 0
        """Updated at the end of each step."""
        self.topology: bytes | None = None
        """The topology, or None if the latest step did not change it."""

    def steps(
        self, new_conversations: Sequence[int], *, change_interval: int
    ) -> Iterator[Iterator[memoryview]]:
        """Run one step per element of ``new_conversations``, and yield the messages of the step.

        Read all messages of a step before the next step. Each message is valid until the next one
        is read. After the first step, and then after every ``change_interval`` steps, an agent
        restarts and the topology changes.
        """
        self._pipe.send(("steps", (new_conversations, change_interval)))
        for _ in new_conversations:
            yield self._messages()

    def advance(self, seconds: int) -> None:
        self._pipe.send(("advance", (seconds,)))

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _messages(self) -> Iterator[memoryview]:
        while size := self._pipe.recv_bytes_into(self._message):
            yield memoryview(self._message)[:size]
        self.reports, self.started, self.topology = self._pipe.recv()


def _serve(pipe: Connection, options: dict[str, Any]) -> None:
    generator = LoadGenerator(**options)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name, arguments = pipe.recv()
            if name == "advance":
                generator.advance(*arguments)
            else:
                _run_steps(pipe, generator, *arguments)


def _run_steps(
    pipe: Connection,
    generator: LoadGenerator,
    new_conversations: Sequence[int],
    change_interval: int,
) -> None:
    for step, count in enumerate(new_conversations):
        for message in generator.step(count):
            pipe.send_bytes(message)
        pipe.send_bytes(b"")
        topology = None
        if step % change_interval == 0:
            generator.restart_agent()
            generator.change_topology()
            topology = generator.topology()
        pipe.send((generator.reports, generator.started, topology))


def hash_of(text: str) -> int:
    """Return a hash that, unlike `hash`, is the same in every process."""
    return int.from_bytes(text.encode()[-24:]) % 1_000_003
