"""Compressed pages: several decoders must return the lines of the uncompressed page."""

import random
import zlib

import pytest
from isal import isal_zlib

from skyfast import _table
from skyfast._table import MAX_VIEW_COLUMNS
from tests.model import (
    DIRECTION,
    FAMILIES,
    LABELS,
    TIMEOUT_S,
    Family,
    Label,
    Spec,
    View,
    make_flow,
)
from tests.support import core_builds
from tests.support.deflated import (
    HAS_GO,
    LAST_BLOCK,
    check_with_all_decoders,
    deflate_all,
    gzip_member,
    inflate,
    inflated_by_go,
    read_deflated,
    strictly_inflated,
)
from tests.support.golden import recorded
from tests.support.model_specs import CONFIGURATIONS
from tests.support.pieces import COPIED, FIXED, HEAD, KIND, STRING, TEXT, Slices, random_slices
from tests.support.table_adapter import ODD_TEXTS, Core, many_flows, read_all

checked = _table if hasattr(_table, "check") else core_builds.load(core_builds.built("checked"))

in_all_formats = pytest.mark.parametrize("openmetrics", [0, 1, 2])
"""The formats of a page: 0 is the text format, 1 is OpenMetrics 1.0, and 2 is OpenMetrics 2.0."""

usual_steps = pytest.mark.skipif(
    core_builds.IS_SLOW, reason="other builds may have smaller slices and chunks"
)

WINDOW = 32_768
"""The maximum distance of a match in DEFLATE, in bytes."""

APPLICATION = Label("application", ("Application",))
SKIPPED = Family(
    "skipped", "counter", ("TCPMetric", "ABSegmentSkipped"), ("TCPMetric", "BASegmentSkipped")
)
HISTOGRAMS = (
    Family(
        "rtt",
        "histogram",
        ("Metric", "RTT"),
        observes="first",
        decimals=9,
        buckets=("0.001", "0.005", "1.0"),
    ),
    Family(
        "size",
        "histogram",
        ("Metric", "ABBytes"),
        ("Metric", "BABytes"),
        observes="total",
        buckets=tuple(f"{n}.0" for n in range(1, 21)),
    ),
)
TTL = Family("ttl", "gauge", ("TCPMetric", "ABSynTTL"), ("TCPMetric", "BASynTTL"))


def varied_flows(count, *, first=0):
    """Return flows in which some label values occur once, and others occur often."""
    return [
        make_flow(
            f"{n + 1:x}",
            (n * 7919, n, n % 5, 10**n if n < 18 else n),
            a=f"10.{n % 7}.{n * 31 % 256}.{n % 256}",
            b=f"fd00::{n * 77 % 65536:x}",
            ports=(32_768 + n % 20_000, (53, 80, 443, 9100)[n % 4]),
            node=f"node-{n % 9}-" + "x" * (n % 9 * 20),
            rtt=n % 3 and n * 1000,
            start=n % 7 and 1_700_000_000_000 + n * 130,
        )
        for n in range(first, first + count)
    ]


def table_of(flows, *views, build=_table):
    core = Core(Spec(views=views), build=build) if views else Core(build=build)
    core.message(flows, 0)
    return core


def odd_texts():
    return [
        make_flow(f"{n * 3 + m + 1:x}", (n, m, n, m), rtt=n, a=a, b=b, node=node)
        for n, text in enumerate(ODD_TEXTS)
        for m, (a, b, node) in enumerate([(text, "", ""), ("", text, "n"), ("a", "b", text)])
    ]


def long_lines():
    """Return flows and views whose lines are longer than `WINDOW`."""
    labels = tuple(Label(f"label_{n}", ("Application",)) for n in range(MAX_VIEW_COLUMNS))
    flows = many_flows(5)
    for n, flow in enumerate(flows):
        flow["Application"] = "\n" * 1023 + str(n)
    return flows, View((*labels, DIRECTION), FAMILIES), View(LABELS)


def histogram_views():
    return View(), View((*LABELS[:2], DIRECTION), HISTOGRAMS), View((), HISTOGRAMS[:1])


# Flows and views of a table, by case
TABLES = {
    "empty": lambda: ([],),
    "one connection": lambda: (many_flows(1),),
    "many connections": lambda: (varied_flows(300),),
    "unusual strings": lambda: (odd_texts(),),
    "long lines": long_lines,
    "small families": lambda: (
        varied_flows(3),
        *(View((LABELS[n],), FAMILIES[:1], timeout_s=75) for n in range(4)),
    ),
    "no labels": lambda: (varied_flows(3), View((), FAMILIES[:1])),
    "histograms": lambda: (varied_flows(60), *histogram_views()),
    "only the label direction": lambda: (varied_flows(3), View((DIRECTION,), FAMILIES)),
}


