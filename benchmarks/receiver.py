"""A subscription that discards its messages, to measure the cost of receiving alone.

python -m benchmarks.receiver CONFIG
"""

import asyncio
import sys

import uvloop

from skyfast.config import loader
from skyfast.runtime import memory
from skyfast.skydive.silence import Reporting
from skyfast.skydive.subscription import Subscription
from skyfast.stats import AnalyzerStats, Stats


async def main(path: str) -> None:
    configuration = loader.load(path, {})
    await Subscription(
        endpoint=configuration.subscriber.endpoints[0],
        config=configuration,
        stats=AnalyzerStats(name="analyzer"),
        reporting=Reporting(updates=Stats()),
        on_message=lambda _data: None,
    ).run()


if __name__ == "__main__":
    memory.tune_malloc()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
