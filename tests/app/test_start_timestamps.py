"""Start timestamps in a real Prometheus 3."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.analyzer import FakeAnalyzer
from tests.support.messages import flow, message
from tests.support.process import running, write_config
from tests.support.prometheus import (
    ANSWER_S,
    PROMETHEUS_3,
    configured_prometheus,
    growing,
    needs_prometheus_3,
    number,
    query,
)

pytestmark = pytest.mark.slow

PROTOCOLS = {
    "text": "PrometheusText0.0.4",
    "openmetrics 1": "OpenMetricsText1.0.0",
    "openmetrics 2": "OpenMetricsText2.0.0",
}
"""Maps the name of each scrape job to the format that the job requests."""

FEATURES = "--enable-feature=created-timestamp-zero-ingestion,openmetrics2"
TIMEOUT_S = 3
SHORT, RETURNING = 1, 2
"""The initiator ports of two connections, described in the test below."""


def report(port: int, total: int, *, start_ms: int, update: int, update_ms: int) -> dict[str, Any]:
    now_ms = int(time.time() * 1000)
    return flow(
        f"{port:x}",
        Transport={"Protocol": "TCP", "A": port, "B": 443},
        Metric={"ABBytes": total},
        LastUpdateMetric={"ABBytes": update, "Start": update_ms, "Last": now_ms},
        Start=start_ms,
        Last=now_ms,
    )


def job(name: str, protocol: str, target: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "scrape_protocols": [protocol],
        "static_configs": [{"targets": [target]}],
    }


@needs_prometheus_3
async def test_traffic_before_the_first_scrape_is_part_of_the_increase(tmp_path: Path) -> None:
    """With start timestamps, ``increase`` includes the first sample of a series.

    `SHORT` has only one sample. `RETURNING` expires, and continues its counter when it returns.
    """
    async with FakeAnalyzer() as analyzer, asyncio.timeout(2 * ANSWER_S):
        config = write_config(
            tmp_path,
            analyzer.url,
            naming="standard",
            start_timestamps="true",
            connection_timeout=TIMEOUT_S,
            connection_grace=0,
        )
        # The timeout is shorter than flow.update, which causes a warning.
        async with running(config, quiet=False) as skyfast:
            await analyzer.subscriber()
            target = skyfast.url.partition("//")[2]
            jobs = [job(name, protocol, target) for name, protocol in PROTOCOLS.items()]
            text = json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs})
            async with configured_prometheus(
                text, tmp_path, FEATURES, program=PROMETHEUS_3
            ) as server:
                await growing(server, "up", len(PROTOCOLS))
                start_ms = int(time.time() * 1000) - 500
                first = {"start_ms": start_ms, "update": 1000, "update_ms": start_ms}
                await analyzer.send(
                    message(report(SHORT, 1000, **first), report(RETURNING, 1000, **first))
                )
                await growing(server, f"increase({bytes_of(SHORT)}[1m])", 2)
                await growing(server, f"absent({bytes_of(RETURNING)})", 1)
                await analyzer.send(
                    message(
                        report(
                            RETURNING, 1500, start_ms=start_ms, update=500, update_ms=start_ms + 1
                        )
                    )
                )
                await growing(server, f"{bytes_of(RETURNING)} == 1500", len(PROTOCOLS))
                await asyncio.sleep(2)
                for port, without, expected in ((SHORT, 0, 1000), (RETURNING, 500, 1500)):
                    increases = {
                        sample["metric"]["job"]: number(sample)
                        for sample in await query(server, f"increase({bytes_of(port)}[1m])")
                    }
                    # Prometheus extrapolates to the ends of the time range, so the increase is not
                    # exact.
                    assert increases == {
                        "text": pytest.approx(without, rel=0.4),
                        "openmetrics 1": pytest.approx(expected, rel=0.4),
                        "openmetrics 2": pytest.approx(expected, rel=0.4),
                    }
                # Start timestamps are not stored as series of their own.
                assert not await query(server, '{__name__=~".+_created"}')
                (up,) = await query(server, "min(min_over_time(up[1m]))")
                assert number(up) == 1


def bytes_of(port: int) -> str:
    return (
        f'skydive_connection_bytes_total{{initiator_port="{port}",direction="initiator_to_target"}}'
    )
