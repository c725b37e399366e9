"""Turns a configuration file and the environment into a frozen `Config`.

Steps from the file to a `Config`:

1. `skyfast.config.yaml_nodes` parses the text to nodes. Scalars keep their text.
2. `_collect` visits only the keys of `SCHEMA`, so a YAML alias is expanded at most once per key.
3. Environment variables override the values in the file.
4. `Key.parse` checks the value of each key. For certificates, `Key.parse` also opens the file, to
   check that the file is readable.
5. `_build` combines values that depend on each other.

A `ConfigError` contains all errors, one per line, but never a password or a cookie.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import yaml

from skyfast._table import MAX_ROWS
from skyfast.config import hints, schema, views
from skyfast.config.endpoint import ANALYZER_PORT, SUBSCRIBER_PATH, Endpoint
from skyfast.config.errors import Origin
from skyfast.config.model import (
    TLS,
    Classify,
    Config,
    Credentials,
    Logging,
    Note,
    Subscriber,
    TableLimits,
    Topology,
    Web,
)
from skyfast.config.names import NameSources
from skyfast.config.schema import (
    ENV_PREFIX,
    KNOWN,
    MONITORING_PORT,
    SCHEMA,
    SECRETS,
    SECTIONS_OF_GO_CORE,
    SECTIONS_OF_SKYDIVE,
    STRICT_SECTIONS,
    Key,
)
from skyfast.config.settings import Settings, SetValue, SortedProblems
from skyfast.config.yaml_nodes import (
    ConfigError,
    YamlNode,
    YamlValue,
    compose,
    describe_path,
    file_name,
    join,
    kind_of,
    read_file,
)
from skyfast.flows.catalog import DIRECTION, INTERFACE_INFO, NODE_TID_LABEL, TAG
from skyfast.flows.selection import Bounds, ExportSelection, Filter, ViewSpec

MAX_MISPLACED = 20
"""Maximum number of notes about misplaced sections below one unknown key."""

MAX_EXPECTED = 10
"""Maximum number of keys that an error about an unknown key lists."""

_ANALYZER_KEYS = frozenset(key.path for key in (schema.ANALYZERS, schema.URL, schema.URLS))
_DEFAULT_ANALYZER = Endpoint("127.0.0.1", ANALYZER_PORT)


def load(path: str, environ: Mapping[str, str], *, replayed: str = "") -> Config:
    """Read the file at ``path``, or standard input if ``path`` is ``-``.

    ``replayed`` is text that describes the recordings of a replay, or "" without a replay.

    Raises:
        ConfigError: The file cannot be read, or the file or the environment is invalid.

    """
    return parse(read_file(path), environ, source=path, replayed=replayed)


def parse(text: str, environ: Mapping[str, str], *, source: str, replayed: str = "") -> Config:
    """Parse the YAML ``text``, which was read from the path ``source``.

    Raises:
        ConfigError: The text or the environment is invalid.

    """
    file = file_name(source)
    problems = SortedProblems()
    values, unknown_keys = _collect(compose(text, file=file), file=file, problems=problems)
    none_known = not values
    for key in SCHEMA.values():
        if key.env and environ.get(key.env):
            origin = Origin(f"environment variable {key.env}")
            values[key.path] = SetValue(origin, environ[key.env])
    settings = Settings(values, problems)
    notes = _check_unknown(
        unknown_keys,
        file=file,
        none_known=none_known,
        no_analyzers=not replayed and not _ANALYZER_KEYS & settings.given,
        problems=problems,
    )
    notes += _check_variables(environ)
    try:
        problems.check()
        return _build(settings, source=source, notes=notes, problems=problems, replayed=replayed)
    except ConfigError as error:
        error.warnings = tuple(note.text for note in notes if note.level >= logging.WARNING)
        raise


def dump(config: Config) -> str:
    """Return the effective configuration as YAML, in the structure of the file.

    Loading this YAML gives the same configuration, but without the secrets, which are hidden.
    """
    tree: dict[str, Any] = {}
    for key in SCHEMA.values():
        if key.show is None:
            continue
        *sections, name = key.path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = key.show(config)
    head = f"# Replaying {config.replayed} instead of subscribing.\n" if config.replayed else ""
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def uses_default_analyzer(config: Config) -> bool:
    return not config.replayed and not _ANALYZER_KEYS & config.given


def changed(old: Config, new: Config) -> tuple[str, ...]:
    """Return the paths of all keys whose values have changed. Secret keys are included."""
    return tuple(path for path, key in SCHEMA.items() if _compared(key, old) != _compared(key, new))


def _compared(key: "Key[Any]", config: Config) -> object:
    secret = SECRETS.get(key.path)
    if secret is not None:
        return secret(config)
    return key.show(config) if key.show is not None else None


# From the file's keys to the configuration ---------------------------------------------------


def _collect(
    nodes: dict[str, YamlNode], *, file: str, problems: SortedProblems
) -> tuple[dict[str, SetValue], dict[str, YamlNode]]:
    """Return the values of known keys by path, and the nodes of unknown keys by path.

    A key with dots, such as ``pipeline.store: {…}``, is a path, as in Skydive.
    """
    values: dict[str, SetValue] = {}
    unknown_keys: dict[str, YamlNode] = {}

    def descend(nodes: dict[str, YamlNode], parent: str) -> None:
        for name, node in nodes.items():
            path = join(parent, name.lower())
            origin = Origin(file, node.line)
            if path in values:
                first = values[path].origin.line
                text = f"{origin}: {path}: already set on line {first}"
                problems.add(text, node.line)
            elif path in SCHEMA:
                values[path] = SetValue(origin, node.value)
            elif path not in KNOWN.sections:
                unknown_keys[path] = node
            elif isinstance(node.value, dict):
                descend(node.value, path)
            elif node.value is not None:
                # Do not show the value: if the space after a colon is missing, the value can be the
                # string "password:secret".
                kind = kind_of(node.value)
                text = f"{origin}: {path}: expected 'key: value' pairs, but found {kind}"
                if near := KNOWN.instead_of_section(path, node.value):
                    text += f"; did you mean {near}?"
                problems.add(text, node.line)

    descend(nodes, "")
    return values, unknown_keys


def _check_unknown(
    unknown_keys: Mapping[str, YamlNode],
    *,
    file: str,
    none_known: bool,
    no_analyzers: bool,
    problems: SortedProblems,
) -> list[Note]:
    """Add errors about unknown keys in skyfast's sections; return notes about all others.

    ``none_known`` is true if the file has no known key. ``no_analyzers`` is true if skyfast
    subscribes to the default analyzer.
    """
    notes = []
    ignored = []
    for path, node in unknown_keys.items():
        origin = f"{Origin(file, node.line)}: {describe_path(path)}"
        if path == MONITORING_PORT:
            text = f"{origin} is ignored: use names_file instead, see docs/migrating.md"
            notes.append(Note(level=logging.WARNING, text=text))
        elif f"{path}.".startswith(SECTIONS_OF_GO_CORE):
            text = f"{origin} is ignored: not supported by skyfast"
            notes.append(Note(level=logging.WARNING, text=text))
        elif path.startswith(STRICT_SECTIONS):
            problems.add(f"{origin}: unknown key; {_advice(path, node.value)}", node.line)
        elif f"{path}.".startswith(SECTIONS_OF_SKYDIVE):
            ignored.append(describe_path(path))
        elif meant := _probable_keys(path, node):
            for below, line, near in meant:
                origin = f"{Origin(file, line)}: {describe_path(below)}"
                text = f"{origin} is ignored; did you mean {near}?"
                if near == schema.ANALYZERS.path and no_analyzers:
                    text += f" {near} is not set: the default {_DEFAULT_ANALYZER} is used"
                notes.append(Note(level=logging.WARNING, text=text))
        else:
            ignored.append(describe_path(path))
    if none_known and ignored:
        text = f"{file} contains no known key"
        notes.append(Note(level=logging.WARNING, text=text))
    if ignored:
        text = f"{file}: keys that skyfast does not use are ignored: {', '.join(ignored)}"
        notes.append(Note(level=logging.DEBUG, text=text))
    return notes


def _probable_keys(path: str, node: YamlNode) -> list[tuple[str, int, str]]:
    """Return what the user probably meant by the unknown key ``path``.

    Each suggestion is a tuple: a path in the file, the line of this path, and the known key. If no
    known key is similar to ``path``, the suggestions are for misplaced sections below ``path``.
    """
    if near := KNOWN.suggest(path, node.value, cutoff=hints.CUTOFF):
        return [(path, node.line, " or ".join(near))]
    if not isinstance(node.value, dict):
        return []
    misplaced = islice(KNOWN.misplaced(path, node.value), MAX_MISPLACED)
    return [(below, section.line, known) for below, section, known in misplaced]


def _advice(path: str, value: YamlValue) -> str:
    if near := KNOWN.suggest(path, value, cutoff=hints.LOW_CUTOFF):
        return f"did you mean {' or '.join(near)}?"
    section = path.rpartition(".")[0]
    known = KNOWN.children(section) or KNOWN.children(section.partition(".")[0])
    if len(known) > MAX_EXPECTED:
        return "see docs/reference/configuration.md"
    return f"expected one of {', '.join(known)}"


def _check_variables(environ: Mapping[str, str]) -> list[Note]:
    """Return notes about unknown environment variables that are probably meant for skyfast."""
    notes = []
    known = {key.env: key.path for key in SCHEMA.values() if key.env}
    in_file_only = {
        hints.variable(key.path, prefix=ENV_PREFIX): key.path
        for key in SCHEMA.values()
        if not key.env
    }
    sections = [hints.variable(f"{section}.", prefix=ENV_PREFIX) for section in KNOWN.sections]
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in known or not environ[name]:
            continue
        shown = name if name.isprintable() else repr(name)
        origin = f"environment variable {describe_path(shown)}"
        if path := in_file_only.get(name):
            text = f"{origin} is ignored: {path} can only be set in the file"
            notes.append(Note(level=logging.WARNING, text=text))
        elif name == hints.variable(MONITORING_PORT, prefix=ENV_PREFIX):
            text = f"{origin} is ignored: use names_file instead, see docs/migrating.md"
            notes.append(Note(level=logging.WARNING, text=text))
        elif f"{name}_".startswith(_variables(SECTIONS_OF_GO_CORE)):
            text = f"{origin} is ignored: not supported by skyfast"
            notes.append(Note(level=logging.WARNING, text=text))
        elif f"{name}_".startswith(_variables(SECTIONS_OF_SKYDIVE)):
            continue
        elif near := hints.similar_variables(name, known, sections, prefix=ENV_PREFIX):
            text = f"{origin} is ignored; did you mean {' or '.join(near)}?"
            notes.append(Note(level=logging.WARNING, text=text))
        elif name.startswith(f"{ENV_PREFIX}PIPELINE_"):
            text = f"{origin} is ignored: it matches no configuration key"
            notes.append(Note(level=logging.WARNING, text=text))
    return notes


def _variables(sections: Sequence[str]) -> tuple[str, ...]:
    return tuple(hints.variable(section, prefix=ENV_PREFIX) for section in sections)


def _tls(get: Settings) -> TLS:
    tls = TLS(
        client_cert=get(schema.CLIENT_CERT),
        client_key=get(schema.CLIENT_KEY),
        ca_cert=get(schema.CA_CERT),
    )
    if tls.client_cert and not tls.client_key:
        raise get.error(schema.CLIENT_CERT, f"requires {schema.CLIENT_KEY.path}")
    if tls.client_key and not tls.client_cert:
        raise get.error(schema.CLIENT_KEY, f"requires {schema.CLIENT_CERT.path}")
    return tls


def _resolve_endpoints(
    get: Settings, notes: list[Note], *, secure: bool
) -> tuple[tuple[str, ...], tuple[Endpoint, ...]]:
    analyzers, url, urls = get(schema.ANALYZERS), get(schema.URL), get(schema.URLS)
    if not analyzers and url is None and not urls:
        analyzers = (_DEFAULT_ANALYZER,)
    if not urls:
        urls = _urls(url, analyzers, secure=secure)
        if len(analyzers) > 1 and len(urls) == 1:
            notes.append(
                Note(
                    level=logging.WARNING,
                    text=f"{schema.URL.path} is not one of the {len(analyzers)}"
                    f" {schema.ANALYZERS.path}; subscribing only to {urls[0]}",
                )
            )
    endpoints: dict[object, Endpoint] = {}
    for url in urls:
        # Do not compare host names with IP addresses, because this would need a DNS lookup.
        identity = (url.follows_dns, url.identity)
        if identity in endpoints:
            text = f"{url.name} is listed more than once; subscribing once"
            notes.append(Note(level=logging.WARNING, text=text))
        endpoints.setdefault(identity, url)
    return tuple(dict.fromkeys(map(str, analyzers))), tuple(endpoints.values())


def _urls(
    url: Endpoint | None, analyzers: tuple[Endpoint, ...], *, secure: bool
) -> tuple[Endpoint, ...]:
    """Return a URL for each analyzer.

    If no analyzer has the host and port of ``url``, return only ``url``. If ``url`` is None, the
    URLs have the scheme ``wss`` or ``ws``, depending on ``secure``. As in Skydive, ``secure`` is
    true if there is a client certificate.
    """
    if url is None:
        url = replace(analyzers[0], scheme="wss" if secure else "ws", resource=SUBSCRIBER_PATH)
    own = (url if url.has_port else replace(url, port=ANALYZER_PORT)).identity
    if all(analyzer.identity != own for analyzer in analyzers):
        return (url,)
    return tuple(
        # Keep the URL's spelling of the host: the analyzer's certificate may contain this name.
        replace(
            url,
            host=url.host if analyzer.identity == own else analyzer.host,
            port=analyzer.port,
        )
        for analyzer in analyzers
    )


def _views(get: Settings) -> tuple[views.ViewEntry, ...]:
    direction = get(schema.DIRECTIONS)
    chosen = get(schema.LABELS)
    if direction == "sum" and not get.is_set(schema.LABELS):
        chosen = tuple(label for label in chosen if label.name != DIRECTION)
    first_view = ViewSpec(
        prefix="", labels=chosen, metrics=get(schema.METRICS), direction=direction
    )
    bounds = Bounds(min_bytes=get(schema.MIN_BYTES), min_packets=get(schema.MIN_PACKETS))
    timeout_s = _connection_timeout_s(get) + get(schema.CONNECTION_GRACE)
    naming = get(schema.NAMING)
    try:
        return views.resolve_views(
            (views.ViewEntry(spec=first_view, bounds=bounds), *get(schema.VIEWS)),
            naming=naming,
            least_timeout_s=timeout_s,
            others=(INTERFACE_INFO[naming],) if get(schema.INTERFACE_INFO) else (),
        )
    except views.ViewError as error:
        raise _view_error(get, error) from None


def _view_error(get: Settings, error: views.ViewError) -> ConfigError:
    """Return a ConfigError about the first of ``error.key_paths`` that the configuration sets.

    If the configuration does not set the key (``labels``, ``metrics`` or ``views``), the error is
    about a default value. Then return a ConfigError about ``error.other``, if there is one.
    """
    candidates = [_key_and_path(key_path, error.view) for key_path in error.key_paths]
    key, key_path = next(
        ((key, key_path) for key, key_path in candidates if get.is_set(key, *key_path)),
        candidates[0],
    )
    if error.other is not None and not get.is_set(key):
        return _view_error(get, error.other)
    return get.error(key, error.problem, *key_path)


def _key_and_path(key_path: views.KeyPath, view: int) -> tuple[Key[Any], views.KeyPath]:
    """Return the configuration key that contains an entry of a view, and the entry's path below it.

    Examples for ``("labels", 0)``, the first label of a view:

    * in view 0 (the connections): the key ``labels``, and the path ``(0,)``
    * in view 2: the key ``views``, and the path ``(1, "labels", 0)``
    """
    if view:
        return schema.VIEWS, (view - 1, *key_path)
    return (schema.LABELS if key_path[0] == "labels" else schema.METRICS), key_path[1:]


def _check_interface_info(get: Settings, entries: tuple[views.ViewEntry, ...]) -> None:
    names = {label.name for entry in entries for label in entry.spec.labels}
    if get(schema.INTERFACE_INFO) and NODE_TID_LABEL not in names:
        problem = f"requires the label {NODE_TID_LABEL}, in labels or in one of the views"
        raise get.error(schema.INTERFACE_INFO, problem)


def _filter(get: Settings) -> Filter:
    keep, drop, excluded_tags = get(schema.KEEP), get(schema.DROP), get(schema.EXCLUDED_TAGS)
    names: set[str] = set()
    for key, rules in ((schema.KEEP, keep), (schema.DROP, drop)):
        for i, rule in enumerate(rules):
            if rule.name in names:
                raise get.error(key, "is already the name of another rule", i, "name")
            names.add(rule.name)
    return Filter(excluded_tags=frozenset(excluded_tags), keep=keep, drop=drop)


def _export(
    get: Settings, first_view: ViewSpec, further_views: tuple[ViewSpec, ...]
) -> ExportSelection:
    has_tag = any(
        label.name == TAG for view in (first_view, *further_views) for label in view.labels
    )
    return ExportSelection(
        first_view=first_view,
        further_views=further_views,
        include_icmp=get(schema.INCLUDE_ICMP),
        include_other=get(schema.INCLUDE_OTHER),
        rewrite=get(schema.REWRITE),
        overflow=get(schema.OVERFLOW),
        deduplicate=get(schema.DEDUPLICATE),
        naming=get(schema.NAMING),
        cluster_net_masks=get(schema.NET_MASKS) if has_tag else (),
    )


def _limits(get: Settings, entries: Sequence[views.ViewEntry]) -> TableLimits:
    max_connections = get(schema.MAX_CONNECTIONS)
    return TableLimits(
        max_connections=max_connections,
        max_flows=get(schema.MAX_FLOWS) or min(4 * max_connections, MAX_ROWS),
        connection_timeout_s=_connection_timeout_s(get),
        connection_grace_s=get(schema.CONNECTION_GRACE),
        flow_memory_s=get(schema.FLOW_MEMORY),
        view_timeouts_s=tuple(entry.timeout_s for entry in entries[1:]),
        bounds=tuple(entry.bounds for entry in entries),
    )


def _connection_timeout_s(get: Settings) -> float:
    return get(schema.CONNECTION_TIMEOUT) or schema.CONNECTION_TIMEOUT.default


def _build(
    get: Settings,
    *,
    source: str,
    notes: list[Note],
    problems: SortedProblems,
    replayed: str,
) -> Config:
    with problems:
        tls = _tls(get)
    with problems:
        first_view, *further_views = entries = _views(get)
        _check_interface_info(get, entries)
    with problems:
        filter_ = _filter(get)
    problems.check()
    analyzers: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    if not replayed:
        analyzers, endpoints = _resolve_endpoints(get, notes, secure=bool(tls.client_cert))
    return Config(
        source=source,
        host_id=get(schema.HOST_ID) or socket.gethostname(),
        analyzers=analyzers,
        credentials=Credentials(username=get(schema.USERNAME), password=get(schema.PASSWORD)),
        tls=tls,
        cookies=get(schema.COOKIE),
        subscriber=Subscriber(
            endpoints=endpoints,
            capture_id=get(schema.CAPTURE_ID),
            max_message_bytes=get(schema.MESSAGE_BYTES),
            silence_timeout_s=get(schema.SILENCE_TIMEOUT),
        ),
        classify=Classify(cluster_net_masks=get(schema.NET_MASKS)),
        filter=filter_,
        preset=get(schema.PRESET),
        export=_export(get, first_view.spec, tuple(view.spec for view in further_views)),
        limits=_limits(get, entries),
        max_series=get(schema.MAX_SERIES),
        topology=Topology(
            interfaces_interval_s=get(schema.INTERFACES_INTERVAL),
            interface_info=get(schema.INTERFACE_INFO),
        ),
        names=NameSources(entries=get(schema.NAMES), file=get(schema.NAMES_FILE)),
        web=Web(
            listen_address=get(schema.LISTEN_ADDRESS),
            port=get(schema.PORT),
            max_connections=get(schema.WEB_CONNECTIONS),
            max_scrapes=get(schema.WEB_SCRAPES),
            max_scrapes_per_address=get(schema.WEB_SCRAPES_PER_ADDRESS),
            scrape_timeout_s=get(schema.WEB_SCRAPE_TIMEOUT),
            enable_reload=get(schema.ENABLE_RELOAD),
            health_without_auth=get(schema.HEALTH_WITHOUT_AUTH),
            openmetrics=get(schema.OPENMETRICS),
            start_timestamps=get(schema.START_TIMESTAMPS),
            gzip=get(schema.GZIP),
        ),
        logging=Logging(level=get(schema.LEVEL), format=get(schema.LOG_FORMAT)),
        notes=tuple(notes),
        given=get.given,
        replayed=replayed,
    )
