import asyncio
import gc
import itertools
import threading
import zlib

import pytest
from isal import isal_zlib

from skyfast.flows.catalog import NODE_NAMES
from skyfast.skydive.name_index import NodeNames
from skyfast.stats import Stats
from skyfast.web import cardinality
from skyfast.web.exposition import (
    CHUNK_BYTES,
    DIRECT_CONNECTIONS,
    FIRST_CHUNK_BYTES,
    QUEUE_CHUNKS,
    DeflatedText,
    Exposition,
    Part,
    compress,
    gzipped,
    trailer,
)
from skyfast.web.flow_query import FlowQuery
from skyfast.web.interface_info import InterfaceInfo
from tests.support.deflated import HAS_GO, inflated_by_go
from tests.support.table_adapter import Core, many_flows
from tests.support.waiting import until
from tests.support.web_fixtures import (
    BIG,
    CAPTURES,
    FLOWS,
    INTERFACES,
    FakeTable,
    on_both_loops,
    page_threads,
    source,
)


def exposition(table=None, *, now=lambda: 100.0, **parts):
    return Exposition(source=source(table, **parts), stats=Stats(), now=now)


async def collect(stream):
    chunks = [chunk async for chunk in stream]
    await stream.ended()
    return chunks


def test_compress_returns_a_gzip_file():
    data = FLOWS * 1000
    compressed = compress(data)
    assert zlib.decompress(compressed, wbits=31) == data
    assert len(compressed) < len(data) / 10


@on_both_loops
async def test_page_consists_of_its_parts_in_order():
    pages = exposition()
    own = await pages.self_page()
    assert own.startswith(b"# HELP skyfast_build_info ")
    assert own.endswith(b'\nskyfast_label_values{label="target_ip"} 2\n')
    for part, expected in (
        (Part.FLOWS, FLOWS),
        (Part.INTERFACES, INTERFACES),
        (Part.CAPTURES, CAPTURES),
        (Part.FLOWS | Part.INTERFACES, FLOWS + INTERFACES),
    ):
        assert b"".join(await collect(pages.stream(part, gzip=False))) == expected
    whole = b"".join(await collect(pages.stream(Part.ALL, gzip=False)))
    others = FLOWS + INTERFACES + CAPTURES
    assert whole.startswith(others + b"# HELP skyfast_build_info ")
    # Values such as the size of the process differ between two pages, so only HELP and TYPE lines
    # are compared.
    names = [line for line in whole[len(others) :].splitlines() if line[:1] == b"#"]
    assert names == [line for line in own.splitlines() if line[:1] == b"#"]


@on_both_loops
async def test_info_series_of_capture_points_follow_the_flows():
    table = FakeTable(BIG)
    table.values["node_tid"] = [("tid-1", 3), ("tid-2", 1)]
    info = InterfaceInfo(NodeNames({"tid-2": ("eth0",) * len(NODE_NAMES)}))
    pages = exposition(table, interface_info=info)
    described = b"".join(info.render(["tid-1", "tid-2"]))
    assert described.count(b"skydive_network_interface_info{") == 2
    for part, expected in (
        (Part.FLOWS, BIG + described),
        (Part.INTERFACES | Part.CAPTURES, INTERFACES + CAPTURES),
        (Part.FLOWS | Part.INTERFACES, BIG + described + INTERFACES),
    ):
        assert b"".join(await collect(pages.stream(part, gzip=False))) == expected
    assert table.scans == ["distinct_values node_tid"] * 2
    assert threading.current_thread() not in table.threads
    await pages.self_page()
    assert table.scans[2:] == ["label_values"]


@on_both_loops
async def test_first_part_has_the_info_series_of_all_parts():
    table = FakeTable()
    table.values["node_tid"] = [("tid-1", 1)]
    info = InterfaceInfo(NodeNames())
    pages = exposition(table, interface_info=info)
    described = b"".join(info.render(["tid-1"]))
    other = "skydive_network_connection_total_bytes"
    assert pages.source.flow_families[::2] == (other, info.name)
    for query, expected in (
        (FlowQuery(part=0, parts=2), FLOWS + described),
        (FlowQuery(part=1, parts=2), FLOWS),
        (FlowQuery(names=frozenset({other})), FLOWS),
        (FlowQuery(names=frozenset({other, info.name}), parts=2), FLOWS + described),
        (FlowQuery(names=frozenset({info.name}), part=1, parts=2), FLOWS),
    ):
        stream = pages.stream(Part.FLOWS, gzip=False, query=query)
        assert b"".join(await collect(stream)) == expected
    assert table.scans == ["distinct_values node_tid"] * 2
    assert table.queries[0] == {"created": False, "part": 0, "parts": 2, "names": None}


