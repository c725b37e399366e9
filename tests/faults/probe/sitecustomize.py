"""What a skyfast under trial is asked beside its pages: which tasks and threads it has.

Python imports this in every process that has the directory in PYTHONPATH. On SIGUSR1, the names of
the tasks' coroutines, and how many threads the event loop's pool has, are written to the file that
the environment variable PROBE names. FLOW_UPDATE_S is what it takes for the agents' ``flow.update``
before reports tell.
"""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path


def _tell(number: int, frame: object) -> None:
    target = Path(os.environ["PROBE"])
    tasks = sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks())
    pool = [each for each in threading.enumerate() if each.name.startswith("uvloop_")]
    part = target.with_suffix(".part")
    part.write_text(json.dumps({"tasks": tasks, "pool_threads": len(pool)}))
    part.replace(target)


if "PROBE" in os.environ:
    signal.signal(signal.SIGUSR1, _tell)

if "FLOW_UPDATE_S" in os.environ:
    from skyfast import stats

    stats.FLOW_UPDATE_S = float(os.environ["FLOW_UPDATE_S"])
