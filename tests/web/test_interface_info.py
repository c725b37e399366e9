"""Each capture point has exactly one info series, even if its names are unknown or change."""

from collections.abc import Iterator
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from skyfast.flows.catalog import NODE_NAMES
from skyfast.skydive.name_index import NodeNames
from skyfast.web import interface_info
from skyfast.web.exposition import CHUNK_BYTES
from skyfast.web.interface_info import CHUNK_SERIES, LABELS, InterfaceInfo
from tests.support.prometheus import lint, needs_promtool

Naming = Literal["compatible", "standard"]
Names = tuple[str, ...]

CART: Names = ("eth0", "node-1", "veth", "cni-1", "shop", "cart-abc", "cart", "web")
assert len(CART) == len(NODE_NAMES)

HEAD = """\
# HELP skydive_network_interface_info Names of a capture point. The value is always 1.
# TYPE skydive_network_interface_info gauge
"""


def rendered(info: InterfaceInfo, *node_tids: str, openmetrics: bool = False) -> str:
    return b"".join(info.render(node_tids, openmetrics=openmetrics)).decode()


def samples(page: str, *, openmetrics: bool) -> list[Sample]:
    if openmetrics:
        families = [*text_string_to_openmetrics_families(f"{page}# EOF\n")]
        assert [(family.name, family.type) for family in families] == [
            ("skydive_interface", "info")
        ]
    else:
        families = [*text_string_to_metric_families(page)]
        assert [family.type for family in families] == ["gauge"]
    return [sample for family in families for sample in family.samples]


def test_known_capture_point_has_its_names() -> None:
    info = InterfaceInfo(NodeNames({"tid": CART}))
    assert rendered(info, "tid") == (
        HEAD + 'skydive_network_interface_info{node_tid="tid",interface_name="eth0",host="node-1",'
        'node_netns="cni-1",node_container="web",node_namespace="shop",node_pod="cart-abc",'
        'node_workload="cart"} 1\n'
    )


def test_unknown_capture_point_has_empty_names() -> None:
    info = InterfaceInfo(NodeNames({"tid": CART}))
    (sample,) = samples(rendered(info, "other"), openmetrics=False)
    assert sample.labels == dict.fromkeys(LABELS, "") | {"node_tid": "other"}
    assert sample.value == 1


def test_labels_do_not_conflict_with_target_labels() -> None:
    """Prometheus and ServiceMonitors add the labels in ``added``."""
    added = {"namespace", "service", "pod", "container", "endpoint", "node", "instance", "job"}
    assert not added & {*LABELS}


def test_page_without_capture_points_is_empty() -> None:
    for openmetrics in (False, True):
        assert rendered(InterfaceInfo(NodeNames()), openmetrics=openmetrics) == ""


def test_standard_naming_changes_the_family_name() -> None:
    info = InterfaceInfo(NodeNames({"tid": CART}), naming="standard")
    for openmetrics in (False, True):
        page = rendered(info, "tid", openmetrics=openmetrics)
        (sample,) = samples(page, openmetrics=openmetrics)
        assert sample.name == "skydive_interface_info"
        assert sample.labels["node_pod"] == "cart-abc"
    assert page.startswith("# HELP skydive_interface Names of ")


def test_page_is_divided_into_small_chunks() -> None:
    """Only chunks with unusually long names can exceed `CHUNK_BYTES`."""
    count = 2 * CHUNK_SERIES + 1
    names = NodeNames({f"{n:036}": ("n" * 36,) * len(NODE_NAMES) for n in range(count)})
    chunks = [*InterfaceInfo(names).render([*names])]
    assert len(chunks) == 3
    assert max(map(len, chunks)) < CHUNK_BYTES
    page = b"".join(chunks).decode()
    assert page.count("# TYPE") == 1
    assert len(samples(page, openmetrics=False)) == count


@needs_promtool
@pytest.mark.parametrize("naming", ["compatible", "standard"])
def test_promtool_accepts_the_page(naming: Naming) -> None:
    info = InterfaceInfo(NodeNames({"tid": CART, "odd": ('a "b"\\\n',) * 8}), naming=naming)
    assert lint(rendered(info, "tid", "odd", "unknown").encode()) == []


texts = st.one_of(
    st.sampled_from(("", "eth0", 'a "quoted"\\\nname', "\\n", "é\u2028", "\r")),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
keys = st.sampled_from([f"tid-{n}" for n in range(6)])
all_names = st.one_of(st.just(CART), st.tuples(*[texts] * len(NODE_NAMES)))
changes = st.dictionaries(keys, st.one_of(st.none(), all_names))
"""New names of capture points. None removes the names of a capture point."""


@given(
    node_tids=st.lists(st.one_of(keys, texts), unique=True, max_size=9),
    before=st.dictionaries(keys, all_names),
    later=st.lists(changes, max_size=9),
    standard=st.booleans(),
)
def test_names_that_change_while_a_page_is_rendered_cause_no_second_series(
    node_tids: list[str],
    before: dict[str, Names],
    later: list[dict[str, Names | None]],
    standard: bool,
) -> None:
    names = NodeNames(before)
    had = {node_tid: {names[node_tid]} for node_tid in node_tids}

    def pieces() -> Iterator[bytes]:
        """Yield the chunks of the page, and change names after each chunk."""
        info = InterfaceInfo(names, naming="standard" if standard else "compatible")
        rest = iter(later)
        for chunk in info.render(node_tids, openmetrics=standard):
            yield chunk
            for key, new in next(rest, {}).items():
                if new is None:
                    names.pop(key, None)
                else:
                    names[key] = new
            for node_tid in node_tids:
                had[node_tid].add(names[node_tid])

    with patch.object(interface_info, "CHUNK_SERIES", 2):
        page = b"".join(pieces()).decode()
    if not node_tids:
        assert page == ""
        return
    shown = samples(page, openmetrics=standard)
    assert [sample.labels["node_tid"] for sample in shown] == node_tids
    for sample in shown:
        assert [*sample.labels] == [*LABELS]
        assert sample.value == 1
        name, host, _, netns, namespace, pod, workload, container = zip(
            *had[sample.labels["node_tid"]], strict=True
        )
        for label, values in (
            ("interface_name", name),
            ("host", host),
            ("node_netns", netns),
            ("node_container", container),
            ("node_namespace", namespace),
            ("node_pod", pod),
            ("node_workload", workload),
        ):
            assert sample.labels[label] in values
