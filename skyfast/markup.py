"""What the HTML pages have in common: the frame, the colours and the type.

Nothing is loaded from anywhere and nothing runs: `POLICY` lets the browser see to that too.
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The ``Content-Security-Policy`` of every page."""

_STYLE = """\
:root { color-scheme: light dark; --dim: #667; --line: #8884; --link: #05a; --bar: #05a3; }
@media (prefers-color-scheme: dark) { :root { --dim: #99a; --link: #7bf; --bar: #7bf4; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 38rem; margin: 12vh auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; }
p { color: var(--dim); margin: 0 0 1.5rem; }
a, code { font-family: ui-monospace, monospace; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
"""


def document(*, title: str, style: str, body: str) -> str:
    """Return a whole page. All three are trusted: what comes from outside is escaped in them."""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{_STYLE}{style}</style>
{body}</html>
"""
