"""Everything at once that threads may do to a table at once, for as long as `STRESS_S` says.

As in the process: one thread updates, expires, relabels and reloads; others read pages and look at
what there is. `make tsan` runs this under ThreadSanitizer.
"""

import contextlib
import os
import random
import sys
import threading
import time

import pytest

from skyfast import _table
from skyfast.flows.fields import flow_types
from tests.model import DIRECTION, LABELS, Label, Names, Spec, View, looked_up, make_flow
from tests.support.table_adapter import Core, read_all

pytestmark = pytest.mark.xdist_group("timing")

STRESS_S = float(os.environ.get("STRESS_S", "3"))
JOIN_S = 60.0
READERS = 2
FLOWS = 400

NAMES = Names()
SPEC = Spec(
    views=(
        View((*LABELS, looked_up("node_name", ("NodeTID",), NAMES))),
        View((LABELS[0], DIRECTION), timeout_s=3),
        View((Label("capture", ("CaptureID",)),), timeout_s=3),
    ),
    deduplicate="first",
    overflow="other",
    max_connections=FLOWS // 2,
    max_flows=FLOWS,
    timeout_s=2,
)


class Stress:
    """A table and the threads around it. ``now`` is the table's clock, ten times as fast."""

    def __init__(self) -> None:
        self.core = Core(SPEC)
        self.began = time.monotonic()
        self.stopping = threading.Event()
        self.problems: list[BaseException] = []
        self.pages = 0
        self.looks = 0

    @property
    def now(self) -> float:
        return 10 * (time.monotonic() - self.began)

    def reader(self, number: int) -> None:
        rng = random.Random(number)
        with self.watched():
            while not self.stopping.is_set():
                page = read_all(self.core.table.page(self.now), rng.choice((1, 500, 100_000)))
                lines = [line for line in page.splitlines() if not line.startswith(b"#")]
                series = [line.rpartition(b" ")[0] for line in lines]
                assert len(series) == len(set(series)), "each series is there once"
                assert page.endswith(b"\n")
                self.pages += 1

    def looker(self) -> None:
        with self.watched():
            table = self.core.table
            while not self.stopping.is_set():
                since = table.snapshot(0)
                for label, values in table.label_values().items():
                    assert values >= 0
                    connections, labels, without = table.cardinality(3, label)
                    # Rows come and go meanwhile, but none is looked at twice; and while names
                    # change there are the new ones, the old ones and that of others.
                    assert 0 <= without <= connections <= 2 * FLOWS + 1
                    for count, top in labels.values():
                        assert len(top) <= min(count, 3)
                        assert sum(number for _, number in top) <= connections
                table.top(0, 10, since, "10.0")
                assert table.connections <= 2 * FLOWS + 1
                self.looks += 1

    @contextlib.contextmanager
    def watched(self):
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            self.problems.append(error)

    def write(self) -> int:
        """Do what the event loop's thread does, until the time is over."""
        rng = random.Random(0)
        steps = 0
        types = flow_types(self.core.plan, also=[("LayersPath",)])
        while self.now < 10 * STRESS_S and not self.problems:
            flows = [self.flow(rng) for _ in range(rng.choice((1, 30, 200)))]
            self.core.message(flows, self.now)
            self.core.table.expire(self.now, rng.choice((10, 1000)))
            if steps % 5 == 0:
                told = {f"node-{n}": (f"name {rng.randrange(5)}" * 9,) for n in range(4)}
                NAMES.update(told)
                self.core.relabel(NAMES, told)
            if steps % 7 == 0:
                self.core.set_limits(
                    max_connections=rng.choice((FLOWS // 4, FLOWS // 2)),
                    max_flows=FLOWS,
                    timeout_s=rng.choice((0.5, 2)),
                    view_timeouts_s=[3, 3],
                )
                self.core.set_flow_types(rng.choice((types, self.core.types)))
                self.core.set_flow_types(self.core.types)
            steps += 1
        return steps

    def flow(self, rng):
        return make_flow(
            rng.choice((f"{rng.randrange(10**6):x}", f"text {rng.randrange(50)}")),
            (rng.randrange(1000),) * 4,
            a=f"10.0.0.{rng.randrange(20)}",
            node=f"node-{rng.randrange(6)}",
            ports=(rng.randrange(300), 443),
            last=rng.randrange(1000),
        ) | {"CaptureID": "c" * rng.choice((1, 40, 400))}


def test_everything_at_once():
    NAMES.clear()
    stress = Stress()
    threads = [threading.Thread(target=stress.reader, args=(n,)) for n in range(READERS)]
    threads.append(threading.Thread(target=stress.looker))
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        steps = stress.write()
    finally:
        stress.stopping.set()
        for thread in threads:
            thread.join(JOIN_S)
        sys.setswitchinterval(interval_s)
    assert not [thread for thread in threads if thread.is_alive()], "none waits for ever"
    assert stress.problems == []
    assert min(steps, stress.pages, stress.looks) >= 3
    assert stress.core.expired_total > 0
    # When all have left, there is nothing but the rows of what found no room.
    stress.core.expire(1e6)
    assert stress.core.flows == 0
    assert stress.core.connections <= 1
    if hasattr(_table, "check"):
        _table.check(stress.core.table)
