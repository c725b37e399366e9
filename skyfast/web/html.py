"""The common parts of the HTML pages: frame, style and security headers.

Pages load nothing from other hosts, and the only script is that of the status page; browsers
enforce this by `POLICY`. The style and the script are package data.
"""

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files


def read(name: str) -> str:
    """Return the text of a file in the package data."""
    return files("skyfast").joinpath("data", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return the CSP source expression of an inline style or script."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE = read("pages.css")
_SCRIPT = read("status.js")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 11h3l2-8 4 11 2-6h3' fill='none' stroke='%2338f' stroke-width='2'/%3E%3C/svg%3E"
)

_REFRESH = '<noscript><meta http-equiv="refresh" content="30"></noscript>\n'
"""Reloads the page in browsers without JavaScript."""

POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)};"
    " connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'"
)
"""The ``Content-Security-Policy`` of every page."""


def document(*, title: str, body: str, wide: bool = False, script: bool = False) -> str:
    """Return a complete page, with a wide or a narrow layout, with or without the script.

    ``title`` and ``body`` are HTML, so the caller must escape untrusted text.
    """
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="{_ICON}">
{_REFRESH if script else ""}\
<style>{_STYLE}</style>
</head>
<body{' class="wide"' if wide else ""}>
{body}{f"<script>{_SCRIPT}</script>" if script else ""}
</body>
</html>
"""


def bar(share: float) -> str:
    """Return a bar that fills ``share`` of its table cell, from 0 to 1."""
    return (
        '<svg aria-hidden="true"><rect height="100%"'
        f' width="{100 * min(max(share, 0.0), 1.0):.1f}%"/></svg>'
    )
