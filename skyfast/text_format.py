"""The rules of the text exposition format, and of OpenMetrics where they differ."""

from collections.abc import Mapping

_VALUE_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def family_head(name: str, text: str, kind: str, *, unit: str = "", openmetrics: bool) -> str:
    """Return the lines that stand before the samples of the family whose samples are ``name``.

    OpenMetrics 1.0 calls a counter's family what its samples are called without ``_total``, and
    has a line for the unit, which is the end of the family's name:
    https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
    """
    if openmetrics and kind == "counter":
        name = name.removesuffix("_total")
    escapes = _VALUE_ESCAPES if openmetrics else _HELP_ESCAPES
    units = f"# UNIT {name} {unit}\n" if openmetrics and unit else ""
    return f"# HELP {name} {text.translate(escapes)}\n# TYPE {name} {kind}\n{units}"


def escaped(value: str) -> str:
    """Return a label value as both text formats write it."""
    return value.translate(_VALUE_ESCAPES)


def label_text(labels: Mapping[str, str]) -> str:
    """Return ``{name="value",...}``, escaped by the text format's rules; "" without labels."""
    if not labels:
        return ""
    pairs = (f'{name}="{escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"
