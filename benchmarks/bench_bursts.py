"""What does a flow cost in a burst after a pause, with several analyzers, or in small messages?

Not measured: a network; TLS.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from benchmarks import programs
from benchmarks.analyzer import Analyzer
from benchmarks.core import Decoder
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE
from benchmarks.harness import SCALE, Remote, Report, Target, ratio_at_most
from benchmarks.programs import Program

FLOWS = SCALE // 2
"""Number of flows in a burst, which is like simultaneous reports of many agents."""

BURSTS = 7
FEW_BURSTS = 4
"""With small messages, the results vary less, so fewer bursts are enough."""

PAUSE_S = 1.0
"""skyfast is idle for this time before each burst."""

ANALYZERS = 3
SMALL = (10, 1)
"""Numbers of flows per small message."""

EXPIRY_S = 2.5
"""With the configuration `SHORT_LIVED`, all flows are forgotten after this time."""

SHORT_LIVED = """\
      connection_grace: 0
      flow_memory: 0
"""

KNOWN, NEW = ratio_at_most(1.6), ratio_at_most(2.2)


class Bursts:
    """A skyfast process, a decoder, and analyzers. Each analyzer sends a part of the flows."""

    def __init__(
        self,
        stack: ExitStack,
        *,
        analyzers: int = 1,
        flows_per_message: int = FLOWS_PER_MESSAGE,
        config: str = programs.CONFIG,
    ) -> None:
        self.decoder = stack.enter_context(Remote(Decoder, FLOWS, flows_per_message))
        self._analyzers = [
            stack.enter_context(Remote(Analyzer, FLOWS, flows_per_message))
            for _ in range(analyzers)
        ]
        program = programs.skyfast(*self._analyzers, config=config)
        self.program: Program = stack.enter_context(program)
        for number, analyzer in enumerate(self._analyzers):
            share = range(FLOWS)[number * FLOWS // analyzers : (number + 1) * FLOWS // analyzers]
            analyzer.call(Analyzer.load, share.start, share.stop)

    def run(self, rounds: Sequence[int], pause_s: float) -> tuple[list[float], list[float]]:
        """Send bursts. Return the ns per flow of each burst, for skyfast and for decoding alone.

        Decoding is measured before and after each burst. The returned time is the mean of both.
        """
        ns, alone = [], [self.decoder.call(Decoder.run)]
        for round_ in rounds:
            time.sleep(pause_s)
            cpu_s, _ = self.program.round(round_)
            ns.append(cpu_s / FLOWS * 1e9)
            alone.append(self.decoder.call(Decoder.run))
        return ns, [statistics.mean(pair) for pair in itertools.pairwise(alone)]


def run(report: Report) -> None:
    with ExitStack() as stack:
        config = programs.CONFIG.replace("connection_timeout: 600", "connection_timeout: 1")
        bursts = Bursts(stack, config=config + SHORT_LIVED)
        ns, alone = bursts.run([FIRST_ROUND] * BURSTS, EXPIRY_S)
        _add(report, "new flows, growing table", ns[:1], alone[:1], None)
        _add(report, "new flows, freed rows", ns[1:], alone[1:], NEW)
        _fail_if_a_flow_is_missing(bursts.program, BURSTS, connections=0)
    for what, build, count, target in (
        ("known flows", Bursts, BURSTS, KNOWN),
        (f"known flows, {ANALYZERS} analyzers at once", _several, BURSTS, KNOWN),
        *((f"known flows, messages of {size}", _small(size), FEW_BURSTS, None) for size in SMALL),
    ):
        known = range(FIRST_ROUND + 1, FIRST_ROUND + 1 + count)
        with ExitStack() as stack:
            bursts = build(stack)
            bursts.program.round(FIRST_ROUND)
            _add(report, what, *bursts.run(known, PAUSE_S), target)
            _fail_if_a_flow_is_missing(bursts.program, 1 + count, connections=FLOWS)


def _several(stack: ExitStack) -> Bursts:
    return Bursts(stack, analyzers=ANALYZERS)


def _small(size: int) -> Callable[[ExitStack], Bursts]:
    return lambda stack: Bursts(stack, flows_per_message=size)


def _add(
    report: Report, what: str, ns: list[float], alone: list[float], target: Target | None
) -> None:
    report.add(what, ns, "ns per flow", to="decoding", over=alone, target=target)


def _fail_if_a_flow_is_missing(program: Program, bursts: int, *, connections: int) -> None:
    end_s = time.monotonic() + 2 * EXPIRY_S
    while program.metric("skyfast_connections") != connections:
        assert time.monotonic() < end_s, f"not {connections} connections"
        time.sleep(EXPIRY_S / 10)
    assert program.metric("skyfast_flows_total") == bursts * FLOWS
    assert program.metric("skyfast_flows_skipped_total") == 0
