"""How long does it take to look up the names for nine labels, and to relabel up to 10,000 flows?

Not measured: reading the names.
"""

from benchmarks.harness import SCALE, Remote, Report, at_most
from benchmarks.lookups import LABELS, Lookups

BUDGET = 10_000
"""Maximum number of flows that one slice relabels."""


def run(report: Report) -> None:
    with Remote(Lookups, SCALE) as lookups:
        ns = lookups.call(Lookups.take_new)
        slices = {
            f"{pods:,} pods": lookups.call(Lookups.relabel, pods, BUDGET)
            for pods in (1, 100, 5_000)
        }
    for name, ends in (("one end", 1), ("both ends", 2), ("ambiguous", 2)):
        added = [with_ - without for with_, without in zip(ns[name], ns["none"], strict=True)]
        where = "both ends, ambiguous addresses" if name == "ambiguous" else name
        report.add(
            f"{len(LABELS)} labels of {where}, added to a new flow",
            added,
            "ns per flow",
            target=None if name == "ambiguous" else at_most(1000 * ends),
        )
    for name, ms in slices.items():
        report.add(f"slice of a relabeling of {name}, {SCALE:,} flows", ms, "ms")
