"""Write the generated parts of the documentation: ``make docs``.

A generated part is between two comments in a page:

    <!-- generated: labels -->
    <!-- end of generated part -->

The data comes from the code. The YAML files in ``docs/reference`` add descriptions, such as the
action for a log message. The generator fails if a description is missing, or describes nothing in
the code.
"""

import argparse
import ast
import dataclasses
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.__main__ import NAMES, ON_REQUEST, module_name
from docs.log_messages import SOURCES, log_messages
from skyfast import cli, stats
from skyfast._table import MAX_PARTS, Table
from skyfast.config import loader, schema
from skyfast.flows import catalog, planner
from skyfast.flows.fields import FIELDS, flow_types
from skyfast.skydive import capture_points, interfaces, topology_nodes
from skyfast.skydive.captures import Captures
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.name_index import NameIndex, NodeNames
from skyfast.web import (
    cardinality,
    flow_query,
    forecast,
    history,
    interface_info,
    self_metrics,
    server,
    status,
    status_report,
    top,
)
from skyfast.web.help import topics
from skyfast.web.interface_info import InterfaceInfo

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
DESCRIPTIONS: Final = ROOT / "docs" / "reference"
ALERTS: Final = ROOT / "deploy" / "rules" / "alerts.yml"
BENCHMARKS: Final = ROOT / "docs" / "benchmarks.md"

BEGIN: Final = "<!-- generated: {name} -->"
END: Final = "<!-- end of generated part -->"
PART: Final = re.compile(
    rf"(?ms)^{BEGIN.format(name=r'([ a-z_-]+)')}\n.*?^{END}$",
)

CARDINALITIES: Final = (
    "a handful of values",
    "as many values as the network has addresses, interfaces or ports",
    "new values keep appearing",
)
"""The explanations of the values of `catalog.Cardinality`, in the same order."""

INTERFACE: Final = (
    b'[{"ID":"i","Host":"h","Metadata":{"Name":"eth0","Type":"device","TID":"t","Metric":{}}}]'
)
"""A topology with one interface."""

NOT_MEASURED: Final = "Not measured: "
"""The start of a paragraph in the docstring of each benchmark."""

CAPTURE: Final = b'{"CaptureID":"c","PacketsReceived":1}'
"""A report about one capture."""

HELP_COLUMNS: Final = "80"


class DocumentationError(Exception):
    """The YAML files in ``docs/reference`` do not match the code."""


PARTS: Final[dict[str, Callable[[], str]]] = {}
"""Maps the name of each generated part to the function that generates the part."""


def part(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function that returns the Markdown of a generated part."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        PARTS[name] = function
        return function

    return register


# Markdown ----------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(text: str) -> str:
    """Return text as a table cell: on one line, with escaped vertical bars."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def code(text: object) -> str:
    return f"`{text}`" if text != "" else ""


def codes(names: Iterable[object]) -> str:
    return ", ".join(map(code, names))


def described(file: str) -> Any:
    """Return the descriptions in a file of ``docs/reference``."""
    return yaml.safe_load((DESCRIPTIONS / file).read_text())


def check_names(described: Iterable[str], existing: Iterable[str], *, where: str) -> None:
    """Raise DocumentationError if a description is missing, or if its name does not exist."""
    described, existing = list(described), list(existing)
    missing = [name for name in existing if name not in described]
    unknown = [name for name in described if name not in existing]
    if missing or unknown:
        problems = [f"{name!r} has no description" for name in missing]
        problems += [f"{name!r} does not exist" for name in unknown]
        raise DocumentationError(f"{where}: {'; '.join(problems)}")


# Labels and metrics ------------------------------------------------------------------------------


def field(path: tuple[str, ...]) -> str:
    return code(".".join(path))


@part("labels")
def labels() -> str:
    words = typing.get_args(catalog.Cardinality)
    legend = "; ".join(
        f"*{word}*: {meaning}" for word, meaning in zip(words, CARDINALITIES, strict=True)
    )
    rows = table(
        ["Label", "Skydive field", "Type", "Cardinality", "Description"],
        [
            [
                code(label.name),
                field(label.path),
                "integer" if not label.lookup and FIELDS.get(label.path) is int else "text",
                label.cardinality,
                label.help,
            ]
            for label in catalog.LABELS
        ],
    )
    return f"{rows}\nCardinality: {legend}.\n"


@part("metrics")
def metrics() -> str:
    return table(
        ["Metric", "Skydive fields", "Type", "Unit", "Series", "Description"],
        [
            [
                code(metric.name),
                ", ".join(map(field, metric.paths)),
                metric.type,
                metric.unit,
                str(len(metric.paths) or 1),
                metric.help,
            ]
            for metric in catalog.METRICS
        ],
    )


@part("histograms")
def histograms() -> str:
    return table(
        ["Histogram", "Skydive fields", "Unit", "Metric of a view", "Distributions", "Description"],
        [
            [
                code(known.name),
                ", ".join(map(field, known.paths))
                + (", `Last`" if known.observes == "age" else ""),
                known.unit,
                code(f"PREFIX_{known.standard}"),
                str(len(known.paths)),
                known.help,
            ]
            for known in catalog.HISTOGRAMS
        ],
    )


@part("metric-names")
def metric_names() -> str:
    return table(
        ["Metric", "`naming: compatible`", "`naming: standard`"],
        [
            [
                code(metric.name),
                code(metric.compatible),
                code(f"{catalog.STANDARD_PREFIX}_{metric.standard}"),
            ]
            for metric in catalog.METRICS
        ],
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A metric family, with the labels of each sample."""

    name: str
    type: str
    help: str
    samples: tuple[Mapping[str, str], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for sample in self.samples for name in sample))

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(sample["reason"] for sample in self.samples if "reason" in sample)
        )


