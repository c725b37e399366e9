"""How long does it take to read own names and to look one up, and how much memory do they take?

Not measured: other threads that run at the same time.
"""

import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import SCALE, Report, Target, at_most
from skyfast.config import names
from skyfast.config.model import Config
from skyfast.flows import addresses
from skyfast.flows.own_names import OwnNames
from skyfast.skydive.name_index import NameIndex
from tests.support.configs import make_config

REPEATS = 5
LOOKUPS = 100_000
IPV6_SHARE = 0.2
LABELS = [
    *("initiator_network", "target_network"),
    *({"name": key, "names_key": key} for key in ("site", "monitoring_id")),
]


def _networks(count: int, rng: random.Random) -> list[str]:
    """Return distinct networks and addresses of both IP versions, many of them nested."""
    found: dict[str, None] = {}
    while len(found) < count:
        if rng.random() < IPV6_SHARE:
            bits, most = rng.choice((32, 40, 48, 56, 64, 128)), 128
            first = 0x20010DB8 << 96 | rng.getrandbits(96)
        else:
            bits, most = rng.choice((12, 16, 20, 24, 24, 24, 28, 32, 32)), 32
            first = rng.getrandbits(most)
        first = first >> most - bits << most - bits
        found[f"{addresses.write(first.to_bytes(most // 8))}/{bits}"] = None
    return list(found)


def _lines(count: int) -> list[str]:
    rng = random.Random(1)
    return [
        f"{network},network-{number % (count // 2)},site=site-{rng.randrange(100)},"
        f"monitoring_id={rng.randrange(count // 5):08x}\n"
        for number, network in enumerate(_networks(count, rng))
    ]


def run(report: Report) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "names.csv"
        file.write_text("".join(_lines(SCALE)))
        report.add("size of the file", [file.stat().st_size / 2**20], "MiB")
        config = make_config(labels=LABELS, names_file=str(file), deduplicate="first")
        own = _load(report, config)
    rng = random.Random(2)
    ipv4 = [addresses.write(rng.randbytes(4)) for _ in range(LOOKUPS)]
    ipv6 = [
        addresses.write((0x20010DB8 << 96 | rng.getrandbits(96)).to_bytes(16))
        for _ in range(LOOKUPS)
    ]
    index = NameIndex.of(config.export, keep_s=60, own=own)
    for what, texts in (("IPv4", ipv4), ("IPv6", ipv6)):
        _add(report, f"lookup of a new {what} address", own.__getitem__, texts, at_most(2))
        what = f"names of a new {what} address that the topology does not know"
        _add(report, what, index.combined.__getitem__, texts)


def _load(report: Report, config: Config) -> OwnNames:
    seconds: list[float] = []
    cpu_s: list[float] = []
    for _ in range(REPEATS):
        begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
        loaded = names.load(config.names, config.export)
        cpu_s.append(time.thread_time() - begun_cpu_s)
        seconds.append(time.perf_counter() - begun_s)
    entries = f"{loaded.own.count:,} entries"
    report.add(f"time to read {entries}", seconds, "s", target=at_most(1))
    report.add(f"CPU time to read {entries}", cpu_s, "s")
    del loaded
    tracemalloc.start()
    loaded = names.load(config.names, config.export)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    report.add(f"memory of {entries}", [used / 2**20], "MiB")
    report.add(f"peak memory while reading {entries}", [peak / 2**20], "MiB")
    return loaded.own


def _add(
    report: Report,
    what: str,
    look_up: Callable[[str], object],
    texts: Sequence[str],
    target: Target | None = None,
) -> None:
    us: list[float] = []
    for _ in range(REPEATS):
        begun_s = time.thread_time()
        for text in texts:
            look_up(text)
        us.append((time.thread_time() - begun_s) / len(texts) * 1e6)
    report.add(what, us, "µs", target=target)
