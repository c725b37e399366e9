"""Reading names from an analyzer, over real sockets."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from threading import Lock

import pytest
from msgspec import structs

from skyfast.skydive import name_poller, topology_client
from skyfast.skydive import topology_queries as queries
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.name_hints import Hints, find_hints
from skyfast.skydive.name_index import NameIndex
from skyfast.skydive.name_poller import needed
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.topology import TopologyPoller
from skyfast.skydive.topology_graph import Graph
from skyfast.skydive.topology_store import TopologyStore
from skyfast.stats import NAME_SKIPS, TopologyStats
from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.configs import make_config
from tests.support.paths import DATA
from tests.support.tasks import cancelled_afterwards
from tests.support.topology_scenarios import owner
from tests.support.waiting import until

EVERYTHING = tuple(name_poller.KINDS)
FAST_S = 0.05


def recorded():
    """Return the recorded topology, in which all nodes and edges have the same update time."""
    (graph,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
    return graph


def pod(name, address, *, updated_at=2_000_000_000_000, **k8s):
    fields = {"Name": name, "Namespace": "default", "IP": address, "Status": "Running", **k8s}
    return {
        "ID": name,
        "Host": "an1",
        "CreatedAt": updated_at,
        "UpdatedAt": updated_at,
        "Metadata": {
            "Type": "pod",
            "Manager": "k8s",
            "Name": name,
            "ClusterName": "labcluster",
            "K8s": fields,
        },
    }


def owned_by(kind, name):
    """Return the field ``Extra`` of a pod or Job with this owner."""
    return {"Extra": {"ObjectMeta": {"OwnerReferences": [owner(kind, name)]}}}


def edge(parent, child, relation, *, updated_at=2_000_000_000_000):
    return {
        "ID": f"{parent}-{child}",
        "Parent": parent,
        "Child": child,
        "Metadata": {"RelationType": relation},
        "UpdatedAt": updated_at,
    }


class NamePoll:
    """A poller, and the changes that it has reported."""

    def __init__(
        self, *urls, interval_s=0, wanted=EVERYTHING, observe=None, index=None, **settings
    ):
        self.stats = TopologyStats()
        self.renamed = []
        config = make_config(*urls, interfaces_interval=interval_s, **settings)
        self.index = index or NameIndex(keep_s=60.0, k8s_labels=config.export.k8s_labels)
        self.stats.names = self.index.stats
        self.poller = TopologyPoller(
            config=config,
            interfaces=Interfaces(interval_s=20, connection_timeout_s=60.0, stats=self.stats),
            stats=self.stats,
            now=time.monotonic,
            names=self.index,
            wanted=wanted,
            renamed=lambda names, keys: self.renamed.append((names, set(keys))),
            observe=observe,
        )

    @asynccontextmanager
    async def running(self):
        async with cancelled_afterwards(self.poller.run()):
            yield self

    async def ready(self):
        await asyncio.wait_for(self.index.ready.wait(), 5)

    def name(self, address):
        names = self.index.addresses[address]
        return None if names is None else names[0]


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(name_poller, "INTERVAL_S", FAST_S)
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", FAST_S)


# The choice of queries.


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["initiator_ip", "target_ip"], ()),
        (["node_name", "node_host", "node_type"], EVERYTHING[:1]),
        (["node_netns", "node_container", "node_name"], EVERYTHING[:3]),
        (["node_pod"], EVERYTHING),
        (["initiator_host"], EVERYTHING),
        (["target_name"], EVERYTHING),
        (["initiator_ip", {"name": "team", "k8s_label": "team"}], EVERYTHING),
        (["target_network", {"name": "site", "names_key": "site"}], ()),
        (["target_network", "node_name"], EVERYTHING[:1]),
    ],
)
def test_the_labels_determine_the_queries(labels, expected):
    config = make_config("ws://127.0.0.1:1/ws/subscriber/flow", labels=labels)
    assert needed(config) == expected


@pytest.mark.parametrize("labels", [["node_tid"], ["node_tid", "node_name"]])
def test_interface_info_needs_all_queries(labels):
    config = make_config(labels=labels, interface_info=True)
    assert needed(config) == EVERYTHING


async def test_only_the_required_queries_are_sent():
    for wanted in (EVERYTHING[:1], EVERYTHING[:3], EVERYTHING):
        async with FakeAnalyzer() as analyzer:
            analyzer.graph = recorded()
            async with NamePoll(analyzer.url, wanted=wanted).running() as poll:
                await poll.ready()
            assert analyzer.queries == [query.gremlin for query in wanted]


async def test_all_names_of_a_recorded_topology_are_resolved():
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
        index = poll.index
        assert poll.name("172.31.255.5") == "default/frontend"
        names = poll.stats.names
        assert names.addresses == len(index.addresses) > 20
        assert names.nodes == len(index.nodes) > 20
        assert names.resolutions == 1
        assert names.skipped == dict.fromkeys(NAME_SKIPS, 0)
        assert names.query_duration_s.keys() == {*name_poller.KINDS.values()}
        assert poll.stats.errors == dict.fromkeys(poll.stats.errors, 0)


# Hints: log lines that explain why labels are empty.

KUBERNETES_LABELS = [
    *("initiator_name", "initiator_workload", "target_service", "target_pod", "node_namespace"),
    {"name": "team", "k8s_label": "team"},
]
NO_PODS = (
    "labels initiator_workload, target_service, target_pod and 3 more are empty: the topology has"
    " no pods; enable Skydive's Kubernetes probe (k8s) on an analyzer"
)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_empty_labels_are_explained_until_there_are_pods(fast, monkeypatch, caplog):
    monkeypatch.setattr(name_poller, "FULL_INTERVAL_S", 0)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = {"Nodes": [], "Edges": []}
        async with NamePoll(analyzer.url, labels=KUBERNETES_LABELS).running() as poll:
            await until(lambda: poll.stats.names and poll.stats.names.labels_without_pods)
            names = poll.stats.names
            assert f"labels {names.labels_without_pods} are empty:" in NO_PODS
            assert names.missing_pod_labels == ()
            analyzer.graph["Nodes"].append(pod("a", "10.0.0.1"))
            await until(lambda: names.missing_pod_labels == ("team",))
            assert names.labels_without_pods == ""
            labels = {"tier": "1", "team": ""}
            analyzer.graph["Nodes"].append(pod("b", "10.0.0.2", Labels=labels))
            await until(lambda: names.missing_pod_labels == ())
            resolutions = names.resolutions
            analyzer.graph["Nodes"].append(pod("c", "10.0.0.3"))
            await until(lambda: names.resolutions > resolutions)
            assert (names.labels_without_pods, names.missing_pod_labels) == ("", ())
    assert warnings(caplog) == [NO_PODS, "no pod has the label 'team'"]


async def test_a_hint_is_logged_once(fast, monkeypatch, caplog):
    monkeypatch.setattr(name_poller, "FULL_INTERVAL_S", 0)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = {"Nodes": [], "Edges": []}
        async with NamePoll(analyzer.url, labels=["target_pod"]).running() as poll:
            await poll.ready()
            names = poll.stats.names
            for number in range(3):
                resolutions = names.resolutions
                analyzer.graph["Nodes"].append({"ID": f"{number}", "Metadata": {"Type": "host"}})
                await until(lambda resolutions=resolutions: names.resolutions > resolutions)
    assert names.labels_without_pods == "target_pod"
    assert len(warnings(caplog)) == 1


async def test_no_hints_are_logged_without_kubernetes_labels(caplog):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = {"Nodes": [], "Edges": []}
        labels = ["initiator_name", "target_host", "node_container"]
        for wanted in (EVERYTHING, EVERYTHING[:3]):
            index = NameIndex(keep_s=60.0)
            names = index.stats
            # These hints are left over from the configuration before a reload.
            names.labels_without_pods, names.missing_pod_labels = "target_pod", ("team",)
            poll = NamePoll(analyzer.url, labels=labels, wanted=wanted, index=index)
            async with poll.running():
                await until(lambda names=names: not names.labels_without_pods)
            assert names.missing_pod_labels == ()
    assert warnings(caplog) == []


async def test_no_hints_are_logged_before_pods_were_read(fast, caplog):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        respond = analyzer._topology

        def failing(request):
            fails = queries.KUBERNETES.gremlin in json.loads(request.body)["GremlinQuery"]
            return FakeResponse(status=500) if fails else respond(request)

        analyzer._topology = failing
        async with NamePoll(analyzer.url, labels=KUBERNETES_LABELS).running() as poll:
            await poll.ready()
            await until(lambda: poll.stats.names.resolutions)
        assert poll.stats.names.labels_without_pods == ""
    assert NO_PODS not in warnings(caplog)


def test_hints_are_bounded_and_printable():
    keys = [f"k{number:02}" for number in range(15)]
    labels = [{"name": key, "k8s_label": key} for key in keys]
    export = make_config(labels=labels).export
    resolution = resolve(Graph(nodes=[], edges=[]), k8s_labels=export.k8s_labels)
    assert find_hints(export, resolution) == Hints(
        without_pods="initiator_k00, target_k00, initiator_k01 and 27 more"
    )
    found = structs.replace(resolution, has_pods=True, missing_labels=("\n", *keys))
    assert find_hints(export, found) == Hints(missing_labels=("\\n", *keys[:9]))


def test_no_hint_mentions_pod_labels_if_containers_have_the_names_of_their_pods():
    export = make_config(labels=["initiator_namespace", "node_pod", "target_service"]).export
    resolution = resolve(Graph(nodes=[], edges=[]))
    found = structs.replace(resolution, has_pod_names=True)
    assert find_hints(export, found) == Hints(without_pods="target_service")
    assert "initiator_namespace" in find_hints(export, resolution).without_pods


# Changes.


async def test_an_unchanged_topology_is_not_resolved_again(fast, monkeypatch):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            for _ in range(3):
                for node in analyzer.graph["Nodes"]:
                    node["UpdatedAt"] += 1000
                    node["Revision"] += 1
                    node["Metadata"].setdefault("Metric", {})["RxBytes"] = node["UpdatedAt"]
                answers = poll.stats.answers
                await until(lambda answers=answers: poll.stats.answers >= answers + 5)
            assert poll.stats.names.resolutions == 1
            assert len(poll.renamed) == 2


async def test_only_changes_are_queried_between_complete_queries(fast):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            begun = len(analyzer.queries)
            await until(lambda: len(analyzer.queries) >= begun + 10)
            later = [queries.parse(text) for text in analyzer.queries[begun:]]
            assert all(
                query == queries.NAMED_INTERFACES or "@UpdatedAt" in query.gremlin
                for query in later
            )
            latest_ms = max(node["UpdatedAt"] for node in analyzer.graph["Nodes"])
            assert (
                f"Gt({latest_ms - name_poller.OVERLAP_MS})" in later[-1].gremlin + later[-2].gremlin
            )
            analyzer.graph["Nodes"].append(pod("web", "10.0.0.9", updated_at=latest_ms))
            await until(lambda: "10.0.0.9" in poll.index.addresses)
            assert poll.index.addresses["10.0.0.9"][3] == "web"


async def test_complete_queries_detect_deletions(fast, monkeypatch):
    monkeypatch.setattr(name_poller, "FULL_INTERVAL_S", 4 * FAST_S)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            poll.index.set_keep_time(0.0)
            await poll.ready()
            assert poll.name("172.31.255.5") == "default/frontend"
            analyzer.graph["Nodes"] = [
                node for node in analyzer.graph["Nodes"] if node["Metadata"].get("Manager") != "k8s"
            ]
            await until(lambda: poll.name("172.31.255.5") != "default/frontend")


async def test_a_deletion_removes_a_name_even_if_nothing_else_changes(fast, monkeypatch):
    monkeypatch.setattr(name_poller, "FULL_INTERVAL_S", 4 * FAST_S)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        analyzer.graph["Nodes"].append(pod("old", "10.0.0.9"))
        async with NamePoll(analyzer.url).running() as poll:
            poll.index.set_keep_time(0.2)
            await poll.ready()
            assert poll.index.addresses["10.0.0.9"][3] == "old"
            analyzer.graph["Nodes"].pop()
            await until(lambda: "10.0.0.9" not in poll.index.addresses)
            assert poll.renamed[-1] == (poll.index.combined, {"10.0.0.9"})
            assert poll.stats.names.resolutions == 3


@asynccontextmanager
async def replaced_pod():
    """Yield an analyzer and its poller after a new pod took over the address 10.0.0.9."""
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        analyzer.graph["Nodes"].append(pod("old", "10.0.0.9", updated_at=1_900_000_000_000))
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            assert poll.index.addresses["10.0.0.9"][3] == "old"
            analyzer.graph["Nodes"].append(pod("new", "10.0.0.9"))
            await until(lambda: poll.index.addresses["10.0.0.9"][3] == "new")
            yield analyzer, poll


async def test_a_replaced_pod_changes_the_names_of_its_address(fast):
    async with replaced_pod() as (_, poll):
        assert {"10.0.0.9"} in [keys for _, keys in poll.renamed]


async def test_frequent_queries_for_pods_notice_a_replaced_pod(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", FAST_S)
    monkeypatch.setattr(name_poller, "PODS_INTERVAL_S", 2 * FAST_S)
    async with replaced_pod() as (analyzer, _):
        assert all(
            "'pod'), '@UpdatedAt'" in text or text == queries.by_child(["new"]).gremlin
            for text in analyzer.queries[5:]
        )
        begun, count = time.monotonic(), len(analyzer.queries)
        await asyncio.sleep(6 * FAST_S)
        await until(lambda: len(analyzer.queries) > count)
        asked = len(analyzer.queries) - count
        assert asked <= (time.monotonic() - begun) / (2 * FAST_S) + 1


async def test_the_cron_job_of_a_new_pod_is_known_after_the_next_query_for_changes(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", FAST_S)
    monkeypatch.setattr(name_poller, "INTERVAL_S", 8 * FAST_S)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            job = pod("backup-1", None, **owned_by("CronJob", "backup"))
            job["Metadata"]["Type"] = "job"
            web = pod("web", "10.0.0.9", **owned_by("Job", "backup-1"))
            analyzer.graph["Nodes"] += [job, web]
            assert poll.name("10.0.0.9") == ""
            await until(lambda: "10.0.0.9" in poll.index.addresses)
            assert "backup-1" in poll.index.addresses["10.0.0.9"]
            await until(lambda: "backup" in poll.index.addresses["10.0.0.9"])
            complete = {query.gremlin for query in EVERYTHING} - {queries.NAMED_INTERFACES.gremlin}
            assert not complete & set(analyzer.queries[5:])


# Unknown addresses.


async def test_the_address_of_a_new_pod_is_queried_soon(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", FAST_S)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            service = next(
                node
                for node in analyzer.graph["Nodes"]
                if node["Metadata"]["Type"] == "service" and node["Metadata"]["Name"] == "frontend"
            )
            analyzer.graph["Nodes"].append(pod("web", "10.0.0.9"))
            analyzer.graph["Edges"].append(edge(service["ID"], "web", "service"))
            assert poll.name("10.0.0.9") == ""
            await until(lambda: "10.0.0.9" in poll.index.addresses)
            names = poll.index.addresses["10.0.0.9"]
            assert (
                names[2:4] == (service["Metadata"]["K8s"]["Namespace"], "web") or names[3] == "web"
            )
            assert analyzer.queries[5:] == [
                queries.by_pod_address(["10.0.0.9"]).gremlin,
                queries.by_child(["web"]).gremlin,
            ]
            # The whole topology was resolved only once, before the new pod appeared.
            assert poll.stats.names.resolutions == 1
            assert poll.renamed[-1] == (poll.index.combined, {"10.0.0.9"})


async def test_a_pod_that_appears_after_its_flow_is_named_soon(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", FAST_S)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            assert poll.name("10.0.0.9") == ""
            asked = queries.by_pod_address(["10.0.0.9"]).gremlin
            await until(lambda: asked in analyzer.queries)
            analyzer.graph["Nodes"].append(pod("web", "10.0.0.9"))
            await until(lambda: "10.0.0.9" in poll.index.addresses)
            assert analyzer.queries.count(asked) == 1


async def test_no_query_is_sent_while_all_addresses_are_known(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", 0.01)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            assert poll.name("172.31.255.5")
            await asyncio.sleep(0.1)
        assert len(analyzer.queries) == 5


async def test_many_unknown_addresses_take_several_queries(monkeypatch):
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", 0.01)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            for number in range(1200):
                poll.name(f"10.1.{number // 256}.{number % 256}")
            await until(lambda: sum("K8s.IP" in text for text in analyzer.queries) == 3)
            await until(lambda: poll.stats.names.unknown == 1200)
        counts = [text.count("'10.1.") for text in analyzer.queries if "K8s.IP" in text]
        assert counts == [500, 500, 200]


async def test_unknown_addresses_are_not_queried_without_kubernetes_labels(fast):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url, wanted=EVERYTHING[:3]).running() as poll:
            await poll.ready()
            poll.name("10.0.0.9")
            await asyncio.sleep(3 * FAST_S)
        assert not [text for text in analyzer.queries if "pod" in text]


# Failures.


async def test_a_query_that_fails_does_not_hide_the_other_names():
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        respond = analyzer._topology

        def failing(request):
            too_many = queries.KUBERNETES.gremlin in json.loads(request.body)["GremlinQuery"]
            return FakeResponse(status=500) if too_many else respond(request)

        analyzer._topology = failing
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
            assert poll.stats.errors["status"] == 1
            assert len(poll.index.nodes) > 20
            assert poll.name("172.31.255.5")


@pytest.mark.parametrize("wait_s", [60.0, 0.0])
async def test_after_a_reload_new_names_wait_for_all_queries_for_a_limited_time(
    fast, monkeypatch, wait_s
):
    monkeypatch.setattr(name_poller, "COMPLETE_WAIT_S", wait_s)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
        index, respond, fails = poll.index, analyzer._topology, True

        def failing(request):
            is_failure = fails and queries.KUBERNETES.gremlin in json.loads(request.body).values()
            return FakeResponse(status=500) if is_failure else respond(request)

        analyzer._topology = failing
        async with NamePoll(analyzer.url, index=index).running() as poll:
            await until(lambda: poll.stats.errors["status"] == 2)
            if not wait_s:
                await until(lambda: poll.renamed)
                return
            assert not poll.renamed
            fails = False
            await until(lambda: poll.stats.names.resolutions)
            assert not poll.renamed
            # skyfast keeps these responses if queries fail later.
            fails = True
            analyzer.graph["Nodes"].append(pod("web", "10.0.0.9"))
            assert poll.name("10.0.0.9") == ""
            await until(lambda: "10.0.0.9" in index.addresses)


async def test_only_one_thread_at_a_time_changes_the_topology_store(fast, monkeypatch):
    busy = Lock()

    def exclusive(change):
        def wrapped(*arguments):
            assert busy.acquire(blocking=False)
            time.sleep(0.02)
            busy.release()
            return change(*arguments)

        return wrapped

    for name in ("merge", "replace"):
        monkeypatch.setattr(TopologyStore, name, exclusive(getattr(TopologyStore, name)))
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        analyzer.graph["Nodes"].append(pod("web", "10.0.0.9"))
        async with NamePoll(analyzer.url, interval_s=FAST_S).running() as poll:
            await poll.ready()
            for number in range(10):
                analyzer.graph["Nodes"].append(pod(f"web{number}", f"10.0.1.{number}"))
                assert poll.name(f"10.0.1.{number}") == ""
                await asyncio.sleep(FAST_S)
        assert poll.stats.errors["error"] == 0


async def test_names_are_not_ready_before_a_response(fast):
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = FakeResponse(status=500)
        async with NamePoll(analyzer.url).running() as poll:
            await until(lambda: poll.stats.errors["status"] >= 10)
            assert not poll.index.ready.is_set()
            analyzer.graph = recorded()
            await poll.ready()
            analyzer.graph = None
            errors = poll.stats.errors["status"]
            await until(lambda: poll.stats.errors["status"] >= errors + 10)
            assert poll.name("172.31.255.5") == "default/frontend"


async def test_after_a_failure_the_second_analyzer_gets_complete_queries(fast):
    first, second = FakeAnalyzer(), FakeAnalyzer()
    first.topology = FakeResponse(status=500)
    second.graph = recorded()
    async with first, second, NamePoll(first.url, second.url).running() as poll:
        await poll.ready()
    assert len(first.queries) == 1
    assert second.queries[0] == queries.NAMED_INTERFACES.gremlin


async def test_an_empty_topology_is_a_valid_response():
    async with FakeAnalyzer() as analyzer, NamePoll(analyzer.url).running() as poll:
        await poll.ready()
        assert poll.index.addresses == poll.index.nodes == {}


async def test_an_unexpected_exception_does_not_end_the_poller(fast, monkeypatch):
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        poll = NamePoll(analyzer.url)
        with monkeypatch.context() as patch:
            patch.setattr(name_poller, "resolve", lambda *_args, **_options: 1 / 0)
            task = asyncio.create_task(poll.poller.run())
            await until(lambda: poll.stats.errors["error"])
        await poll.ready()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# Streaming.


async def test_a_large_response_is_decoded_while_it_arrives(monkeypatch):
    monkeypatch.setattr(topology_client, "BATCH_BYTES", 1000)
    monkeypatch.setattr(topology_client, "PIECE_BYTES", 3000)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        analyzer.graph["Nodes"] += [
            pod(f"web-{number}", f"10.1.{number // 256}.{number % 256}") for number in range(2000)
        ]
        async with NamePoll(analyzer.url).running() as poll:
            await poll.ready()
        assert sum(address.startswith("10.1.") for address in poll.index.addresses) == 2000


async def test_an_observer_gets_all_responses():
    seen = {}

    class Observer:
        def __init__(self, query):
            self.query = query
            self.elements = []

        def add(self, element):
            self.elements.append(json.loads(element))

        def end(self):
            seen[self.query] = self.elements

    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url, observe=Observer).running() as poll:
            await poll.ready()
        graph = analyzer.graph
    assert seen == {
        query: [
            element
            for element in graph["Edges" if query.edges else "Nodes"]
            if query.matches(element)
        ]
        for query in EVERYTHING
    }


async def test_interfaces_and_names_share_a_query():
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = recorded()
        async with NamePoll(analyzer.url, interval_s=20).running() as poll:
            await poll.ready()
            await until(lambda: poll.stats.interfaces)
        assert sorted(analyzer.queries) == sorted(query.gremlin for query in EVERYTHING)
        ether = [
            node for node in analyzer.graph["Nodes"] if node["Metadata"].get("EncapType") == "ether"
        ]
        assert poll.stats.interfaces + sum(poll.stats.skipped.values()) == len(ether)
