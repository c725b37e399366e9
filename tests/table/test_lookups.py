"""Labels from lookups: several labels of one field, ambiguous keys, and relabeling.

An ambiguous key is an address of several nodes. Its names depend on the *context*: the other
address of the flow and the capture point.
"""

import gc
import sys
from functools import partial
from itertools import chain

import msgspec
import pytest

from skyfast._table import MAX_COLUMNS, MAX_TEXT_BYTES, Table
from skyfast.flows.fields import flow_types
from skyfast.flows.plan import Column
from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    LABELS,
    TIMEOUT_S,
    Family,
    Label,
    Lookup,
    Model,
    Names,
    Spec,
    View,
    looked_up,
    make_flow,
)
from tests.support.model_specs import standard
from tests.support.table_adapter import ALL_ROWS, ODD_TEXTS, Core, many_flows, plan_of

A, B, POINT = ("Network", "A"), ("Network", "B"), ("NodeTID",)
FORWARD = Family("forward", "counter", ("Metric", "ABBytes"))
WEB, DB, CACHE = ("web", "shop", "node-1"), ("db", "shop", "node-2"), ("cache", "infra", "node-3")


@pytest.fixture(
    params=[Model, Core, partial(Core, slots=False)], ids=["model", "core", "core-attributes"]
)
def make(request):
    return request.param


def ends(names, *, context=True):
    """Return three labels for each address of a flow, with one lookup per address."""
    lookups = {
        "initiator": Lookup(names, A, (B, POINT) if context else ()),
        "target": Lookup(names, B, (A, POINT) if context else ()),
    }
    return tuple(
        Label(f"{end}_{name}", lookup.key, lookup=lookup, index=index)
        for end, lookup in lookups.items()
        for index, name in enumerate(("name", "namespace", "host"))
    )


def spec_of(*labels, families=(FORWARD,), **options):
    return Spec(views=(View(labels, families),), **options)


def update(core, flow):
    """Decode a flow with all its fields, and apply it."""
    flows = msgspec.convert([flow], list[core.types.FullReport])
    assert core.table.update(flows, 0) == 1
    core.check()


def samples(table, name="forward", now=0.0):
    """Return the values of a family as text, by label values."""
    return {
        tuple(part.partition('="')[2].removesuffix('"') for part in labels.split('",')): value
        for line in table.page(now)[name]
        for labels, _, value in [line.partition("{")[2].partition('"} ')]
    }


# Several labels of one lookup


def test_one_lookup_returns_all_labels_of_an_address(make):
    names = Names({"10.0.0.1": WEB, "10.0.0.2": DB}, count=3)
    table = make(spec_of(*ends(names)))
    table.report(make_flow("1", (1, 0, 0, 0)), 0)
    table.report(make_flow("2", (2, 0, 0, 0), a="10.0.0.2", b="10.0.0.9"), 0)
    assert samples(table) == {(*WEB, *DB): "1", (*DB, "", "", ""): "2"}


def test_views_show_different_labels_of_one_lookup(make):
    names = Names({"10.0.0.1": WEB, "10.0.0.2": DB}, count=3)
    name, namespace, host, *_, target_host = ends(names)
    views = (
        View((host, target_host), standard("a", "bytes")),
        View((target_host, DIRECTION, namespace, name), standard("b", "bytes")),
        View((namespace,), standard("c", "flows")),
    )
    table = make(Spec(views=views))
    table.report(make_flow("1", (1, 2, 0, 0)), 0)
    assert samples(table, "a_bytes_total") == {("node-1", "node-2"): "3"}
    assert samples(table, "b_bytes_total") == {
        ("node-2", "initiator_to_target", "shop", "web"): "1",
        ("node-2", "target_to_initiator", "shop", "web"): "2",
    }
    names["10.0.0.1"] = ("web", "shop2", "node-1")
    table.relabel(names, ["10.0.0.1"])
    # The first view does not show the changed label.
    assert samples(table, "a_bytes_total") == {("node-1", "node-2"): "3"}
    assert samples(table, "c_flows") == {("shop",): "0", ("shop2",): "1"}


def test_lookup_in_a_missing_object_uses_an_empty_key(make):
    names = Names({"": ("none",), "aa:bb": ("some",)})
    table = make(spec_of(looked_up("link", ("Link", "A"), names), LABELS[2]))
    table.report(make_flow("1", (1, 0, 0, 0), ports=(1, 2)), 0)
    table.report(make_flow("2", (2, 0, 0, 0), ports=(2, 2)) | {"Link": {}}, 0)
    table.report(make_flow("3", (3, 0, 0, 0), ports=(3, 2)) | {"Link": {"A": "aa:bb"}}, 0)
    assert samples(table) == {("none", "1"): "1", ("none", "2"): "2", ("some", "3"): "3"}
    names[""] = ("nothing",)
    table.relabel(names, [""])
    assert samples(table).keys() == {("nothing", "1"), ("nothing", "2"), ("some", "3")}


