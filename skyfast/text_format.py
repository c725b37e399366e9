"""The text exposition format 0.0.4, and how OpenMetrics 1.0 and 2.0 differ from it.

https://prometheus.io/docs/instrumenting/exposition_formats/,
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md,
https://prometheus.io/docs/specs/om/open_metrics_spec_2_0/ (2.0.0-rc0)

The parameter ``openmetrics`` of a function is the major version of OpenMetrics, or 0 for the text
format 0.0.4.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol

MetricType = Literal["counter", "gauge", "histogram", "info"]
"""The type ``info`` exists only in OpenMetrics. The text format 0.0.4 has ``gauge`` instead."""

_SUFFIXES: Final[dict[MetricType, str]] = {"counter": "_total", "info": "_info"}
"""In OpenMetrics 1.0, sample names have these suffixes, and family names do not."""

_RESERVED_SUFFIXES: Final[dict[MetricType, tuple[str, ...]]] = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "info": ("", "_info"),
}
"""For each type, the suffixes of the names that OpenMetrics 1.0 reserves for a family.

Example: the counter family ``x`` reserves ``x``, ``x_total`` and ``x_created``."""

Sample = tuple[Mapping[str, str], float]
"""The labels of a sample, and its value."""


class Distribution(Protocol):
    """The observations of a histogram."""

    @property
    def bounds(self) -> Sequence[float]: ...
    @property
    def counts(self) -> Sequence[int]:
        """The number of observations in each bucket, not cumulative.

        Example: if the bounds are 1 and 5, there are three counts: of the observations up to 1, of
        those above 1 and up to 5, and of those above 5.
        """

    @property
    def sum(self) -> float: ...


UNITS: Final = ("bytes", "seconds", "nanoseconds")
"""The units that can end the name of a metric family."""

# Colons are valid in metric names, but reserved for recording rules. Therefore exported names have
# no colons.
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_COUNTER_SAMPLE: Final = re.compile(rb"^(\w+)_total(\{.*\})? \S+$", re.MULTILINE)

_VALUE_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFamily:
    name: str
    """The name of the samples, without histogram suffixes such as ``_bucket``."""
    type: MetricType
    help: str

    @property
    def openmetrics_name(self) -> str:
        """The name of the family in OpenMetrics 1.0."""
        return self.name.removesuffix(_SUFFIXES.get(self.type, ""))

    @property
    def unit(self) -> str:
        """The unit at the end of the name, ignoring ``_total``; "" if there is none."""
        name = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if name.endswith(f"_{unit}")), "")

    @property
    def reserved_names(self) -> tuple[str, ...]:
        name = self.openmetrics_name
        return tuple(f"{name}{suffix}" for suffix in _RESERVED_SUFFIXES[self.type])

    def head(self, *, openmetrics: int) -> str:
        """Return the metadata lines, such as ``# HELP``, that precede the samples."""
        name = self.openmetrics_name if openmetrics == 1 else self.name
        type_ = "gauge" if self.type == "info" and not openmetrics else self.type
        text = self.help.translate(_VALUE_ESCAPES if openmetrics else _HELP_ESCAPES)
        unit = f"# UNIT {name} {self.unit}\n" if openmetrics and self.unit else ""
        help_, type_line = f"# HELP {name} {text}\n", f"# TYPE {name} {type_}\n"
        # OpenMetrics 2.0 recommends TYPE, UNIT, HELP; in other formats, HELP usually comes first.
        return f"{type_line}{unit}{help_}" if openmetrics == 2 else f"{help_}{type_line}{unit}"

    def render(self, samples: Iterable[Sample], *, openmetrics: int) -> str:
        texts = ((label_text(labels), number_text(value)) for labels, value in samples)
        return self.head(openmetrics=openmetrics) + self.lines(texts)

    def render_histograms(
        self, samples: Iterable[tuple[Mapping[str, str], Distribution]], *, openmetrics: int
    ) -> str:
        """Like `render`, but for histograms. In OpenMetrics 2.0, a histogram is one sample."""
        if openmetrics == 2:
            texts = ((label_text(labels), composite_text(value)) for labels, value in samples)
            return self.head(openmetrics=openmetrics) + self.lines(texts)
        return self.head(openmetrics=openmetrics) + "".join(
            self._histogram_lines(labels, distribution) for labels, distribution in samples
        )

    def _histogram_lines(self, labels: Mapping[str, str], distribution: Distribution) -> str:
        lines = []
        total = 0
        bounds = [*map(bound_text, distribution.bounds), "+Inf"]
        for bound, count in zip(bounds, distribution.counts, strict=True):
            total += count
            lines.append(f"{self.name}_bucket{label_text({**labels, 'le': bound})} {total}\n")
        text = label_text(labels)
        lines.append(f"{self.name}_sum{text} {number_text(distribution.sum)}\n")
        lines.append(f"{self.name}_count{text} {total}\n")
        return "".join(lines)

    def lines(self, samples: Iterable[tuple[str, str]]) -> str:
        """Return one line per sample. Each sample is a pair: the label text and the value text."""
        return "".join(f"{self.name}{labels} {value}\n" for labels, value in samples)


def with_unknown_starts(samples: bytes) -> bytes:
    """Add a ``_created`` sample with the value 0 after each counter sample in OpenMetrics 1.0.

    The value 0 means that the start time is unknown. Without a ``_created`` sample, Prometheus
    would search the rest of the family for the start time of each counter.
    """
    return _COUNTER_SAMPLE.sub(rb"\g<0>\n\1_created\2 0", samples)


def is_name(text: str) -> bool:
    """Return whether ``text`` is a valid name of a label or of an exported metric."""
    return _NAME.fullmatch(text) is not None


def escaped(value: str) -> str:
    """Return a label value with the escapes that all formats use."""
    return value.translate(_VALUE_ESCAPES)


def label_text(labels: Mapping[str, str]) -> str:
    """Return ``{name="value",...}`` with escaped values, or "" if there are no labels."""
    if not labels:
        return ""
    pairs = (f'{name}="{escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def number_text(value: float) -> str:
    """Return all digits of an integer, or the shortest text that converts to the same float."""
    return repr(value)


def bound_text(bound: float) -> str:
    """Return a finite bucket bound in the canonical form of OpenMetrics, such as ``1.0``.

    The text is formatted like C's ``%g`` with 6 digits. If 6 digits are not exact, more digits are
    used. Example: one million is ``1e+06``.
    """
    texts = (f"{bound:.{digits}g}" for digits in range(6, 18))
    text = next(text for text in texts if float(text) == bound)
    return text if "." in text or "e" in text else f"{text}.0"


def composite_text(distribution: Distribution) -> str:
    """Return a histogram as one value of OpenMetrics 2.0: ``{count:…,sum:…,bucket:[…]}``."""
    bounds = [*map(bound_text, distribution.bounds), "+Inf"]
    totals = list(accumulate(distribution.counts))
    buckets = ",".join(f"{bound}:{total}" for bound, total in zip(bounds, totals, strict=True))
    return f"{{count:{totals[-1]},sum:{number_text(distribution.sum)},bucket:[{buckets}]}}"