@in_all_formats
@pytest.mark.parametrize("name", TABLES)
def test_all_decoders_return_the_lines_of_the_page(name, openmetrics):
    table = table_of(*TABLES[name]()).table
    lines, blocks = deflate_all(table.page(0, openmetrics, created=True), 20_000)
    assert lines == read_all(table.page(0, openmetrics, created=True))
    check_with_all_decoders(lines, blocks)


@in_all_formats
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_all_decoders_return_the_pages_of_recordings(name, openmetrics):
    configuration = CONFIGURATIONS[name]
    core = Core(configuration.spec)
    for recording in configuration.recordings:
        for wall_ms, _, _, flows in recorded(recording, 0):
            core.message(flows, 0, wall_ms)
    lines, blocks = deflate_all(core.table.page(0, openmetrics, created=True), 20_000)
    assert lines == read_all(core.table.page(0, openmetrics, created=True))
    assert lines.count(b"\n") > 30
    check_with_all_decoders(lines, blocks)


@pytest.mark.skipif(not HAS_GO, reason="Go is not installed")
def test_go_rejects_damaged_gzip_members():
    lines, blocks = deflate_all(table_of(many_flows(3)).table.page(0))
    member = gzip_member(lines, blocks)
    assert inflated_by_go(member) == lines
    for bad in (member[:-9], member + b"x", member[:-8] + bytes(8)):
        with pytest.raises(Exception, match="exit status 1"):
            inflated_by_go(bad)


@in_all_formats
@pytest.mark.parametrize("size", [1, 100, 5_000, 100_000, 2**31 - 1])
def test_compressed_lines_do_not_depend_on_the_chunk_size(size, openmetrics):
    page = table_of(varied_flows(1_000)).table.page
    lines = read_deflated(page(0, openmetrics, created=True), size)
    assert lines == read_all(page(0, openmetrics, created=True))
    assert lines.count((b"# TYPE ", b"_created{", b" st@")[openmetrics]) > 2


@usual_steps
def test_chunks_are_about_as_large_as_requested():
    page = table_of(varied_flows(5_000)).table.page(0)
    sizes = [len(page.deflate(10_000)[0]) for _ in range(20)]
    assert all(10_000 <= size < 11_000 for size in sizes)
    assert 500_000 < len(page.deflate(10_000_000)[0]) < 600_000


def test_next_read_overwrites_the_previous_chunk():
    page = table_of(varied_flows(500)).table.page(0)
    first, _ = page.deflate(1_000)
    copy = bytes(first)
    page.deflate(1_000)
    assert bytes(first) != copy
    del page
    assert len(bytes(first)) == len(copy)


def test_reads_after_the_end_return_an_empty_block():
    page = table_of(varied_flows(3)).table.page(0)
    lines, blocks = deflate_all(page)
    for _ in range(3):
        more, end = page.deflate(100)
        assert (bytes(more), end[-4:]) == (b"", b"\0\0\xff\xff")
        blocks += end
    assert inflate(blocks) == lines


@in_all_formats
@pytest.mark.parametrize("parts", [2, 7])
def test_page_with_only_some_parts_and_families_can_be_compressed(parts, openmetrics):
    core = table_of(varied_flows(500))
    names = {core.families[0].name}
    for part in range(parts):
        for query in ({}, {"names": names}):
            page = core.table.page(0, openmetrics, created=True, part=part, parts=parts, **query)
            other = core.table.page(0, openmetrics, created=True, part=part, parts=parts, **query)
            assert read_deflated(page) == read_all(other)


@in_all_formats
def test_page_can_be_compressed_if_some_rows_lack_the_first_direction(openmetrics):
    """The line of the second direction is usually a copy of the line of the first direction."""
    for position in (0, 1, 2):
        labels = [LABELS[0], LABELS[1]]
        labels.insert(position, DIRECTION)
        flows = varied_flows(100)
        for n, flow in enumerate(flows):
            flow["TCPMetric"] = {"ABSynTTL": n % 3, "BASynTTL": n % 4, "BASegmentSkipped": n}
        page = table_of(flows, View(tuple(labels), (SKIPPED, TTL, *FAMILIES))).table.page
        lines = read_deflated(page(0, openmetrics, created=True))
        assert lines == read_all(page(0, openmetrics, created=True))
        ttl = [line.rpartition(b" ")[2] for line in lines.splitlines() if line[:4] == b"ttl{"]
        assert sorted(set(ttl)) == [b"1", b"2", b"3"]
        assert len(ttl) == 66 + 75