class CountingNames(Names):
    """Names that record each lookup."""

    def __init__(self, known=None, *, count=1):
        super().__init__(known, count=count)
        self.calls = []

    def __getitem__(self, key):
        self.calls.append(key)
        return super().__getitem__(key)

    def resolve(self, key, other, point):
        self.calls.append((key, other, point))
        return super().resolve(key, other, point)


def test_each_address_of_a_new_flow_is_looked_up_once():
    names = CountingNames({"10.0.0.1": WEB, "10.0.0.2": None}, count=3)
    core = Core(spec_of(*ends(names)))
    update(core, make_flow("1"))
    assert names.calls == ["10.0.0.1", "10.0.0.2", ("10.0.0.2", "10.0.0.1", "node-1")]
    names.calls.clear()
    update(core, make_flow("1", (200, 200, 1, 2), last=9_000))
    assert names.calls == []


def test_core_calls_dunder_missing_of_a_dict_subclass():
    class Missing(dict):
        def __missing__(self, key):
            return (f"no {key}",)

    core = Core(spec_of(looked_up("name", A, Missing({"10.0.0.1": ("web",)}))))
    core.message([make_flow("1"), make_flow("2", a="10.0.0.2")], 0)
    assert samples(core).keys() == {("web",), ("no 10.0.0.2",)}


def test_names_need_not_be_a_dict():
    class Lengths:
        def __getitem__(self, key):
            return (str(len(key)),)

    core = Core(spec_of(looked_up("length", A, Lengths())))
    core.report(make_flow("1"), 0)
    assert samples(core).keys() == {("8",)}


# Ambiguous keys


def test_ambiguous_key_is_resolved_by_the_other_address_and_the_capture_point(make):
    names = Names({"10.0.0.1": None, "10.0.0.9": WEB}, count=3)
    names.contexts = {
        ("10.0.0.1", "10.0.0.2", "node-1"): WEB,
        ("10.0.0.1", "10.0.0.2", "node-2"): DB,
        ("10.0.0.1", "10.0.0.9", "node-1"): CACHE,
    }
    initiator = ends(names)[:3]
    table = make(spec_of(*initiator, LABELS[2]))
    for port, (b, node) in enumerate(
        (
            ("10.0.0.2", "node-1"),
            ("10.0.0.2", "node-2"),
            ("10.0.0.9", "node-1"),
            ("10.0.0.9", "node-2"),
        )
    ):
        table.report(make_flow(f"{port + 1}", b=b, node=node, ports=(port, 443)), 0)
    assert samples(table).keys() == {
        (*WEB, "0"),
        (*DB, "1"),
        (*CACHE, "2"),
        ("", "", "", "3"),
    }


def test_both_addresses_can_be_ambiguous(make):
    names = Names({"10.0.0.1": None, "10.0.0.2": None}, count=3)
    names.contexts = {
        ("10.0.0.1", "10.0.0.2", "node-1"): WEB,
        ("10.0.0.2", "10.0.0.1", "node-1"): DB,
    }
    table = make(spec_of(*ends(names)))
    table.report(make_flow("1", (1, 0, 0, 0)), 0)
    assert samples(table) == {(*WEB, *DB): "1"}


def test_key_can_become_ambiguous_and_unique_again(make):
    names = Names({"10.0.0.1": WEB}, count=3)
    table = make(spec_of(*ends(names)[:3], LABELS[2]))
    table.report(make_flow("1", (1, 0, 0, 0), node="node-1", ports=(1, 443)), 0)
    table.report(make_flow("2", (2, 0, 0, 0), node="node-2", ports=(2, 443)), 0)
    names["10.0.0.1"] = None
    names.contexts[("10.0.0.1", "10.0.0.2", "node-1")] = WEB
    names.contexts[("10.0.0.1", "10.0.0.2", "node-2")] = DB
    table.relabel(names, ["10.0.0.1"])
    assert samples(table) == {(*WEB, "1"): "1", (*DB, "2"): "0"}
    del names.contexts[("10.0.0.1", "10.0.0.2", "node-1")]
    table.relabel(names, ["10.0.0.1"])
    assert samples(table) == {("", "", "", "1"): "0", (*DB, "2"): "0"}
    names["10.0.0.1"] = WEB
    table.relabel(names, ["10.0.0.1"])
    assert samples(table) == {(*WEB, "1"): "0", (*WEB, "2"): "0"}


