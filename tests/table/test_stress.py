"""Runs operations of the table in several threads for `STRESS_S` seconds.

As in skyfast, one thread changes the table, and other threads read pages and scan the table.
`make tsan` runs this test with ThreadSanitizer.
"""

import contextlib
import os
import random
import re
import sys
import threading
import time

import pytest

from skyfast import _table
from skyfast.flows.fields import flow_types
from tests.model import DIRECTION, LABELS, Label, Lookup, Names, Spec, View, looked_up, make_flow
from tests.support.deflated import read_deflated
from tests.support.table_adapter import ALL_ROWS, Core, read_all

pytestmark = pytest.mark.xdist_group("timing")

STRESS_S = float(os.environ.get("STRESS_S", "3"))
JOIN_S = 60.0
READERS = 2
FLOWS = 400

NAMES, OWNERS = Names(), Names(count=2)
OWNER = Lookup(OWNERS, ("Network", "A"), (("Network", "B"), ("NodeTID",)))
OWNER_LABELS = tuple(
    Label(f"owner_{index}", OWNER.key, lookup=OWNER, index=index) for index in range(2)
)
SPEC = Spec(
    views=(
        View((*LABELS, looked_up("node_name", ("NodeTID",), NAMES), *OWNER_LABELS)),
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
    """A table and its threads. The clock ``now`` is ten times as fast as real time."""

    def __init__(self) -> None:
        self.core = Core(SPEC)
        self.began = time.monotonic()
        self.stopping = threading.Event()
        self.errors: list[BaseException] = []
        self.pages = 0
        self.scans = 0

    @property
    def now(self) -> float:
        return 10 * (time.monotonic() - self.began)

    def reader(self, number: int) -> None:
        rng = random.Random(number)
        with self.collect_errors():
            while not self.stopping.is_set():
                slow = self.core.table.page(self.now, rng.randrange(3), created=True)
                nodes = slow.distinct_values("node_tid")
                assert len(nodes) == len(set(nodes))
                read = rng.choice((read_all, read_deflated))
                page = read(slow, rng.choice((1, 500, 100_000)))
                assert {*re.findall(r'node_tid="([^"]*)"', page.decode())} <= {*nodes}
                lines = [line for line in page.splitlines() if not line.startswith(b"#")]
                series = [line.rpartition(b"}")[0] for line in lines]
                assert len(series) == len(set(series)), "duplicate series"
                assert page.endswith(b"\n")
                self.pages += 1

    def scanner(self) -> None:
        with self.collect_errors():
            table = self.core.table
            while not self.stopping.is_set():
                since = table.snapshot(0)
                for label, values in table.label_values().items():
                    assert values >= 0
                    connections, labels, _, without = table.cardinality(3, label)
                    # A scan visits no row twice. A flow has at most two rows: one with its old
                    # name, and one with its new name. In addition, there is the overflow row.
                    assert 0 <= without <= connections <= 2 * FLOWS + 1
                    for count, top, remaining in labels.values():
                        assert remaining <= connections
                        assert len(top) <= min(count, 3)
                        assert sum(number for _, number in top) <= connections
                table.hidden(self.now)
                every, some = table.forecast(self.now, 0, [(0, 0), (1000, 0)])
                assert every >= some
                table.top(0, 10, since, "10.0", [("initiator_ip", b"10.0.0.1\n10.0.0.2\n")])
                for max_groups in (16, 1 << 16):
                    groups, others, *_ = table.top_groups(
                        0, 10, [label], since, "10.0", max_groups=max_groups
                    )
                    assert sum(group[3] for group in groups) + others[0] <= 2 * FLOWS + 1
                assert table.connections <= 2 * FLOWS + 1
                self.scans += 1

    @contextlib.contextmanager
    def collect_errors(self):
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            self.errors.append(error)

    def write(self) -> int:
        """Do the work of the event loop until the test ends; return the number of steps."""
        rng = random.Random(0)
        steps = 0
        types = flow_types(self.core.plan, also=[("LayersPath",)])
        while self.now < 10 * STRESS_S and not self.errors:
            flows = [self.flow(rng) for _ in range(rng.choice((1, 30, 200)))]
            self.core.message(flows, self.now)
            self.core.table.expire(self.now, rng.choice((10, 1000)))
            if steps % 5 == 0:
                changed = {f"node-{n}": (f"name {rng.randrange(5)}" * 9,) for n in range(4)}
                NAMES.update(changed)
                self.core.relabel(NAMES, changed)
                self.rename_owners(rng)
            if steps % 7 == 0:
                self.core.set_limits(
                    max_connections=rng.choice((FLOWS // 4, FLOWS // 2)),
                    max_flows=FLOWS,
                    timeout_s=rng.choice((0.5, 2)),
                    view_timeouts_s=[3, 3],
                    bounds=rng.choice(([], [(rng.choice((1, 2000)), 0), (0, 0), (0, 0)])),
                )
                self.core.set_flow_types(rng.choice((types, self.core.types)))
                self.core.set_flow_types(self.core.types)
            steps += 1
        return steps

    def rename_owners(self, rng):
        keys = [f"10.0.0.{rng.randrange(20)}" for _ in range(8)]
        for key in keys:
            owner = (f"owner {rng.randrange(3)}", f"namespace {rng.randrange(2)}" * 6)
            OWNERS[key] = rng.choice((owner, None))
            for node in range(6):
                context = (key, "10.0.0.2", f"node-{node}")
                OWNERS.contexts[context] = (f"owner {rng.randrange(5)}", "")
        self.core.relabel(OWNERS, keys, rng.choice((0, 50, ALL_ROWS)))

    def flow(self, rng):
        return make_flow(
            rng.choice((f"{rng.randrange(10**6):x}", f"text {rng.randrange(50)}")),
            (rng.randrange(1000),) * 4,
            a=f"10.0.0.{rng.randrange(20)}",
            node=f"node-{rng.randrange(6)}",
            ports=(rng.randrange(300), 443),
            last=rng.randrange(1000),
        ) | {"CaptureID": "c" * rng.choice((1, 40, 400))}


def test_concurrent_operations_keep_the_table_consistent():
    NAMES.clear()
    OWNERS.clear()
    stress = Stress()
    threads = [threading.Thread(target=stress.reader, args=(n,)) for n in range(READERS)]
    threads.append(threading.Thread(target=stress.scanner))
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
    assert not [thread for thread in threads if thread.is_alive()], "a thread is blocked"
    assert stress.errors == []
    assert min(steps, stress.pages, stress.scans) >= 3
    assert stress.core.expired_total > 0
    # After all flows have expired, only the overflow rows are left.
    stress.core.expire(1e6)
    assert stress.core.flows == 0
    assert stress.core.connections <= 1
    if hasattr(_table, "check"):
        _table.check(stress.core.table)
