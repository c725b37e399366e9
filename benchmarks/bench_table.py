"""What does a flow cost in the table, without decoding?"""

from benchmarks.core import Core, Decoder
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, SCALE, Remote, Report, at_most

REPEATS = 5
REPORTS = SCALE // 2
"""Number of known flows that each repeat reports."""


def run(report: Report) -> None:
    round_ = FIRST_ROUND + 1
    known = {}
    with Remote(Core, LARGE) as core, Remote(Decoder, SCALE) as decoder:
        for connections, target in ((SCALE, at_most(180)), (LARGE, at_most(300))):
            what = f"{connections:,} connections"
            alone = [decoder.call("run")]
            _, update = core.call("fill", connections)
            alone.append(decoder.call("run"))
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
        core.call("fill", SCALE)
        attributes = _known(core, FIRST_ROUND + 1, in_order=False)
    report.add(
        f"known flows, {SCALE:,} connections, fields read as attributes",
        attributes,
        "ns per flow",
        to="fields read by offset",
        over=known[SCALE],
    )


def _known(core: Remote, round_: int, *, in_order: bool) -> list[float]:
    return [core.call("report", REPORTS, round_ + i, in_order)[1] for i in range(REPEATS)]