def test_ambiguous_keys_can_swap_their_names(make):
    names = Names({"10.0.0.1": None}, count=3)
    first = ("10.0.0.1", "10.0.0.2", "node-1")
    second = ("10.0.0.1", "10.0.0.2", "node-2")
    names.contexts = {first: WEB, second: DB}
    table = make(spec_of(*ends(names)[:3]))
    table.report(make_flow("1", (1, 0, 0, 0), node="node-1"), 0)
    table.report(make_flow("2", (2, 0, 0, 0), node="node-2"), 0)
    names.contexts = {first: DB, second: WEB}
    table.relabel(names, ["10.0.0.1"])
    assert samples(table) == {WEB: "0", DB: "0"}
    table.report(make_flow("1", (11, 0, 0, 0), node="node-1", last=9_000), 0)
    assert samples(table) == {WEB: "0", DB: "10"}


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_names_are_looked_up_by_unescaped_text(text):
    names = CountingNames({text: None}, count=3)
    core = Core(spec_of(*ends(names)[:3]))
    update(core, make_flow("1", a=text, b=text, node=text))
    assert names.calls == [text, (text, text, text)]
    names.calls.clear()
    names.contexts[(text, text, text)] = WEB
    core.relabel(names, [text])
    assert names.calls == [text, (text, text, text)]
    assert samples(core).keys() == {WEB}


def test_each_context_is_resolved_once_when_names_change():
    names = CountingNames({"10.0.0.1": None}, count=3)
    core = Core(spec_of(*ends(names), LABELS[2]))
    for n in range(60):
        flow = make_flow(f"{n + 1:x}", node=f"node-{n % 3}", b=f"10.0.1.{n % 2}", ports=(n, 443))
        core.report(flow, 0)
    names.calls.clear()
    core.relabel(names, ["10.0.0.1", "10.0.1.0"])
    contexts = [call for call in names.calls if isinstance(call, tuple)]
    assert sorted(contexts) == [
        ("10.0.0.1", f"10.0.1.{b}", f"node-{node}") for b in range(2) for node in range(3)
    ]
    assert sorted(call for call in names.calls if call not in contexts) == ["10.0.0.1", "10.0.1.0"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"b": "x" * (MAX_TEXT_BYTES + 1)}, "text_too_long"),
        ({"node": "x" * (MAX_TEXT_BYTES + 1)}, "text_too_long"),
    ],
)
def test_fields_of_the_context_are_validated_like_labels(make, fields, reason):
    names = Names({"10.0.0.1": WEB}, count=3)
    table = make(spec_of(*ends(names)[:3]))
    assert table.report(make_flow("1", **fields), 0) == reason
    assert table.flows == 0


@pytest.mark.parametrize("field", ["A", "B", "NodeTID"])
def test_values_that_are_not_strings_are_not_looked_up(field):
    names = CountingNames({"10.0.0.1": None}, count=3)
    core = Core(spec_of(*ends(names)[:3]))
    flow = msgspec.convert(make_flow("1"), core.types.FullReport)
    setattr(flow if field == "NodeTID" else flow.Network, field, None)
    core.table.update([flow], 0)
    assert core.skipped["invalid"] == 1
    assert names.calls == ([] if field == "A" else ["10.0.0.1"])


# Invalid results of lookups


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "invalid"),
        ("web", "invalid"),
        (["web", "shop"], "invalid"),
        ((), "invalid"),
        (("web",), "invalid"),
        (("web", None), "invalid"),
        (("web", 5), "invalid"),
        (("web", b"shop"), "invalid"),
        (("web", "\ud800"), "invalid"),
        (("web", "x" * (MAX_TEXT_BYTES + 1)), "text_too_long"),
        (("web", "x" * MAX_TEXT_BYTES), None),
        (("web", "shop", "more", None), None),
        ((None, "shop"), None),
    ],
)
@pytest.mark.parametrize("is_ambiguous", [False, True], ids=["known", "ambiguous"])
def test_flows_with_invalid_names_are_skipped_or_keep_their_labels(found, reason, is_ambiguous):
    names = Names({"10.0.0.1": ("", "old"), "10.0.0.3": ("", "other")}, count=2)
    context = (B, POINT) if is_ambiguous else ()
    label = Label("namespace", A, lookup=Lookup(names, A, context), index=1)
    core = Core(spec_of(label, LABELS[2]))
    core.report(make_flow("1", (1, 0, 0, 0)), 0)
    core.report(make_flow("2", (2, 0, 0, 0), a="10.0.0.3"), 0)
    names["10.0.0.1"] = None if is_ambiguous else found
    names.contexts[("10.0.0.1", "10.0.0.2", "node-1")] = found
    names["10.0.0.3"] = ("", "new")
    core.relabel(names, ["10.0.0.1", "10.0.0.3"])
    shown = "old" if reason else found[1]
    assert samples(core).keys() == {(shown, "40000"), ("new", "40000")}
    assert core.report(make_flow("3", ports=(7, 443)), 0) == reason
    assert core.report(make_flow("4", a="10.0.0.3", ports=(8, 443)), 0) is None


