"""Loading the configuration from a file and the environment, and its error messages."""

import ipaddress
import logging
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from docs import generate
from skyfast.config import loader, model, schema, yaml_nodes
from skyfast.config.endpoint import parse_url
from skyfast.config.model import Config
from skyfast.config.schema import SCHEMA
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows import selection
from skyfast.flows.planner import families
from skyfast.flows.selection import (
    Condition,
    LabelSpec,
    Mask,
    MetricSpec,
    PortGrouping,
    Rule,
    ViewSpec,
)
from tests.support.paths import ROOT

DATA = Path("tests/data/config")
BAD = sorted((ROOT / DATA / "bad").glob("*.yml"))
PEM = f"{DATA}/certificate.pem"
SECRET = "hunter2"

DEFAULT_URL = "ws://127.0.0.1:8082/ws/subscriber/flow"


@pytest.fixture(autouse=True)
def project_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the project root, because configuration files contain paths relative to it."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def yaml_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each parser of PyYAML."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_nodes, "_Loader", getattr(yaml, request.param))
    return str(request.param)


def good(name: str, **environ: str) -> Config:
    return loader.load(f"{DATA}/good/{name}.yml", environ)


def parse(text: str, **environ: str) -> Config:
    return loader.parse(text, environ, source="x.yml")


def error(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    return str(caught.value)


def meaning(result: Config) -> Config:
    """Return ``result`` without its source and notes, so that equivalent files compare equal."""
    return replace(result, source="", notes=())


def subscriber(**keys: object) -> str:
    return yaml.safe_dump({"pipeline": {"subscriber": keys}})


def store(**keys: object) -> str:
    return yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": keys}}})


def view(
    *,
    prefix: str,
    labels: str,
    metrics: str = "bytes packets",
    direction: Literal["split", "sum"] = "split",
) -> ViewSpec:
    return ViewSpec(
        prefix=prefix,
        labels=tuple(LabelSpec(name=name) for name in labels.split()),
        metrics=tuple(MetricSpec(name=name) for name in metrics.split()),
        direction=direction,
    )


# Good files


def check_defaults(result: Config) -> None:
    assert result.host_id == socket.gethostname()
    assert result.credentials == model.Credentials(username="", password="")
    assert result.tls == model.TLS(client_cert="", client_key="", ca_cert="")
    assert dict(result.cookies) == {}
    assert result.analyzers == ("127.0.0.1:8082",)
    assert result.subscriber == model.Subscriber(
        endpoints=(parse_url(DEFAULT_URL),),
        capture_id="",
        max_message_bytes=64 * 1024 * 1024,
        silence_timeout_s=45.0,
    )
    assert result.classify == model.Classify(cluster_net_masks=())
    assert result.filter == selection.Filter(excluded_tags=frozenset(), keep=(), drop=())
    assert result.limits == model.TableLimits(
        connection_timeout_s=60.0,
        connection_grace_s=15.0,
        flow_memory_s=1290.0,
        max_connections=1_000_000,
        max_flows=4_000_000,
        view_timeouts_s=(3600.0,),
        bounds=(selection.Bounds(), selection.Bounds()),
    )
    assert result.max_series == 0
    assert result.topology == model.Topology(interfaces_interval_s=20.0, interface_info=False)
    assert result.export == selection.ExportSelection(
        first_view=view(
            prefix="",
            labels="initiator_ip target_ip initiator_port target_port direction node_tid protocol",
            metrics="bytes packets rtt",
        ),
        further_views=(view(prefix="skydive_traffic", labels="node_tid protocol direction"),),
        include_icmp=False,
        include_other=False,
        rewrite={},
        overflow="drop",
        deduplicate="none",
        naming="compatible",
        cluster_net_masks=(),
    )
    assert result.web == model.Web(
        listen_address="",
        port=9100,
        max_connections=256,
        max_scrapes=8,
        max_scrapes_per_address=4,
        scrape_timeout_s=60.0,
        enable_reload=False,
        health_without_auth=False,
        openmetrics=True,
        start_timestamps=False,
        gzip="direct",
    )
    assert result.logging == model.Logging(level="INFO", format="text")


@pytest.mark.parametrize("name", ["go", "empty", "nulls", "skydive"])
def test_files_without_settings_give_the_defaults(name: str, yaml_loader: str) -> None:
    result = good(name)
    check_defaults(result)
    assert result.source == f"{DATA}/good/{name}.yml"


@pytest.mark.parametrize("text", ["", "\n", "---\n", "null", "# text", "\ufeff", "--- ~\n...\n"])
def test_empty_documents_give_the_defaults(text: str, yaml_loader: str) -> None:
    check_defaults(parse(text))


def test_every_key_is_read(yaml_loader: str) -> None:
    result = good("full")
    assert result.host_id == "exporter-1"
    assert result.analyzers == (
        "analyzer-1:8082",
        "analyzer-2:8082",
        "[2001:db8::2]:8083",
        "[2001:db8::3]:8082",
    )
    assert (result.credentials.username, result.credentials.password) == ("admin", "0123")
    assert result.logging == model.Logging(level="INFO", format="json")
    assert result.tls == model.TLS(client_cert=PEM, client_key=PEM, ca_cert=PEM)
    assert dict(result.cookies) == {"SessionId": "aBc", "theme": "1"}
    assert result.subscriber == model.Subscriber(
        endpoints=(
            parse_url("wss://analyzer-1:8082/Flow?X=Y"),
            parse_url("wss://analyzer-2:8082/Flow?X=Y"),
            parse_url("wss://[2001:db8::2]:8083/Flow?X=Y"),
            parse_url("wss://[2001:db8::3]:8082/Flow?X=Y"),
        ),
        capture_id="4E2b",
        max_message_bytes=1_048_576,
        silence_timeout_s=30.5,
    )
    assert result.classify.cluster_net_masks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
    )
    assert result.filter == selection.Filter(
        excluded_tags=frozenset({"internal", "other"}),
        keep=(
            Rule(
                name="web",
                conditions=(
                    Condition(
                        field="target_port",
                        path=("Transport", "B"),
                        values=frozenset({80, 443}),
                        ranges=((8000, 8999),),
                    ),
                    Condition(
                        field="protocol", path=("Transport", "Protocol"), values=frozenset({"TCP"})
                    ),
                ),
            ),
        ),
        drop=(
            Rule(
                name="lab",
                conditions=(
                    Condition(
                        field="initiator_ip",
                        path=("Network", "A"),
                        negated=True,
                        values=frozenset({"192.168.1.7", "::1"}),
                        networks=(ipaddress.ip_network("10.0.0.0/8"),),
                    ),
                    Condition(field="tag", path=None, values=frozenset({"ingress", "other"})),
                ),
            ),
            Rule(
                name="noise",
                conditions=(
                    Condition(
                        field="layers_path",
                        path=("LayersPath",),
                        pattern=re.compile("^Ethernet/(ARP|IPv6)"),
                    ),
                    Condition(
                        field="Metric.ABPackets",
                        path=("Metric", "ABPackets"),
                        negated=True,
                        values=frozenset({1}),
                    ),
                ),
            ),
        ),
    )
    assert result.limits == model.TableLimits(
        connection_timeout_s=75.0,
        connection_grace_s=0.0,
        flow_memory_s=300.0,
        max_connections=200_000,
        max_flows=300_000,
        view_timeouts_s=(600.0, 3600.0),
        bounds=(
            selection.Bounds(min_bytes=100_000, min_packets=50),
            selection.Bounds(min_bytes=1_000_000),
            selection.Bounds(),
        ),
    )
    assert result.max_series == 500_000
    assert result.topology == model.Topology(interfaces_interval_s=0.0, interface_info=True)
    assert result.export == selection.ExportSelection(
        first_view=ViewSpec(
            prefix="",
            labels=(
                LabelSpec(name="initiator_ip"),
                LabelSpec(name="direction"),
                LabelSpec(name="target_port"),
                LabelSpec(name="target_mac", path=("Link", "B")),
            ),
            metrics=(
                MetricSpec(name="bytes"),
                MetricSpec(name="tcp_out_of_order"),
                MetricSpec(
                    name="skydive_syn_ttl",
                    paths=(("TCPMetric", "ABSynTTL"), ("TCPMetric", "BASynTTL")),
                    type="gauge",
                    help="TTL of the first SYN.",
                ),
            ),
            direction="split",
            amounts=("packets",),
        ),
        further_views=(
            ViewSpec(
                prefix="skydive_services",
                labels=(
                    LabelSpec(name="target_port"),
                    LabelSpec(name="node_name"),
                    LabelSpec(name="initiator_team", k8s_label="example.org/team"),
                    LabelSpec(name="target_team", k8s_label="example.org/team"),
                ),
                metrics=(
                    MetricSpec(name="flows"),
                    MetricSpec(name="captured_total", paths=(("RawPacketsCaptured",),)),
                ),
                direction="sum",
                amounts=("bytes",),
            ),
            view(prefix="skydive_hosts", labels="direction node_host node_tid"),
        ),
        include_icmp=True,
        include_other=True,
        rewrite={
            "initiator_ip": Mask(ipv4=24, ipv6=64),
            "target_port": PortGrouping(above=1023, keep=frozenset({8080, 3306})),
        },
        overflow="other",
        deduplicate="first",
        naming="standard",
        cluster_net_masks=(),
    )
    assert result.web == model.Web(
        listen_address="::1",
        port=9200,
        max_connections=64,
        max_scrapes=2,
        max_scrapes_per_address=1,
        scrape_timeout_s=9.5,
        enable_reload=True,
        health_without_auth=True,
        openmetrics=False,
        start_timestamps=True,
        gzip="isal",
    )
    assert result.notes == ()


