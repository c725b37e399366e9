"""Pages of recordings."""

import json

from tests.support.paths import RECORDINGS


def recorded(name, which):
    """Yield the messages of one analyzer with the time they were sent at, in Unix ms.

    ``LastUpdateMetric.Last`` is the time of the agent's update. What is no flow has no time of
    its own, and is sent with what came before it.
    """
    sent_ms = 0
    for line in (RECORDINGS / name).read_text().splitlines():
        message = json.loads(line)
        flows = message["Obj"] if message["Type"] == "store" else []
        sent_ms = max([sent_ms, *(flow["LastUpdateMetric"]["Last"] for flow in flows)])
        yield sent_ms, which, line, flows