class FailingNames(Names):
    """Names that raise ``errors`` for some keys and contexts."""

    def __init__(self, known=None, *, count=1):
        super().__init__(known, count=count)
        self.errors = {}

    def __missing__(self, key):
        if key in self.errors:
            raise self.errors[key]
        return super().__missing__(key)

    def resolve(self, key, other, point):
        if (key, other, point) in self.errors:
            raise self.errors[(key, other, point)]
        return super().resolve(key, other, point)


def test_message_can_be_repeated_after_a_lookup_raised_an_exception():
    names = FailingNames({"10.0.0.1": ("web",), "10.0.0.3": None})
    names.errors = {"10.0.0.4": KeyError("4"), ("10.0.0.3", "10.0.0.2", "node-1"): OSError("3")}
    name = "".join(["the name", " of the web"])
    names["10.0.0.1"] = (name,)
    core = Core(spec_of(looked_up("name", A, names, (B, POINT)), LABELS[2]))
    references = sys.getrefcount(name)
    good = [make_flow(f"{n + 1:x}", ports=(n, 443)) for n in range(300)]
    for address, error in (("10.0.0.3", OSError), ("10.0.0.4", KeyError)):
        with pytest.raises(error):
            core.message([*good[:200], make_flow("bad", a=address), *good[200:]], 0)
        assert core.flows <= 200
        assert sys.getrefcount(name) == references
    core.message(good, 0)
    assert core.flows == 300
    assert sys.getrefcount(name) == references


def test_relabeling_moves_no_flow_if_a_lookup_raises_an_exception():
    names = FailingNames({"10.0.0.1": None, "10.0.0.3": ("three",)})
    core = Core(spec_of(looked_up("name", A, names, (B, POINT)), LABELS[2]))
    for n in range(400):
        a = "10.0.0.1" if n % 2 else "10.0.0.3"
        core.report(make_flow(f"{n + 1:x}", a=a, b=f"10.1.0.{n}", ports=(n, 443)), 0)
    size, page = core.bytes, core.page(0)
    for n in range(400):
        names.contexts[("10.0.0.1", f"10.1.0.{n}", "node-1")] = ("z" * 100 + str(n),)
    names["10.0.0.3"] = ("y" * 100,)
    names.errors = {
        "10.0.0.9": KeyError("9"),
        ("10.0.0.1", "10.1.0.301", "node-1"): OSError("301"),
    }

    def keys(*found):
        yield from found
        raise ValueError("the iterator")

    core.report(make_flow("aaa", a="10.0.0.9x", ports=(1_000, 1)), 0)
    core.relabel(names, ["10.0.0.9x"])
    for taken, error in (
        (["10.0.0.3", "10.0.0.1"], OSError),
        (["10.0.0.1", "10.0.0.3"], OSError),
        (keys("10.0.0.3", "10.0.0.1"), ValueError),
        (["10.0.0.3", 5], TypeError),
    ):
        with pytest.raises(error):
            core.table.relabel(names, taken).step(ALL_ROWS)
        core.check()
        assert {*page[FORWARD.name]} <= core.page(0)[FORWARD.name]
    assert core.flows == 401
    names.errors.clear()
    core.relabel(names, ["10.0.0.1", "10.0.0.3"])
    assert len(samples(core)) == 401
    assert not {*page[FORWARD.name]} & core.page(0)[FORWARD.name]
    core.expire(10_000)
    core.expire(20_000)
    assert core.flows == core.connections == 0
    assert core.bytes <= size + 200_000


def test_table_releases_lookup_results_that_no_new_flow_used_for_one_timeout():
    names = Names({"10.0.0.2": None}, count=3)
    texts = ["".join(["text ", str(n), "é" * (n % 2)]) for n in range(3)]
    found = tuple(texts)
    names["10.0.0.1"] = found
    names.contexts[("10.0.0.2", "10.0.0.1", "node-1")] = found
    core = Core(spec_of(*ends(names), LABELS[2]))
    gc.collect()
    before = [sys.getrefcount(each) for each in (found, *texts)]
    core.message([make_flow(f"{n + 1:x}", ports=(n, 443)) for n in range(300)], 0)
    core.relabel(names, ["10.0.0.1", "10.0.0.2"])
    core.relabel(names, ["10.0.0.1", "10.0.0.2"], budget=0)
    gc.collect()
    # The lookups of both addresses have the same result, so the table owns only one reference.
    used = [before[0] + 1, *before[1:]]
    assert [sys.getrefcount(each) for each in (found, *texts)] == used
    core.message([make_flow("fff")], TIMEOUT_S - 1)
    core.expire(TIMEOUT_S + 1)
    assert [sys.getrefcount(each) for each in (found, *texts)] == used
    core.expire(2 * TIMEOUT_S)
    assert [sys.getrefcount(each) for each in (found, *texts)] == before