def test_keys_are_case_insensitive(yaml_loader: str) -> None:
    assert meaning(good("upper")) == meaning(good("full"))


def test_key_can_be_a_path_with_dots() -> None:
    text = "pipeline.store.prom_sky_con: {port: 1}\npipeline: {Store.Type: prom_sky_con}\n"
    assert parse(text).web.port == 1


def test_yaml_aliases_are_resolved(yaml_loader: str) -> None:
    result = good("aliases")
    assert result.host_id == result.subscriber.capture_id == "exporter-1"
    assert result.analyzers == ("a:8082", "b:8083")


def test_configuration_is_frozen() -> None:
    result = good("full")
    with pytest.raises(FrozenInstanceError):
        result.host_id = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        result.cookies["a"] = "b"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("123", "123"),
        ("0123", "0123"),
        ("1e3", "1e3"),
        ("1:30", "1:30"),
        ("2026-08-01", "2026-08-01"),
        (".nan", ".nan"),
        ("'no'", "no"),
        ("!!str no", "no"),
        ("! no", "no"),
        ('"a b"', "a b"),
        ("é", "é"),
        ("=", "="),
    ],
)
def test_strings_are_kept_as_written(text: str, value: str, yaml_loader: str) -> None:
    assert parse(f"host_id: {text}").host_id == value


@pytest.mark.parametrize(
    ("text", "port"),
    [("0", 0), ("65535", 65535), ("'9100'", 9100), ("9100.0", 9100), ("1e3", 1000)],
)
def test_integers_can_have_several_notations(text: str, port: int) -> None:
    assert parse(f"pipeline.store.prom_sky_con.port: {text}").web.port == port


def test_timeout_of_zero_means_the_default() -> None:
    assert parse(store(connection_timeout=0)).limits.connection_timeout_s == 60.0
    assert parse(store(connection_timeout=-0.0)).limits.connection_timeout_s == 60.0
    assert parse(store(connection_timeout=0.5)).limits.connection_timeout_s == 0.5


def test_max_flows_defaults_to_a_multiple_of_max_connections() -> None:
    assert parse(store(max_connections=10)).limits.max_flows == 40
    assert parse(store(max_connections=10, max_flows=5)).limits.max_flows == 5
    assert parse(store(max_connections=1 << 27)).limits.max_flows == 1 << 27


@pytest.mark.parametrize(
    ("level", "name"),
    [("debug", "DEBUG"), ("Notice", "INFO"), ("WARNING", "WARNING"), ("critical", "CRITICAL")],
)
def test_log_levels_map_to_those_of_python(level: str, name: str) -> None:
    result = parse(f"logging: {{level: {level}}}")
    assert result.logging.level == name
    assert name in logging.getLevelNamesMapping()


@pytest.mark.parametrize(
    ("text", "address"),
    [("'[::1]'", "::1"), ("0.0.0.0", "0.0.0.0"), ("LocalHost", "localhost"), ("'::'", "::")],
)
def test_listen_address_is_normalized(text: str, address: str) -> None:
    result = parse(f"pipeline.store.prom_sky_con.listen_address: {text}")
    assert result.web.listen_address == address


# Export selection


def labels_of(spec: ViewSpec) -> str:
    return " ".join(label.name for label in spec.labels)


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({"labels": "target_ip, protocol"}, "target_ip protocol direction"),
        ({"labels": ["direction", "target_ip"]}, "direction target_ip"),
        ({"labels": "target_ip", "direction": "sum"}, "target_ip"),
        (
            {"direction": "sum"},
            "initiator_ip target_ip initiator_port target_port node_tid protocol",
        ),
    ],
)
def test_view_with_split_directions_has_the_label_direction(
    keys: dict[str, Any], labels: str
) -> None:
    first = parse(store(**keys)).export.first_view
    assert labels_of(first) == labels
    (other,) = parse(
        store(views=[{"prefix": "a", "labels": "protocol", **keys}])
    ).export.further_views
    assert labels_of(other) == (labels if "labels" in keys else "protocol")


def test_list_of_views_can_be_empty() -> None:
    assert parse(store(views=[])).export.further_views == ()
    assert loader.dump(parse(store(views=[]))).count("views: []") == 1
    assert parse(store(views=None)).export.further_views == parse("").export.further_views


def test_view_requires_only_prefix_and_labels() -> None:
    written = parse(store(views=[{"prefix": "a", "labels": ["protocol"]}]))
    assert written.export.further_views == (view(prefix="a", labels="protocol direction"),)
    assert written.limits.view_timeouts_s == (3600.0,)


def test_default_view_timeout_is_raised_to_the_connection_timeout_plus_grace() -> None:
    assert parse(store(connection_timeout=7200)).limits.view_timeouts_s == (7215.0,)
    views = [{"prefix": "a", "labels": "protocol", "timeout": 7215}]
    written = parse(store(connection_timeout=7200, views=views))
    assert written.limits.view_timeouts_s == (7215.0,)


def test_views_can_share_labels_and_metrics_through_aliases() -> None:
    text = (
        "pipeline.store.prom_sky_con:\n"
        "  metrics: &all [bytes, {name: kept_total, value: RawPacketsCaptured, type: counter}]\n"
        "  views:\n"
        "    - {prefix: a, labels: &few [protocol, {name: mac, path: Link.A}], metrics: *all}\n"
        "    - {prefix: b, labels: *few, metrics: *all}\n"
    )
    result = parse(text)
    first, second = result.export.further_views
    assert first.labels == second.labels
    assert first.metrics == second.metrics == result.export.first_view.metrics
    assert meaning(parse(loader.dump(result))) == meaning(result)


