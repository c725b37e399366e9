"""What does a flow cost in the table, without decoding?"""

from benchmarks.core import Core
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, SCALE, Remote, Report, Target, at_most

REPEATS = 5


def run(report: Report) -> None:
    slots = _measure(report, SCALE, at_most(180))
    _measure(report, LARGE, at_most(300))
    with Remote(Core, SCALE, False) as core:
        core.call("fill")
        attributes = _known(core, in_order=False)
    report.add(
        f"known flows, {SCALE:,}, fields read as attributes",
        attributes,
        "ns a flow",
        to="at their offsets",
        over=slots,
    )


def _measure(report: Report, count: int, target: Target) -> list[float]:
    with Remote(Core, count) as core:
        decode, update = core.call("fill")
        report.add(f"new flows, {count:,}", [update], "ns a flow", to="decoding", over=[decode])
        known = _known(core, in_order=False)
        report.add(f"known flows, {count:,}, in any order", known, "ns a flow", target=target)
        in_order = _known(core, in_order=True)
        report.add(f"known flows, {count:,}, in the rows' order", in_order, "ns a flow")
    return known


def _known(core: Remote, *, in_order: bool) -> list[float]:
    first = FIRST_ROUND + 1 + REPEATS * in_order
    return [
        core.call("report", SCALE // 2, round_, in_order)[1]
        for round_ in range(first, first + REPEATS)
    ]