@on_both_loops
async def test_complete_openmetrics_pages_end_with_eof():
    pages = exposition(FakeTable(BIG), standard_names=True)
    for part, version in itertools.product((*Part, Part.FLOWS | Part.INTERFACES, Part.ALL), (1, 2)):
        for gzip in (False, True):
            stream = pages.stream(part, gzip=gzip, openmetrics=version)
            data = b"".join(await collect(stream))
            page = zlib.decompress(data, wbits=31) if gzip else data
            assert page.endswith(b"\n# EOF\n")
            assert page.count(b"# EOF") == 1
            assert stream.page_bytes == len(page)
    own = await pages.self_page(openmetrics=True)
    assert own.endswith(b"\n# EOF\n")
    assert own.count(b"# EOF") == 1
    empty = exposition(FakeTable(b""), interfaces=b"", standard_names=True)
    stream = empty.stream(Part.FLOWS | Part.INTERFACES, gzip=False, openmetrics=True)
    assert await collect(stream) == [b"# EOF\n"]


@on_both_loops
@pytest.mark.parametrize("start_timestamps", [False, True])
async def test_start_timestamps_are_requested_from_table_interfaces_and_captures(start_timestamps):
    table = FakeTable()
    pages = exposition(table, standard_names=True, start_timestamps=start_timestamps)
    for version in (0, 1, 2):
        await collect(pages.stream(Part.ALL, gzip=False, openmetrics=version))
        assert table.queries.pop()["created"] == start_timestamps
        for part in (pages.source.interfaces, pages.source.captures):
            assert part.requests.pop() == (version, start_timestamps)


@on_both_loops
async def test_failed_openmetrics_page_has_no_eof():
    table = FakeTable(BIG, break_at=FIRST_CHUNK_BYTES + CHUNK_BYTES)
    chunks = []
    with pytest.raises(ValueError, match="rendering broke"):
        async for chunk in exposition(table).stream(Part.ALL, gzip=False, openmetrics=True):
            chunks.append(chunk)  # noqa: PERF401  # an error in a comprehension loses the chunks
    assert b"# EOF" not in b"".join(chunks)


@on_both_loops
async def test_label_values_are_counted_in_the_rendering_thread():
    table = FakeTable()
    await collect(exposition(table).stream(Part.SELF, gzip=False))
    assert table.scans == ["label_values"]
    assert threading.current_thread() not in table.threads
    await exposition(table).self_page()
    assert threading.current_thread() not in table.threads


@on_both_loops
async def test_label_values_are_cached_briefly(monkeypatch):
    table = FakeTable()
    pages = exposition(table)
    for _ in range(3):
        assert b'skyfast_label_values{label="target_ip"} 2\n' in await pages.self_page()
    assert table.scans == ["label_values"]
    monkeypatch.setattr(cardinality, "VALUES_AGE_S", 0)
    later = exposition(table)
    table.values["target_ip"].append(("10.0.0.4", 1))
    for _ in range(2):
        assert b'skyfast_label_values{label="target_ip"} 3\n' in await later.self_page()
    assert table.scans == ["label_values"] * 3


@on_both_loops
async def test_new_source_applies_to_new_pages():
    """A reload replaces the source, but unfinished pages keep the old one."""
    pages = exposition(FakeTable(BIG))
    stream = pages.stream(Part.ALL, gzip=False)
    first = await anext(stream)
    pages.source = source(FakeTable(b"new\n"), interfaces=b"", captures=b"")
    page = first + b"".join(await collect(stream))
    assert page.startswith(BIG + INTERFACES + CAPTURES)
    assert await collect(pages.stream(Part.FLOWS, gzip=False)) == [b"new\n"]


@on_both_loops
async def test_page_uses_the_time_of_its_request():
    table = FakeTable()
    clock = iter([100.0, 200.0])
    pages = exposition(table, now=lambda: next(clock))
    await collect(pages.stream(Part.ALL, gzip=False))
    await collect(pages.stream(Part.FLOWS, gzip=True))
    assert table.asked_at == [100.0, 200.0]


@on_both_loops
async def test_page_is_rendered_in_chunks_of_fixed_size():
    table = FakeTable(BIG)
    stream = exposition(table).stream(Part.FLOWS, gzip=False)
    chunks = await collect(stream)
    assert b"".join(chunks) == BIG
    assert len(chunks[0]) == FIRST_CHUNK_BYTES
    assert {len(chunk) for chunk in chunks[1:-1]} == {CHUNK_BYTES}
    assert 0 < len(chunks[-1]) <= CHUNK_BYTES
    assert stream.page_bytes == len(BIG)
    assert threading.current_thread() not in table.threads


