import asyncio
import gc
import weakref

import pytest

from skyfast.web.scan_cache import BusyError, ScanCache
from tests.support.waiting import until
from tests.support.web_fixtures import on_both_loops


class Scans:
    """A scan cache and its scans. If ``paused`` is true, scans wait for ``go_on``."""

    def __init__(self, *, keep_s=60.0, max_results=8, queue=True, paused=False):
        self.cache = ScanCache(keep_s=keep_s, max_results=max_results, queue=queue)
        self.started = []
        self.running = 0
        self.error = None
        self.go_on = asyncio.Event()
        if not paused:
            self.go_on.set()

    async def get(self, key):
        return await self.cache.get(key, lambda: self.scan(key))

    async def scan(self, key):
        self.started.append(key)
        self.running += 1
        assert self.running == 1, "two scans run at once"
        await self.go_on.wait()
        self.running -= 1
        if self.error is not None:
            raise self.error
        return f"{key}, scan {len(self.started)}"

    def ask(self, *keys):
        return [asyncio.create_task(self.get(key)) for key in keys]


@on_both_loops
async def test_result_is_cached_and_then_dropped():
    scans = Scans(keep_s=0.05)
    assert await scans.get("a") == "a, scan 1"
    assert await scans.get("a") == "a, scan 1"
    assert await scans.get("b") == "b, scan 2"
    await until(lambda: not scans.cache._results)
    assert await scans.get("a") == "a, scan 3"


@on_both_loops
@pytest.mark.parametrize("queue", [True, False])
async def test_result_is_not_cached_if_keep_s_is_zero(queue):
    scans = Scans(keep_s=0, queue=queue)
    assert await scans.get("a") == "a, scan 1"
    assert await scans.get("a") == "a, scan 2"


@on_both_loops
async def test_requests_for_one_key_share_a_scan_and_scans_run_one_at_a_time():
    scans = Scans(paused=True)
    requests = scans.ask("a", "b", "a", "c", "b")
    await until(lambda: scans.started)
    await asyncio.sleep(0.01)
    assert scans.started == ["a"]
    scans.go_on.set()
    assert await asyncio.gather(*requests) == [
        "a, scan 1",
        "b, scan 2",
        "a, scan 1",
        "c, scan 3",
        "b, scan 2",
    ]


@on_both_loops
async def test_requests_are_refused_while_a_scan_runs_if_there_is_no_queue():
    scans = Scans(queue=False)
    await scans.get("kept")
    scans.go_on.clear()
    (requests,) = scans.ask("a")
    await until(lambda: scans.running)
    assert scans.cache.is_scanning
    for key in ("a", "b"):
        with pytest.raises(BusyError):
            await scans.get(key)
    assert await scans.get("kept") == "kept, scan 1"
    scans.go_on.set()
    assert await requests == "a, scan 2"
    assert not scans.cache.is_scanning
    assert await scans.get("b") == "b, scan 3"


@on_both_loops
async def test_waiting_scans_and_cached_results_share_a_limit():
    scans = Scans(max_results=3)
    for key in "abc":
        await scans.get(key)
    await scans.get("d")
    assert list(scans.cache._results) == ["b", "c", "d"]
    scans.go_on.clear()
    requests = scans.ask("x", "y", "z")
    await until(lambda: scans.running)
    assert list(scans.cache._results) == ["x", "y", "z"]
    with pytest.raises(BusyError):
        await scans.get("a")
    (again,) = scans.ask("y")
    scans.go_on.set()
    assert await again == await requests[1]
    await asyncio.gather(*requests)
    assert scans.started == [*"abcd", *"xyz"]


@pytest.mark.xdist_group("timing")
@on_both_loops
async def test_new_result_survives_the_expiry_of_an_old_result():
    """ "b" evicts "a", and "a" is computed again. The first expiry of "a" must have no effect."""
    scans = Scans(keep_s=2, max_results=1)
    await scans.get("a")
    await asyncio.sleep(1)
    await scans.get("b")
    latest = await scans.get("a")
    await asyncio.sleep(1.2)  # now the first result would have expired
    assert await scans.get("a") is latest


@on_both_loops
@pytest.mark.parametrize("queue", [True, False])
async def test_scan_continues_if_its_request_is_cancelled(queue):
    scans = Scans(queue=queue, paused=True)
    (requests,) = scans.ask("a")
    await until(lambda: scans.running)
    requests.cancel()
    with pytest.raises(asyncio.CancelledError):
        await requests
    assert scans.cache.is_scanning
    scans.go_on.set()
    await until(lambda: not scans.cache.is_scanning)
    assert await scans.get("a") == "a, scan 1"


@on_both_loops
async def test_exception_of_a_scan_reaches_all_requests_and_is_not_cached():
    scans = Scans(paused=True)
    requests = scans.ask("a", "a", "b")
    await until(lambda: scans.running)
    scans.error = KeyError("a")
    scans.go_on.set()
    assert await asyncio.gather(*requests, return_exceptions=True) == [scans.error] * 3
    assert not scans.cache._results
    scans.error = None
    assert await scans.get("a") == "a, scan 3"


@on_both_loops
async def test_exception_without_a_waiting_request_is_not_logged(caplog):
    scans = Scans(paused=True)
    (requests,) = scans.ask("a")
    await until(lambda: scans.running)
    requests.cancel()
    scans.error = KeyError("a")
    scans.go_on.set()
    await until(lambda: not scans.cache.is_scanning)
    gc.collect()
    assert not caplog.records


@on_both_loops
async def test_cache_keeps_no_reference_to_a_completed_scan():
    scans = Scans()
    await scans.get("a")
    freed = weakref.ref(scans)
    gc.disable()
    try:
        del scans
        assert freed() is None
    finally:
        gc.enable()