def test_rules_accept_label_names_and_field_paths() -> None:
    (rule,) = parse(
        yaml.safe_dump(
            {"pipeline.filter.drop": [{"name": "a", "Transport.B": 53, "target_port": "53-54"}]}
        )
    ).filter.drop
    assert [condition.path for condition in rule.conditions] == [("Transport", "B")] * 2
    assert [condition.field for condition in rule.conditions] == ["Transport.B", "target_port"]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("::FFFF:10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_addresses_in_rules_are_normalized(written: str, text: str) -> None:
    rules = yaml.safe_dump({"pipeline.filter.drop": [{"name": "a", "target_ip": written}]})
    assert parse(rules).filter.drop[0].conditions[0].values == {text}


def test_lists_that_are_too_long_are_rejected() -> None:
    ports = list(range(4097))
    key = "pipeline.filter.drop"
    assert "target_port: a list has more than 4096 entries" in error(
        yaml.safe_dump({key: [{"name": "a", "target_port": ports}]})
    )
    assert "keep: a list has more than 4096 entries" in error(
        store(rewrite={"target_port": {"keep": ports}})
    )


# Subscriptions


def urls_with_credentials(result: Config) -> tuple[str, ...]:
    return tuple(
        str(endpoint).replace("://", f"://{endpoint.userinfo}{'@' if endpoint.userinfo else ''}", 1)
        for endpoint in result.subscriber.endpoints
    )


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("a", "a:8082"),
        ("A.Example.:1", "a.example.:1"),
        ("10.0.0.1", "10.0.0.1:8082"),
        ("2001:DB8::0:1", "[2001:db8::1]:8082"),
        ("[2001:db8::1]", "[2001:db8::1]:8082"),
        ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
        ("8083", "localhost:8083"),
        (":8083", "localhost:8083"),
        ("bücher.example:8082", "bücher.example:8082"),
    ],
)
def test_analyzer_address_is_normalized(entry: str, address: str) -> None:
    result = parse(yaml.safe_dump({"analyzers": [entry]}, allow_unicode=True))
    assert result.analyzers == (address,)
    assert urls_with_credentials(result) == (f"ws://{address}/ws/subscriber/flow",)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("ws://a:1", "ws://a:1/ws/subscriber/flow"),
        ("ws://a:1/", "ws://a:1/"),
        ("ws://a/x", "ws://a:80/x"),
        ("wss://a/x", "wss://a:443/x"),
        ("dns+wss://a/x", "dns+wss://a:443/x"),
        ("DNS+WS://A:1/X?Y=z", "dns+ws://a:1/X?Y=z"),
        ("ws://[::0:1]:1/x", "ws://[::1]:1/x"),
        ("ws://u:p%40@a:1/x", "ws://u:p%40@a:1/x"),
        ("ws://u:p@q@a:1/x", "ws://u:p@q@a:1/x"),
        ("ws://u@a:1/x", "ws://u:@a:1/x"),
        ("ws://a:1?x=y", "ws://a:1/ws/subscriber/flow?x=y"),
    ],
)
def test_url_is_normalized(url: str, endpoint: str) -> None:
    for key in ({"url": url}, {"urls": [url]}, {"urls": url}):
        result = parse(subscriber(**key))
        assert urls_with_credentials(result) == (endpoint,)
        assert result.analyzers == ()
        assert result.notes == ()


@pytest.mark.parametrize(
    ("url", "analyzers", "hosts"),
    [
        ("ws://a:8082", "a b", "a:8082 b:8082"),
        ("ws://a", "a b:8083", "a:8082 b:8083"),
        ("ws://B:8083", "a b:8083", "a:8082 b:8083"),
        ("ws://localhost:8082", "127.0.0.1 b", "localhost:8082 b:8082"),
        ("ws://127.0.0.1:8082", "b,[::1]", "b:8082 127.0.0.1:8082"),
        ("ws://[::1]:8082", "localhost b", "[::1]:8082 b:8082"),
        ("ws://[2001:db8:0::1]:8082", "2001:db8::1 b", "[2001:db8::1]:8082 b:8082"),
        ("ws://a:8082", "a b A b:8082", "a:8082 b:8082"),
        ("ws://127.0.0.1:8082", "localhost:8082 127.0.0.1:8082", "127.0.0.1:8082"),
        ("ws://c:8082", "a", "c:8082"),
        ("ws://c:8082", "a b", "c:8082"),
        ("ws://a:8083", "a b", "a:8083"),
        ("ws://a.example:8082", "a b", "a.example:8082"),
        ("ws://127.0.0.2:8082", "127.0.0.1 b", "127.0.0.2:8082"),
    ],
)
def test_settings_in_the_url_of_one_analyzer_apply_to_all_analyzers(
    url: str, analyzers: str, hosts: str
) -> None:
    result = parse(
        subscriber(url=f"{url}/x".replace("://", "://u:p@").replace("ws:", "wss:")),
        SKYDIVE_ANALYZERS=analyzers,
    )
    assert urls_with_credentials(result) == tuple(f"wss://u:p@{host}/x" for host in hosts.split())


def test_url_that_is_missing_from_analyzers_causes_a_warning() -> None:
    text = "analyzers: [a, b]\npipeline.subscriber.url: ws://u:hunter2@c:8082\n"
    assert parse(text).notes == (
        model.Note(
            level=logging.WARNING,
            text="pipeline.subscriber.url is not one of the 2 analyzers;"
            " subscribing only to ws://c:8082/ws/subscriber/flow",
        ),
    )
    assert parse(text.replace("[a, b]", "[a]")).notes == ()


def test_urls_override_url_and_analyzers() -> None:
    result = parse(
        "analyzers: [a, b]\n"
        "pipeline.subscriber: {url: ws://a:8082, urls: [ws://d:1, dns+ws://d:1, wss://c:2/x]}\n"
    )
    assert urls_with_credentials(result) == (
        "ws://d:1/ws/subscriber/flow",
        "dns+ws://d:1/ws/subscriber/flow",
        "wss://c:2/x",
    )
    assert result.analyzers == ("a:8082", "b:8082")
    assert result.notes == ()


def test_repeated_analyzer_is_subscribed_to_once() -> None:
    result = parse(subscriber(urls="ws://localhost:1/x ws://b:1/x wss://[::1]:1/y"))
    assert urls_with_credentials(result) == ("ws://localhost:1/x", "ws://b:1/x")
    assert result.notes == (
        model.Note(
            level=logging.WARNING,
            text="[::1]:1 is listed more than once; subscribing once",
        ),
    )


def test_client_certificate_enables_tls() -> None:
    tls = f"tls: {{client_cert: {PEM}, client_key: {PEM}}}\n"
    ends = ("a:8082/ws/subscriber/flow",)
    assert urls_with_credentials(parse(tls + "analyzers: [a]")) == (f"wss://{ends[0]}",)
    assert urls_with_credentials(parse(f"tls: {{ca_cert: {PEM}}}\nanalyzers: [a]")) == (
        f"ws://{ends[0]}",
    )
    written = parse(tls + "pipeline.subscriber.url: ws://a:8082")
    assert urls_with_credentials(written) == (f"ws://{ends[0]}",)


def test_ca_cert_requires_no_client_certificate() -> None:
    assert parse(f"tls: {{ca_cert: {PEM}}}").tls.ca_cert == PEM


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://a:8082/x", "ws://a:8082/x"),
        ("ws://u:p@a:8082/x", "ws://a:8082/x"),
        ("dns+wss://u:p@q@a/x", "dns+wss://a/x"),
        ("ws://u:80/p@a:8082/x", "ws://a:8082/x"),
        ("u:p@a", "a"),
        ("u:ws://p@a", "a"),
        ("", ""),
    ],
)
def test_redact_url_removes_credentials(url: str, shown: str) -> None:
    assert yaml_nodes.redact_url(url) == shown