@on_both_loops
async def test_large_interface_page_is_divided_into_chunks():
    interfaces = INTERFACES * (3 * CHUNK_BYTES // len(INTERFACES))
    chunks = await collect(exposition(interfaces=interfaces).stream(Part.INTERFACES, gzip=False))
    assert b"".join(chunks) == interfaces
    assert max(map(len, chunks)) <= CHUNK_BYTES


@on_both_loops
async def test_empty_page_has_no_chunks():
    pages = exposition(FakeTable(b""), interfaces=b"")
    parts = Part.FLOWS | Part.INTERFACES
    assert await collect(pages.stream(parts, gzip=False)) == []
    assert zlib.decompress(b"".join(await collect(pages.stream(parts, gzip=True))), wbits=31) == b""


@on_both_loops
async def test_compressed_page_has_no_empty_chunk():
    """An empty chunk would end the HTTP body."""
    stream = exposition(FakeTable(BIG)).stream(Part.FLOWS, gzip=True)
    chunks = await collect(stream)
    assert all(chunks)
    assert zlib.decompress(b"".join(chunks), wbits=31) == BIG
    assert sum(map(len, chunks)) < len(BIG) / 5
    assert stream.page_bytes == len(BIG)


# With ``direct=True``, the table compresses the lines of flows, and isal compresses the rest.


def core_with(connections):
    core = Core()
    core.message(many_flows(connections, node="tid-1", rtt=5), 0)
    return core


@on_both_loops
@pytest.mark.parametrize("parts", [Part.FLOWS, Part.FLOWS | Part.INTERFACES | Part.CAPTURES])
@pytest.mark.parametrize("openmetrics", [0, 1, 2])
@pytest.mark.parametrize(
    "query",
    [FlowQuery(), FlowQuery(part=0, parts=2), FlowQuery(names=frozenset())],
    ids=["whole", "part", "no family"],
)
async def test_direct_pages_equal_uncompressed_pages(parts, openmetrics, query):
    info = InterfaceInfo(NodeNames({"tid-1": ("eth0",) * len(NODE_NAMES)}))
    core = core_with(3_000)
    pages = exposition(
        core.table,
        now=lambda: 0.0,
        interface_info=info,
        standard_names=True,
        start_timestamps=True,
    )
    options = {"openmetrics": openmetrics, "query": query}
    expected = b"".join(await collect(pages.stream(parts, gzip=False, **options)))
    assert (len(expected) > 1_000_000) == (query.names is None)
    marker = (b"# TYPE ", b"_created{", b" st@")[openmetrics]
    assert marker in expected or query.names is not None
    stream = pages.stream(parts, gzip=True, direct=True, **options)
    chunks = await collect(stream)
    member = b"".join(chunks)
    assert all(chunks)
    assert stream.page_bytes == len(expected)
    assert member[:4] == b"\x1f\x8b\x08\0"
    assert zlib.decompress(member, wbits=31) == expected
    assert isal_zlib.decompress(member, wbits=31) == expected
    if HAS_GO:
        assert inflated_by_go(member) == expected


@on_both_loops
async def test_whole_page_can_be_compressed_directly():
    pages = exposition(core_with(DIRECT_CONNECTIONS).table, now=lambda: 0.0)
    member = b"".join(await collect(pages.stream(Part.ALL, gzip=True, direct=True)))
    page = zlib.decompress(member, wbits=31)
    assert page.startswith(b"# HELP skydive_network_connection_total_bytes ")
    assert INTERFACES + CAPTURES + b"# HELP skyfast_build_info " in page
    assert page.endswith(b"\n")


@on_both_loops
async def test_isal_compresses_small_pages():
    """`FakeTable` cannot compress."""
    stream = exposition(FakeTable(BIG)).stream(Part.FLOWS, gzip=True, direct=True)
    assert zlib.decompress(b"".join(await collect(stream)), wbits=31) == BIG


def test_gzip_trailer_has_the_length_modulo_4_gib():
    assert trailer(0x01020304, 2**32 + 5) == b"\4\3\2\1\5\0\0\0"


@pytest.mark.slow
def test_page_can_be_longer_than_4_gib():
    """The gzip trailer contains the length modulo 4 GiB.

    All chunks except the last are equal, because compressing different chunks would take too long.
    """
    text = memoryview(bytes(range(256)) * (1 << 18))
    compressor = zlib.compressobj(1, wbits=-15)
    blocks = compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)
    chunk = DeflatedText(text, blocks)
    count = (1 << 32) // len(text) + 1
    chunks = [*itertools.repeat(chunk, count), b"# EOF\n"]
    decoder = zlib.decompressobj(wbits=31)
    size = 0
    for part in gzipped(chunks):
        size += len(decoder.decompress(part))
    assert decoder.eof
    assert size == count * len(text) + 6 > 1 << 32


