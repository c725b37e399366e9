"""The common parts of the HTML pages: frame, header, style and security headers.

Pages contain only the scripts of the package data, and load nothing from other hosts. `POLICY`
makes browsers enforce these rules.
"""

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Final

_CURRENT: Final = ' aria-current="page"'

MIN_BAR_PERCENT: Final = 1.0
"""The length of the shortest visible bar, in percent of the cell."""

PAGES: Final = {"./": "Status", "cardinality": "Cardinality", "help": "Help", "metrics": "Metrics"}
"""The links at the top of each page: titles by relative path."""


def read(name: str) -> str:
    """Return the text of a file in the package data."""
    return files("skyfast").joinpath("data", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return the CSP source expression of an inline style or script."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE = read("pages.css")
_SCRIPTS = {name: read("updates.js") + read(name) for name in ("status.js", "refresh.js")}
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M1 11h3l2-8 4 11 2-6h3' fill='none' stroke='%2338f' stroke-width='2'/%3E%3C/svg%3E"
)

_REFRESH = '<noscript><meta http-equiv="refresh" content="30"></noscript>\n'
"""Reloads the page in browsers without JavaScript."""

POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)};"
    f" script-src {' '.join(map(_source, _SCRIPTS.values()))};"
    " connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'"
)
"""The ``Content-Security-Policy`` of every page."""


def document(*, title: str, body: str, script: str = "") -> str:
    """Return a complete page. ``script`` is the name of a script file, or "" for no script.

    ``title`` and ``body`` are HTML: the caller must escape untrusted text.
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
<body>
{body}{f"<script>{_SCRIPTS[script]}</script>" if script else ""}
</body>
</html>
"""


def header(current: str, details: str, *, root: str = "", updates: bool = True) -> str:
    """Return the header of a page.

    * ``current`` is the path of the page in `PAGES`, or "".
    * ``details`` is HTML that follows the heading.
    * ``root`` is the relative path of the status page.
    * If ``updates`` is true, a script updates the page. The header then has a button that pauses
      the updates. After the header, an element warns if the page is stale.
    """
    links = " ".join(
        f'<a href="{escape(root + path.removeprefix("./")) or "./"}"'
        f"{_CURRENT if path == current else ''}>{title}</a>"
        for path, title in PAGES.items()
    )
    pause = (
        '\n<button type="button" id="pause" aria-pressed="false" hidden>Pause</button>'
        if updates
        else ""
    )
    stale = '<p id="stale" class="state bad" role="status" hidden></p>\n' if updates else ""
    return (
        f"<header>\n<h1>skyfast</h1>\n{details}\n"
        f'<nav aria-label="Pages">{links}{pause}</nav>\n</header>\n{stale}'
    )


def bar(share: float) -> str:
    """Return a bar that fills a fraction of its table cell: ``share``, from 0 to 1."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg aria-hidden="true"><rect height="100%"'
        f' width="{max(percent, MIN_BAR_PERCENT) if percent else 0.0:.1f}%"/></svg>'
    )