# Notes


def test_ignored_skydive_keys_are_listed_in_one_note() -> None:
    (note,) = good("skydive").notes
    assert note.level == logging.DEBUG
    file, _, names = note.text.partition(": keys that skyfast does not use are ignored: ")
    assert file == f"{DATA}/good/skydive.yml"
    assert names.split(", ") == [
        *("tls.server_cert", "tls.server_key", "tls.require_client_cert"),
        *("http.rest", "http.ws"),
        *("analyzer.listen", "analyzer.auth.api", "analyzer.auth.cluster.backend"),
        *("analyzer.startup", "analyzer.flow", "analyzer.topology", "analyzer.replication"),
        *("analyzer.storage", "agent", "cache", "dpdk", "docker", "graph", "k8s", "netns"),
        *("opencontrail", "ovs", "sflow", "storage"),
        *("logging.backends", "logging.file", "logging.syslog", "logging.encoder"),
        *("logging.color", "logging.id", "auth", "etcd", "flow", "ui", "rbac"),
    ]


def test_keys_of_other_exporters_cause_warnings() -> None:
    result = good("other_exporters")
    check_defaults(result)
    file = f"{DATA}/good/other_exporters.yml"
    ending = "is ignored: not supported by skyfast"
    assert [note.text for note in result.notes] == [
        f"{file}: line 3: pipeline.mangle {ending}",
        f"{file}: line 4: pipeline.encode {ending}",
        f"{file}: line 5: pipeline.compress {ending}",
        f"{file}: line 6: pipeline.storeheader {ending}",
        f"{file}: line 7: pipeline.account {ending}",
        f"{file}: line 8: pipeline.write {ending}",
        f"{file}: line 10: pipeline.store.buffered {ending}",
        f"{file}: line 11: pipeline.store.direct {ending}",
        f"{file}: line 12: pipeline.encode.csv {ending}",
    ]
    assert {note.level for note in result.notes} == {logging.WARNING}


def test_misspelled_keys_cause_warnings() -> None:
    result = good("misspelled")
    file = f"{DATA}/good/misspelled.yml"
    assert [note.text for note in result.notes] == [
        f"{file}: line 2: analyser is ignored; did you mean analyzer?",
        f"{file}: line 3: pipelines is ignored; did you mean pipeline?",
        f"{file}: line 4: tls.cacert is ignored; did you mean tls.ca_cert?",
        f"{file}: line 5: logging.levels is ignored; did you mean logging.level?",
        f"{file}: line 6: http.cookies is ignored; did you mean http.cookie?",
    ]
    assert {note.level for note in result.notes} == {logging.WARNING}


# Bad files


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_rejected_with_its_error(path: Path, yaml_loader: str) -> None:
    expected = path.read_text().splitlines()[0].removeprefix("# error: ")
    file = str(path.relative_to(ROOT))
    with pytest.raises(ConfigError) as caught:
        loader.load(file, {})
    message = str(caught.value)
    if expected.endswith("…") and yaml_loader != "CSafeLoader":
        # Positions and messages of the Python parser differ from libyaml's.
        assert re.match(re.escape(file) + r": line \d+, column \d+: not valid YAML: .", message)
    elif expected.endswith("…"):
        assert message.startswith(f"{file}: {expected.removesuffix('…')}")
    else:
        assert message == f"{file}: {expected}"
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no/such/file.yml", "cannot be read: No such file or directory"),
        ("tests/data", "cannot be read: Is a directory"),
        ("tests/config/test_loader.py/x", "cannot be read: Not a directory"),
    ],
)
def test_unreadable_file_is_an_error(path: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loader.load(path, {})
    assert str(caught.value) == f"{path} {problem}"


@pytest.mark.parametrize(
    ("path", "shown"),
    [("", "''"), ("a\nb", r"'a\nb'"), ("a\0b", r"'a\x00b'")],
)
def test_unprintable_path_is_escaped(path: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loader.load(path, {})
    assert str(caught.value).startswith(f"{shown} cannot be read: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_file_without_read_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.touch(mode=0)
    with pytest.raises(ConfigError) as caught:
        loader.load(str(path), {})
    assert str(caught.value) == f"{path} cannot be read: Permission denied"
    assert error("", SKYDIVE_TLS_CA_CERT=str(path)) == (
        f"environment variable SKYDIVE_TLS_CA_CERT: tls.ca_cert: '{path}'"
        " cannot be read: Permission denied"
    )


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("pipeline:\n\tstore: {}\n", "a tab is not allowed here; indent with spaces"),
        ("host_id: a\n  port: 1\n", "the key is indented deeper than the key above it"),
        ("a:\n    b: 1\n  c: 2\n", "the indentation matches no line above; indent all keys"),
        ("a:\n  - b\n  c: 1\n", "the indentation matches no line above; indent all keys"),
        ("a:\n  b:1\n  c: 2\n", "a space is missing after the colon on line 2"),
        ("a:\n  c: 2\n  b:1\n", "line 3 has no colon followed by a space"),
        (
            "host_id: a: b\n",
            "the line has a second colon followed by a space; put the value in quotes",
        ),
        ("host_id: 'a'b\n", "unexpected text after a value; put the whole value in quotes"),
        (
            "analyzers: [2001:db8::1]:8082\n",
            "unexpected text after a value; put the whole value in quotes",
        ),
        ("host_id: @a\n", "a value cannot begin with @; put the whole value in quotes"),
        ("host_id: 'a\nb: c\n", "the quote that starts on line 1 is not closed"),
        ("analyzers: [a, b\nhost_id: c\n", "the [ on line 1 is not closed"),
        ("logging: {level: INFO\nhost_id: c\n", "the { on line 1 is not closed"),
        ('host_id: "\\q"\n', "an unknown escape (\\) in double quotes; use single quotes"),
    ],
)
def test_yaml_errors_are_explained(text: str, explanation: str, yaml_loader: str) -> None:
    assert re.match(
        rf"x\.yml: line \d, column \d+: not valid YAML: {re.escape(explanation)}", error(text)
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", "60"), ("1m", "60"), ("1.5 h", "5400"), ("500ms", "0.5"), ("2 Days", "172800")],
)
def test_error_for_a_duration_with_a_unit_suggests_seconds(text: str, seconds: str) -> None:
    assert error(store(connection_timeout=text)).endswith(
        f"'{text}' has a unit; times are in seconds: write {seconds}"
    )


@pytest.mark.parametrize(
    ("key", "text", "number"),
    [
        ("min_packets", "100k", 100_000),
        ("max_connections", "1.5 M", 1_500_000),
        ("max_series", "2g", 2_000_000_000),
        ("port", "9k", 9000),
    ],
)
def test_error_for_a_number_with_a_unit_suggests_the_number(
    key: str, text: str, number: int
) -> None:
    assert error(store(**{key: text})).endswith(f"{key}: '{text}' has a unit: write {number}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("100kB", "100000"),
        ("100 KB", "100000"),
        ("2m", "2000000"),
        ("1.5G", "1500000000"),
        ("1 TB", "1000000000000"),
        ("64KiB", "65536"),
        ("1Mi", "1048576"),
        ("20 B", "20"),
        ("20 bytes", "20"),
    ],
)
def test_error_for_a_size_with_a_unit_suggests_bytes(text: str, number: str) -> None:
    hint = f"'{text}' has a unit; sizes are in bytes: write {number}"
    assert error(store(min_bytes=text)).endswith(f"min_bytes: {hint}")
    view = {"prefix": "a", "labels": ["node_tid"], "min_bytes": text}
    assert error(store(views=[view])).endswith(f"views[0].min_bytes: {hint}")
    assert error(f"pipeline: {{subscriber: {{max_message_bytes: {text}}}}}").endswith(hint)


