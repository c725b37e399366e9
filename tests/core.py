"""The compiled table behind the model's face, so that one test can ask both the same things."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from skyfast._table import Page, Table
from skyfast.plan import Column, Counter, Direction, Gauge, Plan, Requirement, default_plan
from skyfast.plan import Family as PlanFamily
from skyfast.wire import flow_types
from tests.model import (
    COUNTERS,
    DIRECTION,
    DIRECTIONS,
    ENDPOINTS,
    FAMILIES,
    LABELS,
    TIMEOUT_S,
    Family,
    Label,
    read_page,
)

ALL_ROWS = 2**31 - 1
CHUNK_BYTES = 256 * 1024


def plan_of(labels: Sequence[Label], families: Sequence[Family]) -> Plan:
    """Return the plan of a page with the model's labels and families."""
    values = (*COUNTERS, "RTT")
    columns = [label for label in labels if label != DIRECTION]
    return Plan(
        columns=tuple(Column(name=label.name, path=label.path) for label in columns),
        direction=Direction(
            name=DIRECTION.name,
            position=labels.index(DIRECTION),
            values=DIRECTIONS,
        ),
        counters=tuple(
            Counter(path=("Metric", name), amount=("LastUpdateMetric", name)) for name in COUNTERS
        ),
        gauges=(Gauge(path=("Metric", "RTT")),),
        families=tuple(
            PlanFamily(
                name=family.name,
                help="Help.",
                type=family.type,
                values=tuple(
                    values.index(field) for field in (family.forward, family.backward) if field
                ),
                omit_zero=family.forward == "RTT",
            )
            for family in families
        ),
        requirements=tuple(
            Requirement(path=(part,), reason=f"no_{part.lower()}")
            for part in ("Network", "Transport", "Metric")
        ),
        complete={label.path for label in labels} >= ENDPOINTS,
    )


class Core:
    """A table that takes flows as JSON objects, in the way a message's flows reach it."""

    def __init__(
        self,
        *,
        labels: Sequence[Label] = LABELS,
        families: Sequence[Family] = FAMILIES,
        max_connections: int = 1_000_000,
        max_flows: int = 4_000_000,
        timeout_s: float = TIMEOUT_S,
        slots: bool = True,
    ) -> None:
        is_default = labels is LABELS and families is FAMILIES
        self.plan = default_plan() if is_default else plan_of(labels, families)
        self.families = families
        types = flow_types(self.plan)
        self._decode = msgspec.json.Decoder(list[types.Flow]).decode  # type: ignore[name-defined]
        self._decode_full = msgspec.json.Decoder(list[types.FullFlow]).decode  # type: ignore[name-defined]
        self.table = Table(
            self.plan,
            types,
            max_connections=max_connections,
            max_flows=max_flows,
            timeout_s=timeout_s,
            slots=slots,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def message(self, flows: Sequence[dict[str, Any]], now: float) -> None:
        """Take the flows of one message, again with every field from where that is needed."""
        obj = json.dumps(flows).encode()
        taken = self.table.update(self._decode(obj), now) if self.plan.complete else 0
        if taken < len(flows):
            assert self.table.update(self._decode_full(obj), now, taken) == len(flows)

    def report(self, flow: dict[str, Any], now: float) -> str | None:
        """Take one flow, and return why it changed nothing, or None."""
        before = self.skipped
        self.message([flow], now)
        (*reasons,) = (reason for reason, n in self.skipped.items() if n != before[reason])
        assert len(reasons) <= 1
        return reasons[0] if reasons else None

    def expire(self, now: float) -> None:
        assert not self.table.expire(now, ALL_ROWS)

    def page(self, now: float) -> dict[str, set[str]]:
        """Return the sample lines of every family of a page made at ``now``."""
        return read_page(read_all(self.table.page(now)), self.families)


def read_all(page: Page, size: int = CHUNK_BYTES) -> bytes:
    """Read a page to its end."""
    return b"".join(iter(lambda: page.read(size), b""))