@in_all_formats
def test_strings_can_be_replaced_between_two_chunks(openmetrics):
    """The core identifies strings by numbers. New strings reuse the numbers of removed strings."""
    core = Core()
    core.message(many_flows(300, node="a" * 40), 0)
    page = core.table.page(0, openmetrics, created=True)
    chunks = [page.deflate(5_000)]
    lines = [bytes(chunks[0][0])]
    core.expire(TIMEOUT_S)
    core.message([make_flow(f"f{n:x}", a=f"172.16.0.{n}", node="b" * 40) for n in range(200)], 80)
    rest, blocks = deflate_all(page, 5_000)
    lines.append(rest)
    assert inflate(chunks[0][1] + blocks) == b"".join(lines)
    assert b"b" * 40 not in b"".join(lines)
    whole = read_deflated(core.table.page(80, openmetrics, created=True), 5_000)
    assert whole == read_all(core.table.page(80, openmetrics, created=True))
    assert whole.count(b"b" * 40) == 2 * 2 * 200 * (1 + (openmetrics == 1))


@in_all_formats
def test_values_can_change_between_two_chunks(openmetrics):
    core = table_of(varied_flows(2_000))
    page = core.table.page(0, openmetrics, created=True)
    lines, blocks = [], []
    for n in range(200):
        chunk, deflated = page.deflate(5_000)
        lines.append(bytes(chunk))
        blocks.append(deflated)
        core.message(many_flows(50, total=(n + 9, n, n, n), last=2_000 + n, first=n * 10), 0)
    rest, deflated = deflate_all(page, 5_000)
    assert inflate(b"".join(blocks) + deflated) == b"".join(lines) + rest


