"""The help page, which explains figures of other pages, and the links to its topics."""

import re

from skyfast.web import help_html
from skyfast.web.help import topics
from tests.support.documentation import anchors
from tests.support.paths import ROOT
from tests.support.status_site import three_connections


def test_topics_refer_to_existing_documentation():
    for topic in topics().values():
        page, _, anchor = topic.page.partition("#")
        assert anchor in anchors(ROOT / "docs" / page), topic.page
        assert topic.text.endswith(".")


async def test_links_lead_to_existing_topics():
    names = set(re.findall(r'<dt id="([a-z]+)">', help_html.as_html()))
    assert names == {*topics()}
    async with three_connections() as site:
        linked = set()
        for path in ("/", "/cardinality"):
            linked |= set(re.findall(r'href="help#([^"]*)"', (await site.get(path))[1]))
        assert "cardinality" in linked
        assert linked <= names