def test_destroyed_tables_release_the_results_of_lookups():
    found = "web", "".join(["sh", "op"]), "node-1"
    names = Names({"10.0.0.1": found}, count=3)
    references = sys.getrefcount(found)
    core = Core(spec_of(*ends(names)))
    core.report(make_flow("1"), 0)
    assert sys.getrefcount(found) == references + 1
    core = None
    gc.collect()
    assert sys.getrefcount(found) == references


# Interned results of lookups


def test_new_flows_get_the_current_names(make):
    names = Names({"10.0.0.1": WEB, "10.0.0.2": DB}, count=3)
    table = make(spec_of(*ends(names)))
    for n, name in enumerate((WEB, WEB, DB, WEB, CACHE, WEB)):
        names["10.0.0.1"] = name
        table.report(make_flow(f"{n + 1:x}", (1, 0, 0, 0)), n)
    assert samples(table, now=5) == {(*WEB, *DB): "4", (*DB, *DB): "1", (*CACHE, *DB): "1"}


def test_labels_can_use_different_elements_of_one_lookup_result(make):
    names = Names(dict.fromkeys(("10.0.0.1", "10.0.0.2", "node-1"), WEB), count=3)
    first, second, third = Lookup(names, A), Lookup(names, B), Lookup(names, POINT)
    labels = (
        Label("a", A, lookup=first, index=0),
        Label("b", B, lookup=second, index=1),
        Label("c", A, lookup=first, index=2),
        Label("d", POINT, lookup=third, index=0),
    )
    table = make(spec_of(*labels))
    for n in range(3):
        table.report(make_flow(f"{n + 1:x}", (1, 0, 0, 0)), 0)
    assert samples(table) == {("web", "shop", "node-1", "web"): "3"}


def test_names_are_escaped_in_the_same_way_for_each_new_flow(make):
    names = Names({"10.0.0.1": ('a "name" of', "back\\slash", "é\n" * 300)}, count=3)
    table = make(spec_of(*ends(names)))
    for n in range(3):
        table.report(make_flow(f"{n + 1:x}", (1, 0, 0, 0)), 0)
    (labels,) = samples(table)
    assert labels == (r"a \"name\" of", r"back\\slash", r"é\n" * 300, "", "", "")


def test_names_that_change_during_a_message_are_looked_up_again():
    class Changing(Names):
        def __missing__(self, key):
            self["10.0.0.1"] = DB
            return CACHE

    names = Changing({"10.0.0.1": WEB, "10.0.0.2": WEB}, count=3)
    core = Core(spec_of(*ends(names)))
    core.report(make_flow("1"), 0)
    core.message([make_flow("2"), make_flow("3", b="10.0.0.9"), make_flow("4")], 0)
    core.report(make_flow("5"), 0)
    assert core.flows == 5
    assert {labels[0] for labels in samples(core)} == {"web", "db"}


class NewNames(Names):
    """Names that return a new tuple for each lookup."""

    def __getitem__(self, key):
        return (*super().__getitem__(key),)


def test_number_of_interned_lookup_results_is_bounded():
    count = 70_000  # more than MAX_NAMES, the number of results that the table can store
    core = Core(spec_of(looked_up("name", A, NewNames({"10.0.0.1": ("web",)})), LABELS[2]))
    sizes = []
    for start in range(0, count, 1000):
        flows = [make_flow(f"{n + 1:x}", ports=(n % 7, 443)) for n in range(start, start + 1000)]
        core.table.update(msgspec.convert(flows, list[core.types.FirstReport]), 0)
        sizes.append(core.bytes - core.flows * core.row_bytes)
    assert core.connections == 7
    names_row_bytes = 40
    assert max(sizes) < (1 << 16) * names_row_bytes + 2_000_000


@pytest.mark.parametrize("max_rows", [1, 2, ALL_ROWS])
def test_interned_lookup_results_expire_in_slices(max_rows):
    names = Names({f"10.0.0.{n}": (f"name {n}",) for n in range(5)})
    core = Core(spec_of(looked_up("name", A, names)))
    for n in range(5):
        core.report(make_flow(f"{n + 1:x}", a=f"10.0.0.{n}"), n % 3)
    counts = [sys.getrefcount(result) for result in names.values()]
    calls = 1
    while core.table.expire(TIMEOUT_S + 3, max_rows):
        core.check()
        calls += 1
    core.check()
    assert calls == 1 if max_rows == ALL_ROWS else calls > 5 / max_rows
    assert [sys.getrefcount(result) for result in names.values()] == [n - 1 for n in counts]


# Relabeling in slices


