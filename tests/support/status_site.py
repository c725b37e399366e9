"""The web server of an app in the test's process."""

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

from skyfast.app import App
from skyfast.stats import AnalyzerStats
from tests.model import make_flow
from tests.support.configs import make_config
from tests.support.messages import message

EVIL = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x00"


class StatusSite:
    """The web server of an app whose analyzer is not reachable."""

    def __init__(self, **settings):
        self.config = make_config(listen_address="127.0.0.1", port=0, **settings)
        self.app = App(self.config, load=lambda: self.config)

    async def __aenter__(self):
        await self.app.web.start()
        return self

    async def __aexit__(self, *_):
        await self.app.web.stop()

    def report(self, *flows):
        self.app._parts.ingest.message(message(*flows), AnalyzerStats("a"))

    async def get(self, path):
        def ask():
            try:
                with urllib.request.urlopen(url, timeout=10) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        url = f"http://127.0.0.1:{self.app.web.port}{path}"
        return await asyncio.to_thread(ask)

    async def json(self, path):
        code, body = await self.get(path)
        assert code == 200, body
        return json.loads(body)


@asynccontextmanager
async def three_connections(**settings):
    """Yield a site with three connections of 1,000, 2,000 and 3,000 bytes."""
    async with StatusSite(**settings) as site:
        site.report(
            make_flow("1", (900, 100, 5, 5), a="10.0.0.1", rtt=20_000_000),
            make_flow("2", (1500, 500, 2, 2), a="10.0.0.2", rtt=90_000),
            make_flow("3", (0, 3000, 0, 3), a="fd00::3"),
        )
        yield site


FORMATS = [
    ("bytes", 0, "0 B"),
    ("bytes", 999, "999 B"),
    ("bytes", 1125, "1.13 kB"),
    ("bytes", 12_345, "12.3 kB"),
    ("bytes", 999_999, "1000 kB"),
    ("bytes", 2**63 - 1, "9.22 EB"),
    ("bytes-rate", 12.345, "12.3 B/s"),
    ("hidden", True, "hidden"),
    ("hidden", False, "exported"),
    ("percent", 0, "0.0 %"),
    ("percent", 0.0025, "0.3 %"),
    ("percent", 0.98765, "98.8 %"),
    ("percent", 1, "100.0 %"),
    ("number", 0.5, "0.50"),
    ("number", 7, "7"),
    ("number", 12_345.6, "12,345"),
    ("number-rate", 3, "3/s"),
    ("tenths", 3, "3.0"),
    ("tenths", 0.3, "0.3"),
    ("tenths", 999.9, "999.9"),
    ("tenths", 12_345.6, "12,345"),
    ("count", 1_000_000, "1,000,000"),
    ("seconds", 0, "0 s"),
    ("seconds", 0.000_000_45, "450 ns"),
    ("seconds", 0.0123, "12.3 ms"),
    ("seconds", 1.5, "1.50 s"),
    ("seconds", 4321, "4321 s"),
    ("nanoseconds", 1_500, "1.50 µs"),
    ("timestamp", 1_795_382_126.9, "2026-11-22 21:15:26"),
    ("timestamp", 2**34, "17,179,869,184"),
    ("duration", 59.9, "59 s"),
    ("duration", 3599, "59 min"),
    ("duration", 7_260, "2 h 1 min"),
    ("duration", 90_000, "1 d 1 h"),
    ("since", 400, "10 min"),
    ("ago", 1_001, "0 s ago"),
    ("error", {"text": "no", "timestamp_seconds": 990}, "no (10 s ago)"),
    ("reasons", {"late": 1234, "fin": 1}, "repeated 1,234, fin 1"),
    ("reasons", {}, "–"),
    (
        "reload",
        {"successes_total": 0, "last_success_timestamp_seconds": 900, "changed": []},
        "loaded at the start, 1 min ago; never reloaded",
    ),
    (
        "reload",
        {"successes_total": 1, "last_success_timestamp_seconds": 980, "changed": ["a.b", "c"]},
        "last reloaded 20 s ago, changed keys: a.b, c",
    ),
    (
        "reload",
        {"successes_total": 2, "last_success_timestamp_seconds": 400, "changed": []},
        "last reloaded 10 min ago, changed keys: –",
    ),
    ("reload-state", {"successful": True}, "loaded"),
    ("reload-state", {"successful": False}, "last reload failed"),
    ("percent", 0.00125, "0.1 %"),
    ("expired", {"expired_series_at_most": 12_345, "window_seconds": 3600}, "12,345 in 1 h 0 min"),
    (
        "memory-range",
        {"memory_bytes_low": 2_500, "memory_bytes_high": 7_000_000},
        "2.50 kB to 7.00 MB",
    ),
    ("list", ["a.b", "c"], "a.b, c"),
    ("list", [], "–"),
    ("points", [], "–"),
    ("points", [{"node_tid": "t-1", "name": "h1 eth0"}], "h1 eth0"),
    (
        "points",
        [{"node_tid": f"t-{n}", "name": n % 2 * f"h{n}"} for n in range(5)],
        "t-0, h1, t-2 and 2 more",
    ),
    ("text", "", "–"),
    ("count", None, "–"),
    ("health", {"state": "degraded", "text": "2 of 3 analyzers"}, "degraded: 2 of 3 analyzers"),
    ("state", True, "up"),
]
"""A format, a value, and the text that both the server and the script must show at the Unix time
1,000 s."""
