"""Reports the tasks and threads of a skyfast process in a trial.

Python imports this module at startup if its directory is in PYTHONPATH. On SIGUSR1, the module
writes two things to the file $PROBE: the coroutines of all tasks, and the number of threads in the
event loop's pool. If $FLOW_UPDATE_S is set, skyfast starts with this value of
``flow.update``.
"""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path


def _write_state(number: int, frame: object) -> None:
    target = Path(os.environ["PROBE"])
    tasks = sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks())
    pool = [thread for thread in threading.enumerate() if thread.name.startswith("uvloop_")]
    part = target.with_suffix(".part")
    part.write_text(json.dumps({"tasks": tasks, "pool_threads": len(pool)}))
    part.replace(target)


if "PROBE" in os.environ:
    signal.signal(signal.SIGUSR1, _write_state)

if "FLOW_UPDATE_S" in os.environ:
    from skyfast import stats

    stats.FLOW_UPDATE_S = float(os.environ["FLOW_UPDATE_S"])