def test_relabeling_step_moves_no_more_flows_than_its_budget():
    keys = [f"10.0.0.{n}" for n in range(8)]
    names = Names({key: (key,) for key in keys})
    core = Core(spec_of(looked_up("name", A, names), LABELS[2]))
    for n in range(8):
        for port in range(4):
            flow = make_flow(f"{8 * n + port + 1:x}", a=keys[n], ports=(port, 443))
            core.report(flow, 0)
    for budget, taken, moved in (
        (0, [1] * 8, [1] * 32),
        (1, [1] * 8, [1] * 32),
        (3, [3, 3, 2], [3] * 10 + [2]),
        (5, [5, 3], [5] * 6 + [2]),
        (12, [8], [12, 12, 8]),
        (31, [8], [31, 1]),
        (32, [8], [32]),
        (ALL_ROWS, [8], [32]),
    ):
        names.update({key: (f"{key} {budget}",) for key in keys})
        relabeling = core.relabeling(names, keys)
        slices, sizes = [], []
        while relabeling.has_more:
            before = samples(core).keys()
            slices.append(relabeling.step(budget).taken)
            sizes.append(len(samples(core).keys() - before))
            assert len(samples(core)) == 32
        assert [key for part in slices for key in part] == keys
        assert [len(part) for part in slices if part] == taken
        assert [size for size in sizes if size] == moved
        assert {labels[0] for labels in samples(core)} == {f"{key} {budget}" for key in keys}


def test_key_without_flows_uses_the_budget_of_one_flow():
    names = Names()
    core = Core(spec_of(looked_up("name", A, names)))
    core.report(make_flow("1"), 0)
    unknown = [f"10.9.0.{n}" for n in range(10)]
    assert [len(part.taken) for part in core.relabel(names, unknown, 4)] == [4, 4, 2]
    assert [part.taken for part in core.relabel(names, [], 4)] == [[]]


def test_relabeling_ignores_names_that_no_label_uses():
    core = Core(spec_of(looked_up("name", A, Names())))
    keys = iter(["10.0.0.1"])
    assert core.table.relabel(Names(), keys).step(10) is False
    assert list(keys) == ["10.0.0.1"]


def test_repeated_key_is_relabeled_once():
    names = Names()
    core = Core(spec_of(looked_up("name", A, names)))
    core.report(make_flow("1", (5, 0, 0, 0)), 0)
    names["10.0.0.1"] = ("web",)
    core.relabel(names, ["10.0.0.1"] * 300)
    assert samples(core) == {("web",): "0"}
    assert (core.created_total, core.expired_total) == (2, 1)


def test_reports_between_slices_find_the_new_names():
    names = Names({"10.0.0.1": ("old",), "10.0.0.2": ("old",)})
    core = Core(spec_of(looked_up("name", A, names)))
    core.report(make_flow("1", (1, 0, 0, 0), a="10.0.0.1", b="x"), 0)
    core.report(make_flow("2", (2, 0, 0, 0), a="10.0.0.2", b="x"), 0)
    names.update({"10.0.0.1": ("new",), "10.0.0.2": ("new",)})
    relabeling = core.table.relabel(names, ["10.0.0.1", "10.0.0.2"])
    assert relabeling.step(0)
    assert samples(core) == {("old",): "3", ("new",): "0"}
    core.report(make_flow("3", (4, 0, 0, 0), a="10.0.0.2", b="x"), 0)
    core.report(make_flow("2", (12, 0, 0, 0), a="10.0.0.2", b="x", last=9_000), 0)
    assert samples(core) == {("old",): "13", ("new",): "4"}
    core.expire(0)
    while relabeling.step(0):
        pass
    assert samples(core) == {("new",): "4"}


def slice_of(core, model, names, relabeling):
    """Move one flow in the core and in the model; return its UUID."""
    part = relabeling.step(1)
    model.relabel(names, part.keys, part.uuids)
    assert core.page(0) == model.page(0)
    return part.uuids[-1]


def test_flows_of_one_key_move_in_slices():
    names = Names({"10.0.0.1": ("a",)})
    spec = spec_of(looked_up("name", A, names), families=(FORWARD, Family("flows", "gauge", ())))
    core, model = Core(spec), Model(spec)
    for table in (core, model):
        for n in range(1, 4):
            table.report(make_flow(f"{n}", (100, 0, 0, 0), last=1), 0)
    names["10.0.0.1"] = ("b",)
    relabeling = core.relabeling(names, ["10.0.0.1"])
    assert slice_of(core, model, names, relabeling) == "1"
    assert samples(core) == {("a",): "300", ("b",): "0"}
    assert samples(core, "flows") == {("a",): "2", ("b",): "1"}
    for table in (core, model):
        table.report(make_flow("1", (101, 0, 0, 0), last=2), 0)
        table.report(make_flow("2", (102, 0, 0, 0), last=2), 0)
        table.report(make_flow("4", (4, 0, 0, 0), last=2), 0)
    assert samples(core) == {("a",): "302", ("b",): "5"}
    # After this change, the slices of both relabelings use the name "c".
    names["10.0.0.1"] = ("c",)
    again = core.relabeling(names, ["10.0.0.1"])
    assert slice_of(core, model, names, relabeling) == "2"
    assert samples(core) == {("a",): "302", ("b",): "5", ("c",): "0"}
    assert samples(core, "flows") == {("a",): "1", ("b",): "2", ("c",): "1"}
    assert [slice_of(core, model, names, again) for _ in range(3)] == ["1", "2", "3"]
    assert samples(core) == {("b",): "5", ("c",): "0"}
    assert slice_of(core, model, names, again) == "4"
    assert samples(core) == {("c",): "0"}
    for unfinished in (relabeling, again):
        while unfinished.has_more:
            unfinished.step(1)
    assert samples(core) == {("c",): "0"}
    assert samples(core, "flows") == {("c",): "4"}


