"""Parts of a page: the rows of each part, and pages with only some families."""

from collections import Counter

import pytest

from skyfast import _table
from skyfast._table import MAX_PARTS
from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    KNOWN_LABELS,
    LABELS,
    PACKETS,
    RTT,
    TIMEOUT_S,
    Label,
    Model,
    PortGrouping,
    Spec,
    View,
    make_flow,
    one_view,
)
from tests.support import core_builds
from tests.support.model_specs import standard
from tests.support.table_adapter import ODD_TEXTS, Core, many_flows, read_all


@pytest.fixture(params=[Model, Core], ids=["model", "core"])
def make(request):
    return request.param


def parts_of(table, parts, now=0):
    """Return the pages of all parts, after checking that each line is in exactly one part."""
    pages = [table.page(now, part=part, parts=parts) for part in range(parts)]
    for name, lines in table.page(now).items():
        assert Counter(line for page in pages for line in page[name]) == Counter(lines)
    return pages


def test_all_series_of_a_row_are_in_one_part(make):
    table = make()
    table.report(make_flow(rtt=5), 0)
    pages = parts_of(table, 4)
    assert [(len(page[BYTES]), len(page[PACKETS]), len(page[RTT])) for page in pages] == [
        (0, 0, 0),
        (2, 2, 1),
        (0, 0, 0),
        (0, 0, 0),
    ]


def test_assignment_of_rows_to_parts_never_changes(make):
    """Different versions of skyfast must put the same row into the same part."""
    table = make()
    for n in range(20):
        table.report(make_flow(f"{n + 1:x}", a=f"10.0.0.{n}", ports=(40_000 + n, 443)), 0)
    placed = {}
    for part, page in enumerate(parts_of(table, 5)):
        for line in page[BYTES]:
            placed[line.partition('"10.0.0.')[2].partition('"')[0]] = part
    assert [placed[str(n)] for n in range(20)] == [
        0,
        4,
        2,
        0,
        2,
        3,
        4,
        0,
        0,
        3,
        1,
        0,
        2,
        4,
        0,
        1,
        1,
        1,
        1,
        2,
    ]


def test_each_row_with_numbers_or_unusual_strings_is_in_one_part(make):
    ports = Label("port", ("Transport", "A"), number=True, rewrite=PortGrouping(above=1023))
    labels = (*LABELS, ports, Label("vlan", ("Link", "ID"), number=True))
    table = make(one_view(labels=labels))
    numbers = (0, 7, 1023, 1024, 2**31 - 1, 2**31, 2**62)
    for n, text in enumerate(ODD_TEXTS):
        number = numbers[n % len(numbers)]
        flow = make_flow(f"{n + 1:x}", node=text, ports=(n * 100, 443))
        assert table.report(flow | {"Link": {"ID": number}}, 0) is None
    pages = parts_of(table, 3)
    model = Model(one_view(labels=labels))
    assert all(page[BYTES] for page in pages)
    assert len(model.families) == len(FAMILIES)


def test_parts_have_similar_sizes_and_do_not_depend_on_the_order_of_flows():
    flows = many_flows(4000)
    core, other = Core(), Core()
    core.message(flows, 0)
    other.message(flows[::-1], 0)
    for parts in (2, 7, MAX_PARTS):
        pages = parts_of(core, parts)
        assert pages == parts_of(other, parts)
        sizes = [len(page[BYTES]) / 2 for page in pages]
        assert min(sizes) > 0.5 * 4000 / parts
        assert max(sizes) < 1.6 * 4000 / parts


def test_parts_of_each_shard_have_similar_sizes():
    flows = many_flows(2000)
    for index in range(2):
        shard = Core(shard=(index, 2))
        shard.message(flows, 0)
        sizes = [len(page[BYTES]) / 2 for page in parts_of(shard, 2)]
        assert all(400 < size < 600 for size in sizes)


def test_row_of_a_view_is_in_one_part(make):
    node, protocol = KNOWN_LABELS["node_tid"], KNOWN_LABELS["protocol"]
    views = (
        View(),
        View((protocol, DIRECTION, node), standard("first", "bytes", "flows")),
        View((DIRECTION,), standard("second", "bytes")),
        View((Label("application", ("Application",)),), standard("third", "packets")),
    )
    table = make(Spec(views=views))
    for n in range(30):
        table.report(make_flow(f"{n + 1:x}", node=f"node-{n % 5}", ports=(n, 443)), 0)
    for parts in (1, 2, 3, 64):
        pages = parts_of(table, parts)
        # This view has one row, because its only label is the direction.
        assert sorted(len(page["second_bytes_total"]) for page in pages)[-2:] in ([2], [0, 2])
        for page in pages:
            assert 2 * len(page["first_flows"]) == len(page["first_bytes_total"])


def test_parts_do_not_contain_expired_rows(make):
    table = make()
    table.report(make_flow("1"), 0)
    table.report(make_flow("2", ports=(1, 2)), 10)
    assert sum(len(page[BYTES]) for page in parts_of(table, 2, TIMEOUT_S)) == 2


def test_page_can_be_limited_to_some_families(make):
    table = make()
    table.report(make_flow(), 0)
    whole = table.page(0)
    assert table.page(0, names={BYTES}) == {BYTES: whole[BYTES]}
    assert table.page(0, names=[RTT, PACKETS]) == {name: whole[name] for name in (PACKETS, RTT)}
    parts = [table.page(0, part=part, parts=2, names={PACKETS}) for part in range(2)]
    assert sorted(len(page[PACKETS]) for page in parts) == [0, 2]


def test_family_without_rows_in_a_part_has_help_and_type_lines():
    core = Core()
    empty = read_all(core.table.page(0))
    assert empty.count(b"# TYPE ") == len(FAMILIES)
    for openmetrics in (False, True):
        empty = read_all(core.table.page(0, openmetrics))
        assert read_all(core.table.page(0, openmetrics, part=1, parts=2)) == empty


@pytest.mark.parametrize(("part", "parts"), [(1, 1), (0, 0), (5, 5), (0, MAX_PARTS + 1)])
def test_invalid_parts_are_rejected(part, parts):
    with pytest.raises(ValueError, match=f"parts at most {MAX_PARTS}"):
        Core().table.page(0, part=part, parts=parts)


@pytest.mark.parametrize("parts", [-1, 2**32])
def test_number_of_parts_outside_the_integer_range_is_rejected(parts):
    with pytest.raises(OverflowError):
        Core().table.page(0, parts=parts)


def test_part_omits_rows_created_after_its_start():
    core = Core()
    core.message(many_flows(10), 0)
    pages = [core.table.page(0, part=part, parts=2) for part in range(2)]
    core.message(many_flows(5000, first=10), 0)
    assert sum(read_all(page).count(f"{BYTES}{{".encode()) for page in pages) == 20


def test_memory_of_a_part_is_freed():
    checked = hasattr(_table, "check")
    build = _table if checked else core_builds.load(core_builds.built("checked"))
    core = Core(build=build)
    core.message(many_flows(100), 0)
    blocks = build.blocks()
    page = core.table.page(0, part=0, parts=2)
    assert build.blocks() == blocks + 1
    assert read_all(page)
    del page
    assert build.blocks() == blocks
    build.fail_allocation(1)
    with pytest.raises(MemoryError):
        core.table.page(0, part=0, parts=2)
    assert build.blocks() == blocks
