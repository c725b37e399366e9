"""A strict parser of the part of OpenMetrics 2.0 that skyfast uses.

The format is specified at https://prometheus.io/docs/specs/om/open_metrics_spec_2_0/ (2.0.0-rc0).
"""

import math
import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
_LABEL = rf'{_NAME}="(?:[^"\\\n]|\\[n"\\])*"'
_NUMBER = r"[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)"
_HISTOGRAM = rf"\{{count:(\d+),sum:({_NUMBER}),bucket:\[((?:{_NUMBER}:\d+,)*\+Inf:\d+)\]\}}"
_SAMPLE = re.compile(
    rf"(?P<name>{_NAME})(?P<labels>\{{(?:{_LABEL}(?:,{_LABEL})*)?\}})?"
    rf" (?P<value>{_NUMBER}|{_HISTOGRAM})(?: st@(?P<start>\d+(?:\.\d+)?))?"
)
_METADATA = re.compile(rf"# (TYPE|UNIT|HELP) ({_NAME}) ((?:[^\\\n\"]|\\[n\"\\])*)")


@dataclass
class Family:
    """Samples have the value and the start time of each series, as text."""

    name: str
    metadata: dict[str, str] = field(default_factory=dict)
    samples: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def families_of(page: str) -> dict[str, Family]:
    """Parse a whole page, and assert that it is valid."""
    lines = page.split("\n")
    assert lines[-2:] == ["# EOF", ""], "the page is not complete"
    families: dict[str, Family] = {}
    family = Family("")
    for line in lines[:-2]:
        if match := _METADATA.fullmatch(line):
            kind, name, text = match.groups()
            if name != family.name:
                assert name not in families, f"{name} appears twice"
                family = families[name] = Family(name)
            assert kind not in family.metadata, line
            assert not family.samples, f"metadata after samples: {line}"
            family.metadata[kind] = text
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match["name"] == family.name, f"not a sample of {family.name}: {line}"
        series = family.name + (match["labels"] or "")
        assert series not in family.samples, f"{series} appears twice"
        family.samples[series] = match["value"], match["start"]
    for family in families.values():
        _check(family)
    return families


def _check(family: Family) -> None:
    assert list(family.metadata) in (["TYPE", "HELP"], ["TYPE", "UNIT", "HELP"]), family.name
    kind, unit = family.metadata["TYPE"], family.metadata.get("UNIT")
    if unit is not None:
        assert re.fullmatch(rf".+_{unit}(_total)?", family.name)
    assert kind in ("counter", "gauge", "histogram", "info")
    assert kind != "info" or family.name.endswith("_info")
    for series, (value, start) in family.samples.items():
        assert start is None or kind in ("counter", "histogram"), series
        assert value.startswith("{") == (kind == "histogram"), series
        if kind == "histogram":
            _check_histogram(value)
        if kind == "info":
            assert value == "1"


def _check_histogram(value: str) -> None:
    match = re.fullmatch(_HISTOGRAM, value)
    assert match is not None
    buckets = [bucket.split(":") for bucket in match[3].split(",")]
    bounds = [math.inf if bound == "+Inf" else float(bound) for bound, _ in buckets]
    counts = [int(count) for _, count in buckets]
    assert bounds == sorted({*bounds})
    assert counts == sorted(counts)
    assert counts[-1] == int(match[1])
