"""How much CPU time does the whole process need per flow, from the socket to the table?

Not measured: a network; TLS.
"""

import itertools
import statistics

from benchmarks import programs
from benchmarks.analyzer import Analyzer
from benchmarks.core import Decoder
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import SCALE, Remote, Report, ratio_at_least, ratio_at_most
from benchmarks.programs import Program

PROCESSES = 3
ROUNDS = 4
"""Rounds of known flows in each process."""

SHARDS = 3
"""Only one of these shards is measured."""

NAIVE_FLOWS = SCALE // 5
"""The naive connector gets fewer flows, to save time. Its cost per flow is constant."""


def run(report: Report) -> None:
    decode, new, known, rate = [], [], [], []
    with Remote(Decoder, SCALE) as decoder, Remote(Analyzer, SCALE) as analyzer:
        for _ in range(PROCESSES):
            with programs.skyfast(analyzer) as program:
                decode.append([decoder.call(Decoder.run)])
                new += _new(program, analyzer, SCALE)
                analyzer.call(Analyzer.load_some, SCALE)
                for round_ in range(FIRST_ROUND + 1, FIRST_ROUND + 1 + ROUNDS):
                    decode[-1].append(decoder.call(Decoder.run))
                    cpu_s, seconds = program.round(round_)
                    known.append(cpu_s / SCALE * 1e9)
                    rate.append(SCALE / seconds)
                decode[-1].append(decoder.call(Decoder.run))
                assert program.metric("skyfast_flows_total") == (1 + ROUNDS) * SCALE
                assert program.metric("skyfast_connections") == SCALE
                assert program.metric("skyfast_flows_skipped_total") == 0
        with programs.receiver(analyzer) as program:
            received = [program.round(FIRST_ROUND)[0] / SCALE * 1e9 for _ in range(ROUNDS)]
        with programs.skyfast(analyzer, options=[f"--shard=0/{SHARDS}"]) as program:
            shard_new = _new(program, analyzer, SCALE)
            analyzer.call(Analyzer.load_some, SCALE)
            rounds = range(FIRST_ROUND + 1, FIRST_ROUND + 1 + ROUNDS)
            shard_known = [program.round(round_)[0] / SCALE * 1e9 for round_ in rounds]

    # Compare each round with the mean of the decoder's runs before and after the round.
    around = [[statistics.mean(pair) for pair in itertools.pairwise(ns)] for ns in decode]
    report.add("decoding with msgspec", [ns for alone in decode for ns in alone], "ns per flow")
    report.add("skyfast, receiving only", received, "ns per flow")
    report.add(
        "skyfast, known flows",
        known,
        "ns per flow",
        to="decoding",
        over=[ns for alone in around for ns in alone[1:]],
        target=ratio_at_most(1.6),
    )
    report.add(
        "skyfast, new flows",
        new,
        "ns per flow",
        to="decoding",
        over=[alone[0] for alone in around],
        target=ratio_at_most(2.2),
    )
    report.add("skyfast, known flows, elapsed time", rate, "flows/s")
    what = f"one of {SHARDS} shards"
    report.add(f"{what}, known flows", shard_known, "ns per flow", to="skyfast, known", over=known)
    report.add(f"{what}, new flows", shard_new, "ns per flow", to="skyfast, new", over=new)
    with Remote(Analyzer, NAIVE_FLOWS) as analyzer, programs.naive(analyzer) as program:
        _peer(report, "naive Python", program, analyzer, NAIVE_FLOWS, new=new, known=known)
    if programs.GO_CONNECTOR:
        with Remote(Analyzer, SCALE) as analyzer, programs.go(analyzer) as program:
            _peer(report, "Go connector", program, analyzer, SCALE, new=new, known=known)


def _new(program: Program, analyzer: Remote[Analyzer], flows: int) -> list[float]:
    analyzer.call(Analyzer.load, 0, flows)
    return [program.round(FIRST_ROUND)[0] / flows * 1e9]


def _peer(
    report: Report,
    name: str,
    program: Program,
    analyzer: Remote[Analyzer],
    flows: int,
    *,
    new: list[float],
    known: list[float],
) -> None:
    theirs = _new(program, analyzer, flows)
    report.add(f"{name}, new flows", theirs, "ns per flow", to="skyfast, new", over=new)
    analyzer.call(Analyzer.load_some, flows)
    theirs = [program.round(FIRST_ROUND + 1)[0] / flows * 1e9]
    report.add(
        f"{name}, known flows",
        theirs,
        "ns per flow",
        to="skyfast, known",
        over=known,
        target=ratio_at_least(8),
    )
