"""The common parts of the HTML pages: frame, style and security headers.

Nothing is loaded from anywhere, and no script runs but the status page's own: `POLICY` lets the
browser see to that too. The style and the script are files beside the recording of the demo.
"""

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files


def read(name: str) -> str:
    """Return one of the packaged files that pages are made of."""
    return files("skyfast").joinpath("data", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return how the policy names a style or script that stands on the page itself."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE = read("pages.css")
_SCRIPT = read("status.js")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 11h3l2-8 4 11 2-6h3' fill='none' stroke='%2338f' stroke-width='2'/%3E%3C/svg%3E"
)

_REFRESH = '<noscript><meta http-equiv="refresh" content="30"></noscript>\n'
"""For those who run no scripts."""

POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)};"
    " connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'"
)
"""The ``Content-Security-Policy`` of every page."""


def document(*, title: str, body: str, wide: bool = False, script: bool = False) -> str:
    """Return a whole page, for a wide screen or for reading; with the script or without.

    Title and body are trusted: what comes from outside is escaped in them.
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
    """Return a bar that fills ``share`` of the cell it stands in, from 0 to 1."""
    return (
        '<svg aria-hidden="true"><rect height="100%"'
        f' width="{100 * min(max(share, 0.0), 1.0):.1f}%"/></svg>'
    )