@pytest.mark.parametrize("text", ["100 k B", "kB", "1ib", "1e3B", "-1kB", "1 bit"])
def test_text_after_a_number_is_rejected_with_a_hint_only_if_it_is_a_unit(text: str) -> None:
    assert " is not an integer from 0 to " in error(store(min_bytes=text))


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("rtt", "5ms", "'5ms' has a unit; times are in seconds: write 0.005"),
        ("rtt", "50us", "'50us' has a unit; times are in seconds: write 5e-05"),
        ("flow_duration", "5m", "'5m' has a unit; times are in seconds: write 300"),
        ("flow_bytes", "5m", "'5m' has a unit; sizes are in bytes: write 5000000"),
        ("flow_bytes", "5s", "'5s' is not a finite number above 0"),
        ("rtt", "5kB", "'5kB' is not a finite number above 0"),
    ],
)
def test_error_for_a_bucket_with_a_unit_suggests_a_number(name: str, text: str, hint: str) -> None:
    metric = {"name": name, "type": "histogram", "buckets": [text]}
    view = {"prefix": "a", "labels": ["node_tid"], "metrics": [metric]}
    assert error(store(views=[view])).endswith(f".views[0].metrics[0].buckets[0]: {hint}")


@pytest.mark.parametrize("value", ["[127.0.0.1:8082]", "127.0.0.1:8082"])
def test_suggested_keys_accept_the_type_of_the_given_value(value: str) -> None:
    notes = [note.text for note in parse(f"analyzerz: {value}\n").notes]
    assert (
        "x.yml: line 1: analyzerz is ignored; did you mean analyzers? analyzers is not set: the"
        " default 127.0.0.1:8082 is used"
    ) in notes
    notes = [note.text for note in parse("analyzerz: {auth: {}}\n").notes]
    assert "x.yml: line 1: analyzerz is ignored; did you mean analyzer?" in notes
    kind = "a single value" if isinstance(yaml.safe_load(value), str) else "a list"
    problem = f"expected 'key: value' pairs, but found {kind}"
    assert error(f"analyzer: {value}\n").endswith(f"{problem}; did you mean analyzers?")
    assert error(f"pipeline: {value}\n").endswith(problem)


@pytest.mark.xdist_group("timing")
def test_aliases_below_unknown_keys_are_checked_once() -> None:
    lines = ["a0: &a0 {store: {prom_sky_con: {port: 1}}}"]
    lines += [
        f"a{i}: &a{i} {{{', '.join(f'b{j}: *a{i - 1}' for j in range(10))}}}" for i in range(1, 30)
    ]
    begin = time.monotonic()
    warnings = [note.text for note in parse("\n".join(lines)).notes if note.level > logging.DEBUG]
    assert time.monotonic() - begin < 5
    assert "x.yml: line 1: a0 is ignored; did you mean pipeline?" in warnings
    assert len(warnings) <= 31


def test_file_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(b"# \xc3\xa9\nhost_id: caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        loader.load(str(path), {})
    assert str(caught.value) == f"{path}: line 2: not UTF-8 (byte 0xe9)"


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(b"\xef\xbb\xbfhost_id: a\r\nlogging: {level: DEBUG}\r\n")
    result = loader.load(str(path), {})
    assert (result.host_id, result.logging.level) == ("a", "DEBUG")


def test_file_over_the_size_limit_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(b"#" * yaml_nodes.MAX_FILE_BYTES)
    check_defaults(loader.load(str(path), {}))
    path.write_bytes(b"#" * (yaml_nodes.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        loader.load(str(path), {})
    assert str(caught.value) == f"{path} is longer than 1048576 bytes"
    with pytest.raises(ConfigError):
        loader.load("/dev/zero", {})


def run_on_standard_input(text: bytes | None) -> subprocess.CompletedProcess[bytes]:
    program = (
        "from skyfast.config.loader import *\n"
        "try: print(load('-', {}).host_id)\n"
        "except ConfigError as error: print(error)"
    )
    command = [sys.executable, "-c", program]
    if text is None:
        command = ["sh", "-c", '"$@" <&-', "sh", *command]
    return subprocess.run(command, input=text, capture_output=True, check=True, timeout=20)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        (b"host_id: a\n", b"a\n"),
        (b"host_id: [a]\n", b"standard input: line 1: host_id: a list is not text\n"),
        (None, b"standard input cannot be read: Bad file descriptor\n"),
    ],
)
def test_configuration_can_be_read_from_standard_input(text: bytes | None, output: bytes) -> None:
    assert run_on_standard_input(text).stdout == output


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: ", "!!seq ["])
def test_deep_nesting_is_rejected(opening: str, yaml_loader: str) -> None:
    assert "x.yml: line 1" in error(opening * (200_000 // len(opening)))


@pytest.mark.parametrize("text", [r'"\UFFFFFFFF"', f"%YAML 1.{'1' * 5000}\n--- a", r'"\ud800"'])
def test_out_of_range_yaml_values_are_rejected(text: str, yaml_loader: str) -> None:
    assert error(text).startswith("x.yml: ")


@pytest.mark.xdist_group("timing")
def test_nested_aliases_are_not_expanded(yaml_loader: str) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40)]
    bomb = "\n".join(lines)
    begin = time.monotonic()
    check_defaults(parse(bomb))
    assert error(f"{bomb}\nhost_id: *a39\n") == "x.yml: line 41: host_id: a list is not text"
    assert "a list is not text" in error(f"{bomb}\nanalyzers: *a39\n")
    assert "expected 'key: value' pairs, but found a list" in error(f"{bomb}\npipeline: *a39\n")
    assert time.monotonic() - begin < 5


def test_unprintable_keys_are_escaped_and_shortened() -> None:
    assert error('pipeline: {"a\\nb": 1}').startswith(
        r"x.yml: line 1: 'pipeline.a\nb': unknown key; "
    )
    assert len(error(f"pipeline: {{ {'k' * 1000}: 1 }}")) < 300
    assert SECRET not in error(f'pipeline: {{"ws://u:{SECRET}@a": 1}}')
    assert parse('"": 1').notes[-1].level == logging.DEBUG


# Environment


def sample(name: str) -> str:
    """Return the documented example of a key."""
    if name.startswith("tls."):
        return PEM
    return EXAMPLES[name].strip("[]")


SETTABLE = [key for key in SCHEMA.values() if key.env]


@pytest.mark.parametrize("key", SETTABLE, ids=lambda key: key.env)
def test_every_key_can_be_set_in_the_environment(key: schema.Key[Any]) -> None:
    # These keys require each other.
    other = {"tls.client_cert": "tls.client_key", "tls.client_key": "tls.client_cert"}
    beside = {other[key.path]: PEM} if key.path in other else {}
    result = parse(yaml.safe_dump(beside), **{key.env: sample(key.path)})
    assert meaning(result) == meaning(parse(yaml.safe_dump({**beside, key.path: sample(key.path)})))
    if not key.path.endswith(".type"):
        assert meaning(result) != meaning(parse(""))


@pytest.mark.parametrize(
    ("path", "env"),
    [
        ("host_id", "SKYDIVE_HOST_ID"),
        ("analyzer.auth.cluster.password", "SKYDIVE_ANALYZER_AUTH_CLUSTER_PASSWORD"),
        ("pipeline.subscriber.url", "SKYDIVE_PIPELINE_SUBSCRIBER_URL"),
        ("logging.level", "SKYDIVE_LOGGING_LEVEL"),
        ("pipeline.store.prom_sky_con.port", "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT"),
        ("http.cookie", ""),
    ],
)
def test_name_of_an_environment_variable_follows_from_the_path_of_the_key(
    path: str, env: str
) -> None:
    assert SCHEMA[path].env == env


def test_environment_overrides_the_file() -> None:
    text = store(port="overridden")
    assert parse(text, SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT="1").web.port == 1


def test_empty_and_unknown_variables_are_ignored() -> None:
    result = parse(
        store(port=1),
        SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT="",
        SKYDIVE_FOO="1",
        SKYDIVE_HTTP_COOKIE="a=b",
        SKYDIVE_HTTP_COOKIE_A="b",
        SKYDIVE_="x",
        skydive_host_id="x",
        HOST_ID="x",
    )
    assert result.web.port == 1
    assert meaning(replace(result, web=parse("").web)) == meaning(parse(""))


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("CONNECTION_TIMEOUT", ["PIPELINE_STORE_PROM_SKY_CON_CONNECTION_TIMEOUT"]),
        ("MAX_CONNECTIONS", ["PIPELINE_STORE_PROM_SKY_CON_MAX_CONNECTIONS", "WEB_MAX_CONNECTIONS"]),
        ("WEB_MAX_CONNECTION", ["WEB_MAX_CONNECTIONS"]),
    ],
)
def test_variables_without_their_section_are_suggested(name: str, suggestions: list[str]) -> None:
    (note,) = parse("", **{f"SKYDIVE_{name}": "5"}).notes
    variables = " or ".join(f"SKYDIVE_{suggestion}" for suggestion in suggestions)
    assert note.text == (
        f"environment variable SKYDIVE_{name} is ignored; did you mean {variables}?"
    )


