"""The page ``/help``: what the figures on the other pages mean."""

from html import escape

from skyfast.web import html
from skyfast.web.help import Topic, topics


def link(anchor: str, text: str) -> str:
    """Return a link to an explanation. ``text`` is HTML."""
    return f'<a class="help" href="help#{anchor}">{text}</a>'


def as_html() -> str:
    items = "".join(_item(anchor, topic) for anchor, topic in topics().items())
    return html.document(
        title="Help · skyfast",
        body=(
            f"{html.header('help', '<p>what the figures mean</p>', updates=False)}"
            '<main>\n<p class="lead">Each topic names a page in docs/,'
            " a directory of the skyfast repository.</p>\n"
            f'<dl class="panel help">\n{items}</dl>\n</main>\n'
        ),
    )


def _item(anchor: str, topic: Topic) -> str:
    return (
        f'<dt id="{anchor}">{escape(topic.title)}</dt>\n'
        f"<dd><p>{escape(topic.text)}</p><p>See <code>docs/{escape(topic.page)}</code>.</p></dd>\n"
    )