@pytest.mark.slow
def test_compressed_pages_are_right_while_connections_change_for_an_hour():
    core = Core(Spec(views=(View(LABELS), View((LABELS[0], DIRECTION), timeout_s=75))))
    rng = random.Random(0)
    now = first = 0
    while now < 3_600:
        page = core.table.page(now, now // 15 % 3, created=True)
        lines, blocks = [], []
        while not lines or lines[-1]:
            chunk, deflated = page.deflate(rng.choice((1_000, 20_000, 100_000)))
            lines.append(bytes(chunk))
            blocks.append(deflated)
            if rng.random() < 0.5:
                core.message(varied_flows(rng.choice((1, 30)), first=first), now)
                first += rng.choice((0, 30))
            core.table.expire(now, rng.choice((1, 100)))
        text = b"".join(lines)
        member = gzip_member(text, b"".join(blocks))
        assert zlib.decompress(member, wbits=31) == text
        assert isal_zlib.decompress(member, wbits=31) == text
        if HAS_GO:
            assert inflated_by_go(member) == text
        core.message(varied_flows(rng.choice((0, 300)), first=first), now)
        first += 100
        now += 15
    assert core.connections > 100
    assert core.expired_total > 1_000


@usual_steps
@in_all_formats
@pytest.mark.parametrize("views", [(), histogram_views()], ids=["default", "histograms"])
def test_compressed_pages_are_as_small_as_those_of_isal(views, openmetrics):
    table = table_of(varied_flows(3_000), *views).table
    lines, blocks = deflate_all(table.page(0, openmetrics, created=True))
    assert len(blocks) <= 1.05 * len(isal_zlib.compress(lines, 1, wbits=31))
    assert len(blocks) < 1.05 * len(zlib.compress(lines, 1))


# Pieces of pages: a piece tells the compressor where the same text may occur earlier on the page


@in_all_formats
@pytest.mark.parametrize("name", TABLES)
def test_pieces_cover_the_page_and_refer_to_equal_text(name, openmetrics):
    page = table_of(*TABLES[name](), build=checked).table.page(0, openmetrics, created=True)
    text = b""
    latest = {}
    slices = checked.page_slices(page)
    for lines, pieces in slices:
        assert sum(length for length, _ in pieces) == len(lines)
        text += lines
        end = len(text) - len(lines)
        for length, source in pieces:
            start, end = end, end + length
            piece = text[start:end]
            kind = source & KIND
            if kind == HEAD:
                assert piece.startswith(b"# ")
                latest.clear()
            elif kind == COPIED:
                assert piece == text[start - source + COPIED :][:length]
            elif kind == FIXED or source & STRING:
                assert latest.setdefault(source, piece) == piece
    other = table_of(*TABLES[name]()).table.page(0, openmetrics, created=True)
    assert text == read_all(other)
    assert len(text) < 3_000 or len(slices) > 2


# Arbitrary text with arbitrary pieces: a wrong piece may only make the compression worse


def deflated(slices: Slices, **options: int) -> bytes:
    blocks = checked.deflate_pieces(slices, **options)
    text = b"".join(text for text, _ in slices)
    assert inflate(blocks) == text
    return blocks


def test_text_without_pieces_can_be_compressed():
    text = bytes(range(256))
    blocks = deflated([(text, []), (text, [])])
    assert strictly_inflated(blocks + LAST_BLOCK) == text * 2
    assert deflated([]) == b"\0\0\0\xff\xff"


@pytest.mark.parametrize("length", [1, 2, 3, 4, 257, 258, 259, 260, 261, 262, 400, 499])
def test_matches_can_have_any_length(length):
    text = random.Random(length).randbytes(length)
    slices = [(text, []), (text, [(length, COPIED | length)])]
    blocks = deflated(slices)
    assert strictly_inflated(blocks + LAST_BLOCK) == text * 2
    assert length < 10 or len(blocks) < 2 * len(text) + 150


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 32_767, 32_768, 32_769, 40_000])
def test_only_matches_within_the_window_are_used(distance):
    rng = random.Random(distance)
    start = [(rng.randbytes(400), []) for _ in range(distance // 400 + 1)]
    text = b"".join(text for text, _ in start)
    length = min(distance, 100)
    copy = text[len(text) - distance :][:length]
    blocks = deflated([*start, (copy, [(length, COPIED | distance)])])
    others = checked.deflate_pieces(start)
    growth = len(blocks) - len(others)
    assert growth < 10 if distance <= WINDOW else growth > 80


def test_matches_never_reach_back_beyond_the_start():
    for distance in (1, 99, 100, 101, 500, WINDOW):
        slices = [(bytes(100), []), (bytes(100), [(100, COPIED | distance)])]
        strictly_inflated(deflated(slices) + LAST_BLOCK)
        strictly_inflated(deflated(slices[1:]) + LAST_BLOCK)


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_found_after_the_first_4_gib(seed):
    """The core stores positions modulo 4 GiB. This may make compressed text at most 1 % longer."""
    rng = random.Random(seed)
    slices: Slices = []
    while sum(len(text) for text, _ in slices) < WINDOW:
        slices += random_slices(rng, checked.MAX_SLICE)
    start = len(slices)
    while sum(len(text) for text, _ in slices[start:]) < 5_000:
        slices += random_slices(rng, checked.MAX_SLICE)
    assert len(deflated(slices, long_from=start)) <= 1.01 * len(deflated(slices))


def test_wrong_pieces_do_not_change_the_text():
    for text in (b"a" * 300, b"abcdefghij" * 30, "é😀".encode() * 50):
        for pieces in (
            [(300, FIXED | 1)],
            [(3, FIXED | 1)] * 100,
            [(10, STRING | 5)] * 40,
            [(2**31, COPIED | 1)],
            [(0, HEAD)] * 100,
            [(0, STRING | 2**28 - 1), (0, FIXED | 2**27), (7, 5 << 28), (7, COPIED)] * 50,
            [(7, TEXT)] * 60,
        ):
            deflated([(text, pieces), (text[::-1], pieces), (text, pieces)])


def test_huffman_codes_adapt_to_the_text():
    """Huffman codes for digits compress letters badly, so the codes must change."""
    rng = random.Random(1)
    size = checked.MAX_SLICE * 4 // 5
    count = 20_000 // size + 5
    digits = [(bytes(rng.choices(b"0123456789", k=size)), []) for _ in range(count)]
    letters = [(bytes(rng.choices(b"abcdefgh", k=size)), []) for _ in range(count)]
    blocks = deflated(digits + letters)
    bits = (3.5 + 3.2) * count * size
    assert len(blocks) < bits / 8 + 4 * size + 500


@pytest.mark.parametrize("seed", range(40))
def test_random_pieces_do_not_change_the_text(seed):
    slices = random_slices(random.Random(seed), checked.MAX_SLICE)
    blocks = deflated(slices)
    if seed % 4 == 0:
        assert strictly_inflated(blocks + LAST_BLOCK) == b"".join(text for text, _ in slices)