@pytest.mark.parametrize(
    "value", ["a b:8083", "a,b:8083", " a , b:8083 ", "a,\tb:8083", "a\nb:8083\n"]
)
def test_list_in_an_environment_variable_is_separated_by_whitespace_or_commas(value: str) -> None:
    assert parse("", SKYDIVE_ANALYZERS=value).analyzers == ("a:8082", "b:8083")


@pytest.mark.parametrize(
    ("env", "value", "problem"),
    [
        (
            "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT",
            "x",
            "pipeline.store.prom_sky_con.port: 'x' is not an integer from 0 to 65535",
        ),
        (
            "SKYDIVE_ANALYZERS",
            "a, b:c",
            "analyzers: 'b:c' is not an analyzer address such as host:8082 or [2001:db8::1]:8082",
        ),
        (
            "SKYDIVE_PIPELINE_FILTER_EXCLUDED_TAGS",
            "internal engress",
            (
                "pipeline.filter.excluded_tags: 'engress' is not one of"
                " internal, ingress, egress, other; did you mean egress?"
            ),
        ),
        (
            "SKYDIVE_PIPELINE_SUBSCRIBER_URLS",
            f"ws://u:a,{SECRET},b@c",
            (
                "pipeline.subscriber.urls: 'ws://c' is not a valid URL:"
                " its host, port or user is invalid"
            ),
        ),
        (
            "SKYDIVE_ANALYZER_AUTH_CLUSTER_PASSWORD",
            f"{SECRET}\n",
            "analyzer.auth.cluster.password: <hidden> contains a control character",
        ),
        ("SKYDIVE_HOST_ID", "caf\udce9", r"host_id: 'caf\udce9' contains a control character"),
    ],
)
def test_error_contains_the_name_of_the_environment_variable(
    env: str, value: str, problem: str
) -> None:
    message = error("", **{env: value})
    assert message == f"environment variable {env}: {problem}"
    assert SECRET not in message


def test_client_certificate_in_the_environment_requires_a_key() -> None:
    assert error(f"tls: {{client_cert: {PEM}}}", SKYDIVE_TLS_CLIENT_CERT=PEM) == (
        f"environment variable SKYDIVE_TLS_CLIENT_CERT: tls.client_cert: '{PEM}'"
        " requires tls.client_key"
    )


# Printing the configuration


@pytest.mark.parametrize("name", ["go", "full", "upper", "skydive", "aliases", "nulls"])
def test_dumped_configuration_can_be_loaded(name: str) -> None:
    first = good(name)
    second = parse(loader.dump(first))
    assert second.notes == ()
    hidden = replace(
        first,
        cookies=dict.fromkeys(first.cookies, "<hidden>"),
        credentials=replace(first.credentials, password=first.credentials.password and "<hidden>"),
    )
    assert meaning(second) == meaning(hidden)


def test_dumped_configuration_contains_histograms() -> None:
    entry = {"name": "rtt", "type": "histogram", "buckets": [1e-05, 0.005, 1, 1000000, 1e300]}
    view = {"prefix": "a", "labels": ["tag"], "metrics": ["bytes", entry]}
    first = parse(yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": {"views": [view]}}}}))
    tree = yaml.safe_load(loader.dump(first))
    (dumped,) = tree["pipeline"]["store"]["prom_sky_con"]["views"]
    assert dumped["metrics"][0] == "bytes"
    assert [float(bound) for bound in dumped["metrics"][1]["buckets"]] == entry["buckets"]
    assert meaning(parse(loader.dump(first))) == meaning(first)


def test_dumped_configuration_has_the_structure_and_order_of_the_file() -> None:
    tree = yaml.safe_load(loader.dump(good("go")))
    assert list(tree) == [
        "host_id",
        "analyzers",
        "analyzer",
        "tls",
        "http",
        "logging",
        "pipeline",
        "web",
    ]
    assert tree["pipeline"]["store"]["prom_sky_con"] == {
        "port": 9100,
        "listen_address": "",
        "connection_timeout": 60,
        "connection_grace": 15,
        "flow_memory": 1290,
        "max_connections": 1_000_000,
        "max_flows": 4_000_000,
        "min_bytes": 0,
        "min_packets": 0,
        "max_series": 0,
        "interfaces_interval": 20,
        "interface_info": False,
        "preset": "compatible",
        "labels": [
            *("initiator_ip", "target_ip", "initiator_port", "target_port"),
            *("direction", "node_tid", "protocol"),
        ],
        "metrics": ["bytes", "packets", "rtt"],
        "names": {},
        "names_file": "",
        "direction": "split",
        "views": [
            {
                "prefix": "skydive_traffic",
                "labels": ["node_tid", "protocol", "direction"],
                "metrics": ["bytes", "packets"],
                "direction": "split",
                "timeout": 3600,
                "min_bytes": 0,
                "min_packets": 0,
            }
        ],
        "include_icmp": False,
        "include_other": False,
        "rewrite": {},
        "overflow": "drop",
        "deduplicate": "none",
        "naming": "compatible",
        "start_timestamps": False,
    }
    assert tree["pipeline"]["subscriber"]["urls"] == [DEFAULT_URL]
    assert loader.dump(good("go")) == loader.dump(parse(loader.dump(good("go"))))


def test_secrets_are_hidden() -> None:
    result = parse(
        f"analyzer.auth.cluster: {{username: admin, password: {SECRET}-a}}\n"
        f"http.cookie: {{Session: {SECRET}-b}}\n"
        f"pipeline.subscriber.urls: ['ws://eve:{SECRET}-c@d@a:1/', 'ws://{SECRET}x:@b:1/']\n"
    )
    assert result.credentials.password == f"{SECRET}-a"
    assert result.cookies["Session"] == f"{SECRET}-b"
    shown = loader.dump(result)
    assert f"{SECRET}-" not in shown
    tree = yaml.safe_load(shown)
    assert tree["analyzer"]["auth"]["cluster"] == {"username": "admin", "password": "<hidden>"}
    assert tree["http"]["cookie"] == {"Session": "<hidden>"}
    assert tree["pipeline"]["subscriber"]["urls"] == [
        "ws://eve:<hidden>@a:1/",
        f"ws://{SECRET}x:@b:1/",
    ]
    assert SECRET not in repr(result)


# Documentation


EXAMPLES = {
    path: generate.flow_style(key["example"])
    for section in generate.described("configuration.yml")["sections"]
    for path, key in section["keys"].items()
}
"""Maps the path of each key to its documented example, as text."""


def chosen_labels(text: str) -> tuple[LabelSpec, ...]:
    """Return the labels of the first view for this value of the key ``labels``."""
    return parse(
        f"pipeline.store.prom_sky_con: {{direction: sum, labels: {text}}}"
    ).export.first_view.labels


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("team", "initiator_team target_team"),
        ("initiator_team", "initiator_team"),
        ("target_team", "target_team"),
        ("Target_team", "initiator_Target_team target_Target_team"),
        ("initiator_node_team", "initiator_node_team"),
        ("nodes_team", "initiator_nodes_team target_nodes_team"),
    ],
)
def test_pod_label_is_added_for_initiator_and_target(name: str, labels: str) -> None:
    text = f"[target_ip, {{name: {name}, k8s_label: app}}, protocol]"
    assert chosen_labels(text) == (
        LabelSpec(name="target_ip"),
        *(LabelSpec(name=each, k8s_label="app") for each in labels.split()),
        LabelSpec(name="protocol"),
    )