def test_flows_become_dormant_and_return_between_slices():
    names = Names({"10.0.0.1": ("a",)})
    spec = spec_of(looked_up("name", A, names), families=(FORWARD, Family("flows", "gauge", ())))
    core, model = Core(spec), Model(spec)
    for table in (core, model):
        for n in range(1, 4):
            table.report(make_flow(f"{n}", (100, 0, 0, 0), last=1), 0 if n == 2 else 10)
    names["10.0.0.1"] = ("b",)
    relabeling = core.relabeling(names, ["10.0.0.1"])
    assert slice_of(core, model, names, relabeling) == "1"
    for table in (core, model):
        table.expire(TIMEOUT_S)
    assert slice_of(core, model, names, relabeling) == "3"
    assert samples(core, now=TIMEOUT_S) == {("b",): "0"}
    for table in (core, model):
        table.report(make_flow("2", (102, 0, 0, 0), last=2), TIMEOUT_S)
    while relabeling.has_more:
        assert not relabeling.step(1).uuids
    assert samples(core, now=TIMEOUT_S) == samples(model, now=TIMEOUT_S) == {("b",): "2"}
    assert samples(core, "flows", now=TIMEOUT_S) == {("b",): "3"}


def test_failed_relabeling_step_can_be_repeated():
    names = FailingNames({f"10.0.0.{n}": ("old",) for n in range(4)})
    core = Core(spec_of(looked_up("name", A, names), LABELS[2]))
    for n in range(12):
        core.report(make_flow(f"{n + 1:x}", a=f"10.0.0.{n % 4}", ports=(n, 443)), 0)
    for n in range(4):
        names[f"10.0.0.{n}"] = ("new",)
    relabeling = core.relabeling(names, [f"10.0.0.{n}" for n in range(4)])
    relabeling.step(4)
    page = core.page(0)
    del names["10.0.0.2"]
    names.errors = {"10.0.0.2": OSError("2")}
    for _ in range(2):
        with pytest.raises(OSError, match="2"):
            relabeling.step(4)
        assert core.page(0) == page
    names["10.0.0.2"] = ("new",)
    while relabeling.has_more:
        relabeling.step(4)
    assert {name for name, _ in samples(core)} == {"new"}


def test_hundreds_of_changed_names_have_the_same_result_as_in_the_model():
    names = Names(count=3)
    spec = spec_of(*ends(names), families=FAMILIES)
    core, model = Core(spec), Model(spec)
    flows = many_flows(400)
    for n, flow in enumerate(flows):
        flow |= {"NodeTID": f"node-{n % 3}"}
    addresses = [flow["Network"]["A"] for flow in flows]
    core.message(flows, 0)
    model.message(flows, 0)
    for step in range(6):
        for n, address in enumerate(addresses):
            kind = (n + step) % 4
            names[address] = None if kind == 0 else (f"{kind}", f"{n % 7}", "x" * (10 * kind))
            names.contexts[(address, "10.0.0.2", f"node-{n % 3}")] = (f"{step}", "", f"{n % 2}")
        names["10.0.0.2"] = (f"{step}", "b", "c")
        keys = [*addresses, "10.0.0.2"]
        relabeling = core.relabeling(names, keys)
        while relabeling.has_more:
            part = relabeling.step((ALL_ROWS, 300, 3)[step % 3])
            model.relabel(names, part.keys, part.uuids)
        assert core.page(0) == model.page(0)
        assert (core.created_total, core.expired_total) == (
            model.created_total,
            model.expired_total,
        )


# Limits and layout


def lookup_columns(count, names, *, context):
    lookup = Lookup(names, A, context)
    return [Label(f"n{n}", A, lookup=lookup, index=n) for n in range(count)]


