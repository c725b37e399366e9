"""The rules of the text exposition format 0.0.4, and of OpenMetrics 1.0 where they differ.

https://prometheus.io/docs/instrumenting/exposition_formats/,
https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

MetricType = Literal["counter", "gauge"]

Sample = tuple[Mapping[str, str], float]
"""The labels and the value."""

UNITS: Final = ("bytes", "seconds", "nanoseconds")
"""The units that names of families end with."""

# Names of metrics can have colons, but those are for recording rules.
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_VALUE_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFamily:
    """A metric family. ``name`` is that of its samples."""

    name: str
    type: MetricType
    help: str

    @property
    def unit(self) -> str:
        """The one of `UNITS` that the name ends with, before ``_total``; "" without one."""
        name = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if name.endswith(f"_{unit}")), "")

    @property
    def reserved_names(self) -> tuple[str, ...]:
        """What no other family may be called: OpenMetrics keeps these names for this one."""
        if self.type == "gauge":
            return (self.name,)
        name = self.name.removesuffix("_total")
        return (name, f"{name}_total", f"{name}_created")

    def head(self, *, openmetrics: bool) -> str:
        """Return the lines that stand before the samples.

        OpenMetrics calls a counter's family what its samples are called without ``_total``, has a
        line for the unit, and escapes quotes in the help.
        """
        name = self.name
        if openmetrics and self.type == "counter":
            name = name.removesuffix("_total")
        text = self.help.translate(_VALUE_ESCAPES if openmetrics else _HELP_ESCAPES)
        unit = f"# UNIT {name} {self.unit}\n" if openmetrics and self.unit else ""
        return f"# HELP {name} {text}\n# TYPE {name} {self.type}\n{unit}"

    def render(self, samples: Iterable[Sample], *, openmetrics: bool) -> str:
        """Return the family's lines on a page."""
        texts = ((label_text(labels), number_text(value)) for labels, value in samples)
        return self.head(openmetrics=openmetrics) + self.lines(texts)

    def lines(self, samples: Iterable[tuple[str, str]]) -> str:
        """Return the lines of samples whose labels and values are text already."""
        return "".join(f"{self.name}{labels} {value}\n" for labels, value in samples)


def is_name(text: str) -> bool:
    """Tell whether ``text`` can be the name of a label, or of a metric that is exported."""
    return _NAME.fullmatch(text) is not None


def escaped(value: str) -> str:
    """Return a label value as both text formats write it."""
    return value.translate(_VALUE_ESCAPES)


def label_text(labels: Mapping[str, str]) -> str:
    """Return ``{name="value",...}``, escaped by the text format's rules; "" without labels."""
    if not labels:
        return ""
    pairs = (f'{name}="{escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def number_text(value: float) -> str:
    """Return a finite sample value: an integer exactly, a float as its shortest exact text."""
    return repr(value)