def test_pod_labels_are_dumped_for_initiator_and_target() -> None:
    config = parse("""
        pipeline.store.prom_sky_con:
          labels: [target_ip, {name: team, k8s_label: example.org/team}]
          views: [{prefix: x, labels: [{Name: target_team, K8s_Label: team}]}]
    """)
    shown = yaml.safe_load(loader.dump(config))["pipeline"]["store"]["prom_sky_con"]
    assert shown["labels"] == [
        "target_ip",
        {"name": "initiator_team", "k8s_label": "example.org/team"},
        {"name": "target_team", "k8s_label": "example.org/team"},
        "direction",
    ]
    assert shown["views"][0]["labels"] == [
        {"name": "target_team", "k8s_label": "team"},
        "direction",
    ]
    assert meaning(parse(loader.dump(config))) == meaning(config)


LONG = "a" * 63


@pytest.mark.parametrize(
    "key",
    [
        *("a", "A", "0", "team", "app.kubernetes.io/name", "a-b_c.D", LONG, f"{LONG}/{LONG}"),
        *("k8s-app", "1.2/3", "pod-template-hash", ".".join([LONG] * 3) + ".a/b"),
    ],
)
def test_valid_pod_label_key_is_accepted(key: str) -> None:
    initiator, target = chosen_labels(f"[{{name: team, k8s_label: '{key}'}}]")
    assert initiator.k8s_label == target.k8s_label == key


@pytest.mark.parametrize(
    "key",
    [
        *("''", "-a", "a-", "a/", "/a", "a/b/c", "a b", "é", LONG + "a", "A.b/c", "a..b/c"),
        *("_a", "a_", "a/-b", f"{LONG}a/b", ".".join([LONG] * 4) + "/b", '"a\\n"', "[a]", "true"),
    ],
)
def test_invalid_pod_label_key_is_rejected(key: str) -> None:
    assert "k8s_label: " in error(store_of(f"[{{name: team, k8s_label: {key}}}]"))


def store_of(labels: str) -> str:
    return f"pipeline.store.prom_sky_con: {{labels: {labels}}}"


# The files in the examples of ``tls`` do not exist.
@pytest.mark.parametrize(
    "key", [key for key in SCHEMA.values() if "tls." not in key.path], ids=lambda key: key.path
)
def test_documented_examples_work(key: schema.Key[Any]) -> None:
    text = f"{key.path}: {EXAMPLES[key.path]}\n"
    assert meaning(parse(text)) != meaning(parse("")) or key.path.endswith(".type")


@pytest.mark.parametrize("page", ["docs/configuration.md", "docs/choosing-metrics.md", "README.md"])
def test_documented_configurations_cause_no_notes(page: str) -> None:
    blocks = re.findall(r"(?ms)^```yaml\n(pipeline:.*?)^```", (ROOT / page).read_text())
    assert blocks
    for block in blocks:
        assert parse(block).notes == ()


def test_documented_labels_and_metrics_work() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    of_fields, of_pods, of_own_names = re.findall(r"(?m)^(labels: .*)", page)
    (metrics,) = re.findall(r"(?m)^(metrics:\n(?: {2}.*\n)+)", page)
    for text in (of_fields, of_pods, of_own_names, metrics):
        key, value = next(iter(yaml.safe_load(text).items()))
        assert meaning(parse(store(**{key: value}))) != meaning(parse(""))


def test_documented_error_matches_the_actual_message() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    message = error("\n" * 25 + "pipeline.store.prom_sky_con.port: 910O").removeprefix("x.yml")
    assert f"/etc/skydive/prom_sky_con.yml{message}" in page


def test_default_file_gives_the_defaults() -> None:
    result = loader.load("deploy/prom_sky_con.yml", {})
    check_defaults(result)
    assert result.notes == ()


def test_default_file_shows_every_key_with_its_default() -> None:
    shown = re.sub(r"(?m)^( *)#(?=[\w-])", r"\1", (ROOT / "deploy/prom_sky_con.yml").read_text())
    # The shown ``urls`` is empty, so ``url`` is used.
    check_defaults(parse(shown))
    nodes: Any = yaml.safe_load(shown)
    for path in SCHEMA:
        branch = nodes
        for name in path.split("."):
            assert name in branch, path
            branch = branch[name]


# Generated configurations

PATHS = st.sampled_from(
    [*SCHEMA, *schema.KNOWN.sections, "pipeline.x", "web.x", "x", "", "a.b", "<<"]
)
SECRETS = st.sampled_from(
    [
        SECRET,
        f"{SECRET}\n",
        f"ws://u:{SECRET}@a:1",
        f"u:{SECRET},{SECRET}@a",
        f"ws://u:80/{SECRET}@a:1/x",
        f"http://u:{SECRET}#{SECRET}@a",
        f"ws://u:{SECRET}@{SECRET}@a:x",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["a", "::1", "a:1", "10.0.0.0/8", "internal", PEM, "ws://a:1/x", "1e999", "-0"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)
    ),
    max_leaves=5,
)
URL_KEYS = ("pipeline.subscriber.url", "pipeline.subscriber.urls", "analyzers")


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    tree = draw(st.dictionaries(PATHS, VALUES, max_size=6))
    if draw(st.booleans()):
        tree["analyzer.auth.cluster.password"] = draw(
            SECRETS | st.just([SECRET]) | st.just({SECRET: SECRET}) | st.lists(SECRETS, max_size=2)
        )
    if draw(st.booleans()):
        tree["http.cookie"] = {draw(st.sampled_from(["a", "b c", ""])): draw(SECRETS)}
    if draw(st.booleans()):
        with_at = SECRETS.filter(lambda text: "@" in text)
        tree[draw(st.sampled_from(URL_KEYS))] = draw(with_at | st.lists(with_at, max_size=2))
    return tree


def attempt(text: str, environ: dict[str, str]) -> Config | None:
    """Parse a file, or check its errors and return None."""
    try:
        return loader.parse(text, environ, source="x.yml")
    except ConfigError as caught:
        for message in caught.problems:
            assert message.isprintable()
            assert len(message) < 600
            assert SECRET not in message
        assert len(caught.problems) <= yaml_nodes.MAX_PROBLEMS + 1
        return None