@pytest.mark.parametrize(("context", "keys"), [((), 1), ((B, POINT), 3)])
def test_each_field_used_by_lookups_counts_as_one_column(context, keys):
    names = Names(count=MAX_COLUMNS)
    most = MAX_COLUMNS - keys
    labels = lookup_columns(most + 1, names, context=context)
    views = (View(labels[:32], (FORWARD,)), View(labels[32:most], standard("b", "bytes")))
    core = Core(Spec(views=views))
    names["10.0.0.1"] = tuple(f"name {n}" for n in range(MAX_COLUMNS))
    core.report(make_flow("1"), 0)
    assert samples(core).keys() == {tuple(f"name {n}" for n in range(32))}
    too_many = View(labels[32:], standard("b", "bytes"))
    with pytest.raises(ValueError, match="too many labels"):
        Core(Spec(views=(views[0], too_many)))


def test_flow_stores_four_bytes_for_each_field_used_by_lookups():
    def flow_bytes(*labels):
        core = Core(spec_of(*labels))
        return core.row_bytes - 4 * (len(labels) + len(labels) % 2)

    names = Names(count=9)
    plain = flow_bytes(LABELS[0], LABELS[1])
    assert flow_bytes(*lookup_columns(2, names, context=())) == plain + 8
    assert flow_bytes(*lookup_columns(8, names, context=())) == plain + 8
    with_context = flow_bytes(*ends(names))
    assert with_context == plain + 16


@pytest.mark.parametrize("wrong", [{"index": -1}, {"rewrite": Names()}])
def test_label_of_a_lookup_must_have_an_index_and_no_rewrite(wrong):
    plan = plan_of(spec_of(looked_up("name", A, Names())))
    (view,) = plan.views
    lookup = view.columns[0].lookup
    column = Column(**{"name": "n", "path": A, "lookup": lookup} | wrong)
    plan = plan_of(spec_of(LABELS[0]))
    object.__setattr__(plan.views[0], "columns", (column,))
    with pytest.raises(ValueError, match="index"):
        Table(plan, flow_types(plan), max_connections=1, max_flows=1, timeout_s=TIMEOUT_S)


def test_labels_from_lookups_do_not_identify_connections():
    names = Names({"10.0.0.1": ("web",)})
    labels = (looked_up("a", A, names), *LABELS[1:4], DIRECTION)
    assert not plan_of(spec_of(*labels, families=FAMILIES)).views[0].identifies_connection
    core = Core(spec_of(*labels, families=FAMILIES))
    core.report(make_flow("1", (9, 0, 0, 0), last_update=(1, 0, 0, 0), update_start=5), 0)
    assert any(line.endswith(" 1") for line in core.page(0)[BYTES])


# Interned strings


def all_strings(table, count):
    """Return the strings of a table, sorted, after reading at most ``count`` at a time."""
    found, first = [], 1
    while first:
        texts, first = table.strings(first, count)
        assert len(texts) <= count
        found += texts
    return sorted(found)


@pytest.mark.parametrize("count", [1, 3, 1000, 2**32 - 1])
def test_all_strings_of_stored_rows_can_be_read(count):
    names = Names({"10.0.0.1": WEB, "é": DB, 'a"b': CACHE, "x": CACHE})
    core = Core(spec_of(*ends(names, context=False)))
    assert all_strings(core.table, count) == []
    core.report(make_flow("1", (1, 0, 0, 0), a="10.0.0.1", b="é"), 0)
    assert all_strings(core.table, count) == sorted({*WEB, *DB, "10.0.0.1", "é"})
    core.report(make_flow("2", (1, 0, 0, 0), a='a"b', b="10.0.0.1", last=9_000), 40)
    assert all_strings(core.table, count) == sorted({*WEB, *DB, *CACHE, "10.0.0.1", "é", r"a\"b"})
    core.expire(TIMEOUT_S + 1)
    assert all_strings(core.table, count) == sorted({*WEB, *CACHE, "10.0.0.1", r"a\"b"})
    core.report(make_flow("3", (1, 0, 0, 0), a="x", b="10.0.0.1", last=9_000), 40)
    assert all_strings(core.table, count) == sorted({*WEB, *CACHE, "10.0.0.1", r"a\"b", "x"})


def test_interned_strings_keep_their_numbers():
    names = Names({f"10.0.0.{number}": WEB for number in range(50)} | {"b": DB})
    core = Core(spec_of(*ends(names, context=False)))
    for number in range(50):
        core.report(make_flow(f"{number}", (1, 0, 0, 0), a=f"10.0.0.{number}", b="b"), 0)
    before = [core.table.strings(number, 1)[0] for number in range(1, 57)]
    assert sorted(chain.from_iterable(before)) == all_strings(core.table, 7)
    core.report(make_flow("ff", (1, 0, 0, 0), a="10.0.0.1", b="b"), 0)
    assert [core.table.strings(number, 1)[0] for number in range(1, 57)] == before
    assert core.table.strings(0, 1) == core.table.strings(1, 1)
    assert core.table.strings(2**32 - 1, 1) == ([], 0)