def read_families(page: bytes) -> list[Family]:
    """Return the families of a page in text format 0.0.4.

    Of a histogram, only ``_count`` is used, because it has all labels except ``le``.
    """
    text = page.decode()
    heads = re.findall(r"(?m)^# HELP (\S+) (.*)\n# TYPE \S+ (\S+)$", text)
    return [
        Family(
            name=name,
            type=type_,
            help=help_,
            samples=tuple(
                dict(re.findall(r'(\w+)="([^"]*)"', sample))
                for sample in re.findall(rf"(?m)^{name}(?:_count)?(\{{.*\}})? \S+$", text)
            ),
        )
        for name, help_, type_ in heads
    ]


def both_namings(page: Callable[[str], bytes]) -> str:
    """Return a table of families with their names in each ``naming``."""
    compatible, standard = map(read_families, map(page, ("compatible", "standard")))
    standard_by_help = {family.help: family for family in standard}
    rows = []
    for family in compatible:
        other = standard_by_help.get(family.help)
        rows.append(
            [
                code(family.name),
                code(other.name) if other else "",
                other.type if other else family.type,
                family.help,
            ]
        )
    return table(["`naming: compatible`", "`naming: standard`", "Type", "Description"], rows)


@part("interfaces")
def interface_metrics() -> str:
    def page(naming: str) -> bytes:
        shown = Interfaces(
            interval_s=1,
            connection_timeout_s=1,
            stats=stats.TopologyStats(),
            naming=naming,  # type: ignore[arg-type]
        )
        shown.update(topology_nodes.read(INTERFACE), 0)
        return shown.page(0)

    return both_namings(page)


@part("interface-info")
def interface_info_metric() -> str:
    def page(naming: str) -> bytes:
        shown = InterfaceInfo(NodeNames(), naming=naming)  # type: ignore[arg-type]
        return b"".join(shown.render(["t"]))

    return f"{both_namings(page)}\nLabels: {codes(interface_info.LABELS)}.\n"


@part("captures")
def capture_metrics() -> str:
    def page(naming: str) -> bytes:
        shown = Captures(naming=naming, stats=stats.CaptureStats())  # type: ignore[arg-type]
        shown.message(CAPTURE, 0)
        return shown.page(0)

    return both_namings(page)


@part("default-view")
def default_view() -> str:
    export = loader.parse("", {}, source="none").export
    return table(
        ["Metric", "Type", "Labels", "Description"],
        [
            [
                code(family.name),
                family.type,
                codes(label.name for label in view.labels),
                family.help,
            ]
            for view in export.further_views
            for family in planner.families(view, naming=export.naming)
        ],
    )


# skyfast's own metrics ---------------------------------------------------------------------------


def self_families() -> list[Family]:
    """Return the families of ``/metrics/self``, each with at least one sample."""
    export = loader.parse("", {}, source="none").export
    plan = planner.make_plan(export, names=NameIndex.of(export, keep_s=0))
    table = Table(
        plan,
        flow_types(plan),
        max_connections=1,
        max_flows=1,
        timeout_s=1,
        memory_s=0,
        view_timeouts_s=[1] * len(export.further_views),
    )
    counters = stats.Stats()
    counters.analyzer("analyzer")
    counters.flows_filtered["rule"] = 0
    counters.values_skipped["field"] = 0
    counters.config.last_reload_changed = ("key",)
    counters.topology.names = stats.NameStats(query_duration_s={"interfaces": 0})
    counters.own_names = stats.OwnNameStats()
    views = [view.prefix for view in export.further_views]
    page = self_metrics.render(counters, table, views=views)
    page += self_metrics.render_hidden({"": (1, 1)})
    page += self_metrics.render_label_values({"protocol": 1})
    return read_families(page)


