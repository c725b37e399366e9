"""Hosts, ports and URLs in the configuration and on the command line."""

import pytest

from skyfast.config.endpoint import (
    Endpoint,
    EndpointError,
    parse_analyzer,
    parse_listen_address,
    parse_url,
)


@pytest.mark.parametrize(
    ("url", "name", "clean"),
    [
        ("ws://a:8082/ws", "a:8082", "ws://a:8082/ws"),
        ("WSS://A.Example:8082/ws", "a.example:8082", "wss://a.example:8082/ws"),
        ("ws://[2001:db8::1]:8082/ws", "[2001:db8::1]:8082", "ws://[2001:db8::1]:8082/ws"),
        ("ws://a/ws?x-host-id=b", "a:80", "ws://a:80/ws?x-host-id=b"),
        ("wss://a", "a:443", "wss://a:443/ws/subscriber/flow"),
        ("ws://user:pass@a:8082/ws", "a:8082", "ws://a:8082/ws"),
        ("dns+ws://a:8082/ws", "a:8082", "ws://a:8082/ws"),
        ("dns+wss://a:8082/ws", "a:8082", "wss://a:8082/ws"),
    ],
)
def test_url_is_parsed_into_an_endpoint(url: str, name: str, clean: str) -> None:
    endpoint = parse_url(url)
    assert endpoint.name == name
    assert endpoint.url == clean
    assert endpoint.secure == clean.startswith("wss")
    assert endpoint.follows_dns == url.startswith("dns+")
    assert str(endpoint) == ("dns+" if endpoint.follows_dns else "") + clean


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("", ""),
        ("/", ""),
        ("/ws/subscriber/flow", ""),
        ("/ws/subscriber/flow/", ""),
        ("/skydive/ws/subscriber/flow?x=y", "/skydive"),
        ("/a/b/ws/subscriber", "/a/b"),
        ("/ws/subscriber/ws/subscriber/flow", "/ws/subscriber"),
        ("/skydive/ws/subscribers", "/skydive/ws/subscribers"),
        ("/skydive/flows/", "/skydive/flows"),
    ],
)
def test_prefix_is_the_path_before_the_subscriber_route(path: str, prefix: str) -> None:
    assert parse_url(f"ws://a:8082{path}").prefix == prefix


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [("u:p", "u", "p"), ("u", "u", ""), ("u:", "u", ""), ("a%40b:c%3A%2F", "a@b", "c:/")],
)
def test_credentials_in_a_url_are_decoded(userinfo: str, username: str, password: str) -> None:
    endpoint = parse_url(f"ws://{userinfo}@a:8082/ws")
    assert (endpoint.username, endpoint.password) == (username, password)


@pytest.mark.parametrize(
    ("userinfo", "shown"),
    [
        ("", ""),
        ("u:", "u:@"),
        ("u:hunter2", "u:<hidden>@"),
        ("u:hunter2@b", "u:<hidden>@"),
        ("u@b:hunter2", "u@b:<hidden>@"),
        (":hunter2", ":<hidden>@"),
    ],
)
def test_password_is_hidden(userinfo: str, shown: str) -> None:
    endpoint = parse_url(f"ws://{userinfo}{'@' if userinfo else ''}a:8082/ws")
    assert endpoint.redacted == f"ws://{shown}a:8082/ws"
    assert str(endpoint) == endpoint.url == "ws://a:8082/ws"
    assert "hunter2" not in repr(endpoint)


@pytest.mark.parametrize("url", ["http://a:8082/", "ws:///ws", "a:8082", "ws://a:x/"])
def test_invalid_websocket_url_is_rejected(url: str) -> None:
    with pytest.raises(EndpointError, match=r"does not begin|is not a valid URL"):
        parse_url(url)


def test_resolved_address_changes_the_name_of_an_endpoint_but_not_its_url() -> None:
    endpoint = parse_url("dns+ws://analyzers:8082/ws").at("2001:db8::7")
    assert endpoint.name == "[2001:db8::7]:8082"
    assert endpoint.url == "ws://analyzers:8082/ws"
    assert str(endpoint) == "dns+ws://analyzers:8082/ws"
    assert endpoint.at("") == parse_url("dns+ws://analyzers:8082/ws")


def test_ipv6_addresses_are_bracketed() -> None:
    assert str(Endpoint("::1", 1)) == Endpoint("::1", 1).name == "[::1]:1"
    assert str(Endpoint("a", 1)) == "a:1"


@pytest.mark.parametrize(
    "text", ["fe80::1%a/b", "[fe80::1%a/b]:1", "[fe80::1%eth0]]", "[fe80::1%[eth0]:1", "fe80::1%"]
)
def test_ipv6_zone_with_invalid_characters_is_rejected(text: str) -> None:
    with pytest.raises(EndpointError, match="is not an analyzer address"):
        parse_analyzer(text)


def test_ipv6_zone_is_the_name_of_an_interface() -> None:
    assert parse_analyzer("fe80::1%eth0.7") == Endpoint("fe80::1%eth0.7", 8082)
    assert parse_url("ws://[fe80::1%eth0]:1").host == "fe80::1%eth0"


@pytest.mark.parametrize("text", ["localhost:1", "127.0.0.1:1", "[::1]:1", ":1", "1"])
def test_all_spellings_of_the_loopback_address_identify_one_analyzer(text: str) -> None:
    assert parse_analyzer(text).identity == ("localhost", 1)
    assert parse_analyzer("127.0.0.2:1").identity == ("127.0.0.2", 1)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9100", "", 9100),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::]:65535", "::", 65535),
        ("[2001:DB8::1]:80", "2001:db8::1", 80),
        ("LocalHost:1", "localhost", 1),
    ],
)
def test_listen_address_has_the_syntax_of_other_exporters(text: str, host: str, port: int) -> None:
    assert parse_listen_address(text) == Endpoint(host, port)