@on_both_loops
async def test_direct_pages_are_not_compressed_unless_requested():
    core = core_with(DIRECT_CONNECTIONS)
    pages = exposition(core.table, now=lambda: 0.0)
    page = b"".join(await collect(pages.stream(Part.FLOWS, gzip=False, direct=True)))
    assert page.startswith(b"# HELP ")


@on_both_loops
async def test_partial_direct_pages_do_not_look_complete():
    pages = exposition(core_with(20_000).table, now=lambda: 0.0)
    stream = pages.stream(Part.FLOWS, gzip=True, direct=True)
    chunks = [await anext(stream), await anext(stream)]
    stream.close()
    await stream.ended()
    decoder = zlib.decompressobj(wbits=31)
    assert decoder.decompress(b"".join(chunks)).startswith(b"# HELP ")
    assert not decoder.eof


@on_both_loops
async def test_concurrent_direct_pages_are_equal():
    core = core_with(3_000)
    pages = exposition(core.table, now=lambda: 0.0)
    whole = await asyncio.gather(
        *(collect(pages.stream(Part.FLOWS, gzip=True, direct=True)) for _ in range(4))
    )
    assert len({zlib.decompress(b"".join(chunks), wbits=31) for chunks in whole}) == 1


@on_both_loops
async def test_rendering_waits_for_the_reader():
    table = FakeTable(BIG)
    stream = exposition(table).stream(Part.FLOWS, gzip=False)
    limit = FIRST_CHUNK_BYTES + QUEUE_CHUNKS * CHUNK_BYTES
    await until(lambda: table.rendered_bytes == limit)
    await asyncio.sleep(0.1)
    assert table.rendered_bytes == limit
    assert b"".join(await collect(stream)) == BIG


@on_both_loops
async def test_closing_a_page_ends_its_waiting_thread():
    table = FakeTable(BIG)
    stream = exposition(table).stream(Part.FLOWS, gzip=False)
    assert await anext(stream) == BIG[:FIRST_CHUNK_BYTES]
    await until(lambda: table.rendered_bytes > CHUNK_BYTES * QUEUE_CHUNKS)
    stream.close()
    stream.close()
    await stream.ended()
    await until(lambda: not page_threads())
    assert table.rendered_bytes < len(BIG) / 2


@on_both_loops
async def test_closing_a_page_ends_its_rendering_thread():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)
    stream = exposition(table).stream(Part.FLOWS, gzip=True)
    stream.close()
    table.resume.set()
    await stream.ended()
    await until(lambda: not page_threads())
    assert table.rendered_bytes < len(BIG)


@on_both_loops
async def test_reader_can_continue_after_a_timeout():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)
    stream = exposition(table).stream(Part.FLOWS, gzip=False)
    first = await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    table.resume.set()
    assert first + b"".join(await collect(stream)) == BIG


@on_both_loops
async def test_error_is_raised_after_the_rendered_chunks():
    broken_at = FIRST_CHUNK_BYTES + CHUNK_BYTES
    stream = exposition(FakeTable(BIG, break_at=broken_at)).stream(Part.FLOWS, gzip=False)
    chunks = []
    with pytest.raises(ValueError, match="rendering broke"):
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401  # an error in a comprehension loses the chunks
    assert b"".join(chunks) == BIG[:broken_at]
    await stream.ended()
    await until(lambda: not page_threads())


@on_both_loops
async def test_concurrent_pages_do_not_affect_each_other():
    pages = exposition(FakeTable(BIG))
    whole = await asyncio.gather(
        *(collect(pages.stream(Part.FLOWS, gzip=bool(i % 2))) for i in range(6))
    )
    for i, chunks in enumerate(whole):
        data = b"".join(chunks)
        assert (zlib.decompress(data, wbits=31) if i % 2 else data) == BIG


def test_rendering_thread_can_outlive_its_event_loop():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)

    async def begin():
        stream = exposition(table).stream(Part.FLOWS, gzip=False)
        await anext(stream)
        return stream

    stream = asyncio.run(begin())
    (thread,) = page_threads()
    stream.close()
    table.resume.set()
    thread.join(timeout=5)
    assert not thread.is_alive()
    del stream
    gc.collect()