STANDARD_NAMES: Final = {"skyfast_flows": "skyfast_table_flows"}
"""Families of skyfast itself whose names differ with ``naming: standard``."""


@part("self-metrics")
def self_metrics_tables() -> str:
    sections = described("self_metrics.yml")["sections"]
    families = {family.name: family for family in self_families()}
    check_names(
        (name for section in sections for name in section["metrics"]),
        families,
        where="self_metrics.yml",
    )
    parts = []
    for section in sections:
        rows = []
        for name, expected in section["metrics"].items():
            family = families[name]
            shown = code(name)
            if name in STANDARD_NAMES:
                shown += f"; {code(STANDARD_NAMES[name])} with `naming: standard`"
            rows.append([shown, family.type, codes(family.labels), family.help, expected])
        head = ["Metric", "Type", "Labels", "Description", "Expected value, and meaning of others"]
        parts.append(f"### {section['title']}\n\n{table(head, rows)}")
    return "\n".join(parts)


@part("reasons")
def reasons() -> str:
    described_reasons = described("self_metrics.yml")["reasons"]
    families = {family.name: family for family in self_families() if family.reasons}
    check_names(described_reasons, families, where="self_metrics.yml: reasons")
    parts = []
    for name, meanings in described_reasons.items():
        check_names(meanings, families[name].reasons, where=f"self_metrics.yml: {name}")
        rows = [[code(reason), meaning] for reason, meaning in meanings.items()]
        parts.append(f"### {code(name)}\n\n{table(['Reason', 'Meaning'], rows)}")
    return "\n".join(parts)


# Configuration -----------------------------------------------------------------------------------


@part("configuration-keys")
def configuration_keys() -> str:
    sections = described("configuration.yml")["sections"]
    check_names(
        (path for section in sections for path in section["keys"]),
        schema.SCHEMA,
        where="configuration.yml",
    )
    default = yaml.safe_load(loader.dump(loader.parse("", {}, source="none")))
    parts = []
    for section in sections:
        parts.append(f"## {section['title']}\n\n{section.get('text', '')}".rstrip() + "\n")
        rows = [
            [
                f"[{code(path)}](#{github_anchor(path)})",
                _default(path, key, default),
                _unit(path, key),
            ]
            for path, key in section["keys"].items()
        ]
        parts.append(table(["Key", "Default", "Unit"], rows))
        for path, key in section["keys"].items():
            variable = schema.SCHEMA[path].env
            lines = [
                f"- Default: {_default(path, key, default)}",
                f"- Unit: {unit}" if (unit := _unit(path, key)) else "",
                f"- Example: {code(flow_style(key['example']))}",
                f"- Environment variable: {code(variable) or 'none'}",
            ]
            head = "\n".join(filter(None, lines))
            parts.append(f"### {code(path)}\n\n{head}\n\n{key['text'].strip()}\n")
    return "\n".join(parts)


def github_anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _unit(path: str, key: Mapping[str, Any]) -> str:
    """Return the unit of a key. If its default is a float, the unit is seconds."""
    if isinstance(schema.SCHEMA[path].default, float):
        return "seconds"
    return str(key.get("unit", ""))


