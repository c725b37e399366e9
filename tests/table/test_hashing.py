"""Hash tables: an attacker cannot choose values that cause long chains.

The build `checked` of the core (`tests.support.core_builds`) reports the lengths of chains.
"""

import os
from collections.abc import Iterator

import pytest

from skyfast import _table
from tests.model import make_flow
from tests.support import core_builds
from tests.support.table_adapter import Core

checked = (
    _table if hasattr(_table, "longest_chains") else core_builds.load(core_builds.built("checked"))
)

COUNT = 4000
MOST = 16
"""Maximum length of a chain. With random hashes, one table in 10^9 has a longer chain."""

SEED = 0x0123456789ABCDEF


def chosen_uuids(seed: int) -> Iterator[str]:
    """Yield UUIDs that are all in the same bucket of a hash table with this seed."""
    number = 0
    while True:
        number += 1
        yield f"{_unmixed(number << 20 | 1) ^ seed:x}"


def _unmixed(x: int) -> int:
    """Invert the finalizer of splitmix64, which mixes the hashes."""
    x ^= x >> 31 ^ x >> 62
    x = x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return x ^ x >> 30 ^ x >> 60


def chains_of_chosen_uuids() -> dict[str, int]:
    core = Core(build=checked)
    uuids = chosen_uuids(SEED)
    core.message([make_flow(next(uuids), last=1) for _ in range(COUNT)], 0)
    assert core.table.flows == COUNT
    return checked.longest_chains(core.table)


def test_attacker_who_knows_the_seed_can_cause_a_long_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: SEED.to_bytes(size, "little"))
    assert chains_of_chosen_uuids()["flows"] == COUNT


def test_random_seed_keeps_chains_short() -> None:
    assert chains_of_chosen_uuids()["flows"] <= MOST


SCANS = {
    "hosts": lambda n: {"b": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"},
    "hosts by IPv6": lambda n: {"b": f"2001:db8::{n:x}"},
    "subnets by IPv6": lambda n: {"b": f"2001:db8:{n:x}::1"},
    "ports": lambda n: {"ports": (40_000, n)},
    "from all ports": lambda n: {"ports": (n, 443)},
    "huge ports": lambda n: {"ports": (n << 32, n << 40)},
}


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS.keys())
def test_port_and_address_scans_cause_no_long_chains(scan) -> None:
    core = Core(build=checked)
    core.message([make_flow(f"{n + 1:x}", last=1, **scan(n)) for n in range(COUNT)], 0)
    assert core.table.connections == COUNT
    assert max(checked.longest_chains(core.table).values()) <= MOST
