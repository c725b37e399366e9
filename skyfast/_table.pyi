"""Types of the compiled core. The docstrings are in ``_table.pyx``."""

from collections.abc import Sequence

import msgspec

from skyfast.plan import Plan
from skyfast.wire import FlowTypes

MAX_TEXT_BYTES: int
MAX_ROWS: int

class Page:
    def read(self, size: int, /) -> bytes: ...

class Table:
    def __init__(
        self,
        plan: Plan,
        types: FlowTypes,
        *,
        max_connections: int,
        max_flows: int,
        timeout_s: float,
        slots: bool = True,
    ) -> None: ...
    def update(self, flows: Sequence[msgspec.Struct], now: float, start: int = 0) -> int: ...
    def expire(self, now: float, max_rows: int) -> bool: ...
    def page(self, now: float) -> Page: ...
    @property
    def connections(self) -> int: ...
    @property
    def flows(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def created_total(self) -> int: ...
    @property
    def expired_total(self) -> int: ...
    @property
    def rejected_total(self) -> int: ...
    @property
    def skipped(self) -> dict[str, int]: ...
    @property
    def finished(self) -> dict[str, int]: ...
    @property
    def reads_slots(self) -> bool: ...