def _default(path: str, key: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the default in the description of a key, or else the default in the code."""
    if "default" in key:
        return str(key["default"])
    value: Any = defaults
    for name in path.split("."):
        value = value[name]
    return code(flow_style(value))


def flow_style(value: object) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {flow_style(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow_style, value)) + "]"
    return str(value)


@part("command-line")
def command_line() -> str:
    os.environ["COLUMNS"] = HELP_COLUMNS
    return f"```text\n{cli._parser().format_help()}```\n"


# Log messages ------------------------------------------------------------------------------------


@part("log-messages")
def log_message_tables() -> str:
    logged = log_messages()
    sections = described("log_messages.yml")
    explained = [entry["message"] for section in sections for entry in section["messages"]]
    problems = [
        f"{message.module}.py: no explanation of {message.pattern}"
        for message in logged
        if not any(re.match(message.pattern, text) for text in explained)
    ]
    problems += [
        f"never logged: {text}"
        for text in explained
        if not any(re.match(message.pattern, text) for message in logged)
    ]
    if problems:
        raise DocumentationError("log_messages.yml: " + "; ".join(problems))
    parts = []
    for section in sections:
        has_reasons = any("reason" in entry for entry in section["messages"])
        head = ["Message", "Level", *(["Reason"] if has_reasons else []), "Cause", "Action"]
        rows = []
        for entry in section["messages"]:
            # A pattern that begins with an argument also matches longer messages, so use the
            # longest pattern.
            fitting = [message for message in logged if re.match(message.pattern, entry["message"])]
            level = max(fitting, key=lambda message: len(message.pattern)).level
            reason = [code(entry.get("reason", ""))] if has_reasons else []
            rows.append(
                [code(entry["message"]), level, *reason, entry["cause"], entry.get("action", "")]
            )
        text = section.get("text", "").strip()
        parts.append(
            "\n".join(filter(None, [f"## {section['title']}\n", f"{text}\n" if text else ""]))
            + f"\n{table(head, rows)}"
        )
    return "\n".join(parts)


# The HTTP API ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class JsonField:
    """The path of a field, such as ``analyzers[].name``, and its type."""

    path: str
    type: str


JSON_TYPES: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_fields(kind: Any, path: str = "", *, nullable: bool = False) -> Iterator[JsonField]:
    """Yield the fields of a type in order, including those of nested objects."""
    suffix = " or null" if nullable else ""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if type(None) in arguments:
        (kind,) = (each for each in arguments if each is not type(None))
        yield from json_fields(kind, path, nullable=True)
    elif dataclasses.is_dataclass(kind):
        if nullable:
            yield JsonField(path, f"object{suffix}")
        for name, hint in typing.get_type_hints(kind).items():
            yield from json_fields(hint, f"{path}.{name}".strip("."))
    elif origin in (list, tuple, Sequence):
        yield from json_fields(arguments[0], f"{path}[]")
    elif origin is typing.Literal:
        yield JsonField(path, f"string{suffix}")
    elif origin is not None or kind is dict:
        yield JsonField(path, f"object{suffix}")
    else:
        yield JsonField(path, f"{JSON_TYPES[kind]}{suffix}")


LIMITS: Final = {
    "analyzers": status.MAX_ANALYZERS,
    "captures": status.MAX_CAPTURES,
    "default_entries": top.DEFAULT_ENTRIES,
    "groups": f"{top.MAX_GROUPS:,}",
    "points": capture_points.MAX_POINTS,
    "entries": top.MAX_ENTRIES,
    "filter_chars": top.MAX_FILTER_CHARS,
    "forecast_age": f"{forecast.AGE_S:g}",
    "interfaces": interfaces.MAX_BUSIEST,
    "parts": MAX_PARTS,
    "rate_s": int(history.INTERVAL_S * history.RATE_INTERVALS),
    "samples": history.SAMPLES + 1,
    "top_values": cardinality.TOP_VALUES,
}
"""The numbers that replace names in braces in descriptions of the API."""


def filled(text: str) -> str:
    """Replace the names in braces by their numbers."""
    return text.format(**LIMITS)


def json_table(kind: Any, name: str, *, omitted: str = "") -> str:
    """Return a table of the fields of a type, except those of the object ``omitted``."""
    descriptions = described("api.yml")[name]
    fields = [
        field
        for field in json_fields(kind)
        if not omitted or not field.path.startswith(f"{omitted}.")
    ]
    check_names(descriptions, [field.path for field in fields], where=f"api.yml: {name}")
    return table(
        ["Field", "Type", "Description"],
        [[code(field.path), field.type, filled(descriptions[field.path])] for field in fields],
    )


@part("api-status")
def api_status() -> str:
    return json_table(status_report.StatusReport, "status")


@part("api-top")
def api_top() -> str:
    return json_table(top.Top, "top")


@part("api-cardinality")
def api_cardinality() -> str:
    return json_table(cardinality.CardinalityReport, "cardinality", omitted="forecast")


@part("help-topics")
def help_topics() -> str:
    return table(
        ["Figure", "Meaning"],
        [[f"[{topic.title}]({topic.page})", topic.text] for topic in topics().values()],
    )


@part("flow-parameters")
def flow_parameters() -> str:
    return parameter_table("flow_parameters", flow_query.PARAMETERS)


@part("top-parameters")
def top_parameters() -> str:
    return parameter_table("parameters", top.PARAMETERS)


def parameter_table(name: str, parameters: Sequence[str]) -> str:
    descriptions = described("api.yml")[name]
    check_names(descriptions, parameters, where=f"api.yml: {name}")
    return table(
        ["Parameter", "Description", "Default"],
        [
            [code(name), filled(entry["text"]), filled(entry["default"])]
            for name, entry in descriptions.items()
        ],
    )


@part("endpoints")
def endpoints() -> str:
    descriptions = described("api.yml")["endpoints"]
    methods = {path: route.methods for path, route in server.ROUTES.items() if path != "*"}
    check_names(descriptions, methods, where="api.yml: endpoints")
    return table(
        ["Path", "Methods", "Response"],
        [
            [code(path), ", ".join(sorted(methods[path])), text]
            for path, text in descriptions.items()
        ],
    )


# Modules -----------------------------------------------------------------------------------------


@part("modules")
def modules() -> str:
    folders: dict[str, list[list[str]]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if path.stem not in ("__init__", "__main__") and docstring:
            summary = " ".join(docstring.split("\n\n")[0].split()).replace("``", "`")
            name = path.relative_to(SOURCES).with_suffix("").as_posix()
            folders.setdefault(path.parent.name, []).append([code(name), summary])
    return table(["Module", "Purpose"], [row for rows in folders.values() for row in rows])


# Benchmarks --------------------------------------------------------------------------------------


@part("benchmarks")
def benchmark_questions() -> str:
    rows = []
    for name in (*NAMES, *ON_REQUEST):
        path = ROOT.joinpath(*module_name(name).split(".")).with_suffix(".py")
        question, *paragraphs = str(ast.get_docstring(ast.parse(path.read_text()))).split("\n\n")
        for paragraph in paragraphs:
            if paragraph.startswith(NOT_MEASURED):
                excluded = " ".join(paragraph.removeprefix(NOT_MEASURED).split()).removesuffix(".")
                rows.append([code(name), question, excluded])
                break
        else:
            raise DocumentationError(f"{path.name}: the docstring lacks {NOT_MEASURED!r}")
    return table(["Benchmark", "Question", "Not measured"], rows)


# Alerts and figures ------------------------------------------------------------------------------


@part("alerts")
def alerts() -> str:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    conditions = described("alerts.yml")
    check_names(conditions, rules, where="alerts.yml")
    return table(
        ["Alert", "Severity", "For", "Condition"],
        [
            [code(name), rules[name]["labels"]["severity"], rules[name]["for"], condition]
            for name, condition in conditions.items()
        ],
    )


COSTS: Final = (
    ("CPU time per report of a known flow", "known flows", "known flows", "µs", 1e-3, 1),
    ("CPU time per report of a new flow", "new flows", "new flows", "µs", 1e-3, 1),
    (
        "Duration of a scrape of 100,000 connections (500,000 series, gzip)",
        *("gzip", "gzip", "s", 1, 2),
    ),
    ("Memory per connection", "1,000,000 connections", "after a scrape", "bytes", 1, 0),
)
"""Rows of the README's table of costs: title, measurement of skyfast, measurement of the Go
connector, unit, factor to convert to this unit, and number of decimals.
"""


@part("costs")
def costs() -> str:
    return table(
        ["", "skyfast", "prom_sky_con"],
        [
            [
                name,
                *(
                    f"{measured(figure) * factor:,.{decimals}f} {unit}"
                    for figure in (f"skyfast, {ours}", f"Go connector, {theirs}")
                ),
            ]
            for name, ours, theirs, unit, factor, decimals in COSTS
        ],
    )


def measured(name: str) -> float:
    """Return the median of a measurement in ``benchmarks.md``."""
    row = rf"(?m)^\|[^|]*\| {re.escape(name)} \| ([\d,.]+) "
    found = re.search(row, BENCHMARKS.read_text())
    if not found:
        raise DocumentationError(f"benchmarks.md has no measurement {name!r}")
    return float(found[1].replace(",", ""))


# Pages -------------------------------------------------------------------------------------------


def generated(page: str) -> str:
    """Return the text of a page with updated generated parts."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in PARTS:
            raise DocumentationError(f"there is no part {name!r}")
        return f"{BEGIN.format(name=name)}\n\n{PARTS[name]().strip()}\n\n{END}"

    return PART.sub(replace, page)


def outdated_pages() -> list[Path]:
    return [path for path in PAGES if generated(text := path.read_text()) != text]


def main() -> int:
    """Write the outdated pages, or only list them (``--check``). Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, list outdated pages")
    check = parser.parse_args().check
    try:
        pages = outdated_pages()
        for path in pages:
            print(path.relative_to(ROOT))
            if not check:
                path.write_text(generated(path.read_text()))
    except DocumentationError as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
