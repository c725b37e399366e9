"""What does a flow cost in the table, without decoding?"""

from benchmarks.core import Core, Decoder
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, SCALE, Remote, Report, at_most
from benchmarks.lookups import LABELS, Lookups

REPEATS = 5
BUDGET = 10_000
"""Size of a slice of relabeling, in flows."""

REPORTS = SCALE // 2
"""Number of known flows that each repeat reports."""


def run(report: Report) -> None:
    round_ = FIRST_ROUND + 1
    known = {}
    with Remote(Core, LARGE) as core, Remote(Decoder, SCALE) as decoder:
        for connections, target in ((SCALE, at_most(180)), (LARGE, at_most(300))):
            what = f"{connections:,} connections"
            alone = [decoder.call(Decoder.run)]
            _, update = core.call(Core.fill, connections)
            alone.append(decoder.call(Decoder.run))
            report.add(
                f"new flows, up to {what}", [update], "ns per flow", to="decoding", over=alone
            )
            known[connections] = _known(core, round_, in_order=False)
            report.add(
                f"known flows, {what}, random order",
                known[connections],
                "ns per flow",
                target=target,
            )
            round_ += REPEATS
            in_order = _known(core, round_, in_order=True)
            report.add(f"known flows, {what}, row order", in_order, "ns per flow")
            round_ += REPEATS
    with Remote(Core, SCALE, False) as core:
        core.call(Core.fill, SCALE)
        attributes = _known(core, FIRST_ROUND + 1, in_order=False)
    report.add(
        f"known flows, {SCALE:,} connections, fields read as attributes",
        attributes,
        "ns per flow",
        to="fields read by offset",
        over=known[SCALE],
    )
    _names(report)


def _names(report: Report) -> None:
    with Remote(Lookups, SCALE) as lookups:
        ns = lookups.call(Lookups.take_new)
        slices = {
            f"{pods:,} pods": lookups.call(Lookups.relabel, pods, BUDGET)
            for pods in (1, 100, 5_000)
        }
    what = f"names: {len(LABELS)} labels of"
    for name, ends in (("one end", 1), ("both ends", 2), ("ambiguous", 2)):
        added = [with_ - without for with_, without in zip(ns[name], ns["none"], strict=True)]
        where = "both ends, ambiguous addresses" if name == "ambiguous" else name
        report.add(
            f"{what} {where}, added to a new flow",
            added,
            "ns per flow",
            target=None if name == "ambiguous" else at_most(1000 * ends),
        )
    for name, ms in slices.items():
        report.add(f"names: slice of a relabeling of {name}, {SCALE:,} flows", ms, "ms")


def _known(core: Remote[Core], round_: int, *, in_order: bool) -> list[float]:
    return [core.call(Core.report, REPORTS, round_ + i, in_order)[1] for i in range(REPEATS)]