LABEL_ENTRIES = st.sampled_from(
    [
        *("initiator_ip", "target_port", "direction", "tag", "node_name", "target_pod", "x"),
        {"name": "mac", "path": "Link.A"},
        {"name": "mac", "path": "Link.B"},
        {"name": "team", "k8s_label": "team"},
        {"name": "initiator_team", "k8s_label": "example.org/Team_1"},
        {"name": "x", "path": "Metric.RTT"},
    ]
)
METRIC_ENTRIES = st.sampled_from(
    [
        *("bytes", "flows", "new_flows", "start", "tcp_skipped_bytes", "x"),
        {"name": "own_total", "value": "RawPacketsCaptured", "type": "counter"},
        {"name": "own", "value": ["Metric.RTT", "Link.ID"], "type": "gauge", "help": 'Text: "#'},
        {"name": "rtt", "type": "histogram", "buckets": [1e-5, 0.001, "1e6"]},
        {"name": "flow_bytes", "type": "histogram", "buckets": "100 5e3 1e300"},
        {"name": "a_bytes_total", "value": "Metric.RTT", "type": "gauge"},
    ]
)
SELECTIONS = {
    "labels": st.lists(LABEL_ENTRIES, max_size=4),
    "metrics": st.lists(METRIC_ENTRIES, max_size=4),
    "direction": st.sampled_from(["split", "sum"]),
}
ENTRIES = st.sampled_from(
    [53, "53", "53-99", "10.0.0.1", "10.0.0.0/8", "TCP", "internal", "a b: #", "0x1", "é", ""]
)
CONDITIONS = st.one_of(
    ENTRIES,
    st.lists(ENTRIES, min_size=1, max_size=3),
    st.builds(lambda entry: {"not": entry}, st.lists(ENTRIES, min_size=1, max_size=2)),
    st.sampled_from([{"regex": "^a: [b#]"}, {"not": {"regex": "(?i)'a\\\\b"}}, {"regex": "("}]),
)
RULES = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.dictionaries(
            st.sampled_from(["target_port", "initiator_ip", "protocol", "tag", "Application", "x"]),
            CONDITIONS,
            min_size=1,
            max_size=2,
        ),
    ).map(lambda rule: {"name": rule[0], **rule[1]}),
    max_size=2,
)


@st.composite
def selections(draw: st.DrawFn) -> dict[str, Any]:
    """Generate labels, metrics, views and rules. Many of the resulting files are valid."""
    chosen = draw(st.fixed_dictionaries({}, optional=SELECTIONS))
    chosen |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "views": st.lists(
                    st.fixed_dictionaries(
                        {"prefix": st.sampled_from("ab")},
                        optional={
                            **SELECTIONS,
                            "timeout": st.sampled_from([75, 80.5]),
                            "min_bytes": st.sampled_from([0, 7]),
                            "min_packets": st.sampled_from([0, 7]),
                        },
                    ),
                    max_size=2,
                ),
                "rewrite": st.sampled_from(
                    [{"target_ip": {"mask": 8}}, {"target_port": {"above": 1, "keep": [3, 2]}}]
                ),
                "naming": st.sampled_from(["compatible", "standard"]),
            },
        )
    )
    rules = draw(st.fixed_dictionaries({}, optional={"keep": RULES, "drop": RULES}))
    return {"pipeline.filter": rules, "pipeline.store.prom_sky_con": chosen}


@settings(max_examples=400, deadline=None)
@given(selections())
def test_any_selection_is_accepted_or_rejected_with_an_error(tree: dict[str, Any]) -> None:
    result = attempt(yaml.safe_dump(tree, allow_unicode=True), {})
    if result is None:
        return
    assert meaning(parse(loader.dump(result))) == meaning(result)
    names = []
    for spec in result.export.views:
        labels = [label.name for label in spec.labels]
        assert len(set(labels)) == len(labels)
        assert ("direction" in labels) == (spec.direction == "split")
        names += [family.name for family in families(spec, naming=result.export.naming)]
    assert len(set(names)) == len(names)


@settings(max_examples=400, deadline=None)
@given(
    trees(),
    st.dictionaries(st.sampled_from([k.env for k in SETTABLE]), st.text(max_size=12), max_size=2),
)
def test_any_tree_is_accepted_or_rejected_with_an_error(
    tree: dict[str, Any], environ: dict[str, str]
) -> None:
    result = attempt(yaml.safe_dump(tree, allow_unicode=True), environ)
    if result is not None:
        shown = loader.dump(result)
        assert SECRET not in shown
        assert SECRET not in repr(result)
        again = parse(shown)
        assert loader.dump(again) == shown
        assert again.notes == ()


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.sampled_from(list("ab:-[]{}&*!|>'\"%#?,@` \n\t~<=.1\\ux\u2028é\0\ud800")), max_size=60
    )
)
def test_any_text_is_accepted_or_rejected_with_an_error(text: str) -> None:
    attempt(text, {})


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40).map(lambda text: f"analyzer: {{auth: {{cluster: {{password: {text}}}}}}}")
)
def test_any_text_in_braces_is_accepted_or_rejected_with_an_error(text: str) -> None:
    attempt(text, {})


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40))
def test_any_file_is_accepted_or_rejected_with_an_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_bytes(data)
    try:
        loader.load(str(path), {})
    except ConfigError as caught:
        assert str(caught).startswith(f"{path}: ")


# Unknown labels

END_PARTS = (
    "ip, port, name, host, namespace, pod, workload, workload_kind, container, service, network"
)


@pytest.mark.parametrize(
    ("label", "hint"),
    {
        "source_ip": "did you mean initiator_ip?",
        "src_port": "did you mean initiator_port?",
        "Src-IP": "did you mean initiator_ip?",
        "destination_workload": "did you mean target_workload?",
        "dst_prt": "did you mean target_port?",
        "dst": f"expected target_ followed by one of {END_PARTS}",
        "initiator_": f"expected initiator_ followed by one of {END_PARTS}",
        "targt_prot": "did you mean target_port?",
        "workload": "did you mean initiator_workload, target_workload or node_workload?",
        "worklod": "did you mean initiator_workload, target_workload or node_workload?",
        "pod_name": "did you mean initiator_pod, target_pod or node_pod?",
        "service": "did you mean initiator_service or target_service?",
        "netns": "did you mean node_netns?",
        "vlan_id": "did you mean vlan?",
        "node_deployment": (
            "expected node_ followed by one of tid, name, host, type, netns, namespace, pod,"
            " workload,"
            " container"
        ),
        "initiator_deployment": (
            f"expected initiator_ followed by one of {END_PARTS};"
            " for a pod label write {name: deployment, k8s_label: deployment}"
        ),
        "dst_app-Version": (
            f"expected target_ followed by one of {END_PARTS};"
            " for a pod label write {name: app_Version, k8s_label: app-Version}"
        ),
        "target_app.kubernetes.io/name": (
            f"expected target_ followed by one of {END_PARTS};"
            " for a pod label write"
            " {name: app_kubernetes_io_name, k8s_label: app.kubernetes.io/name}"
        ),
        "initiator_direction": f"expected initiator_ followed by one of {END_PARTS}",
    }.items(),
)
def test_unknown_label_is_rejected_with_a_hint(label: str, hint: str) -> None:
    text = yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": {"labels": [label]}}}})
    with pytest.raises(ConfigError) as caught:
        loader.parse(text, {}, source="x.yml")
    assert str(caught.value).endswith(f".labels[0]: {label!r} is not a known label; {hint}")
