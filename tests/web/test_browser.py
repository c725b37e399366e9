"""The status page and its script in a real browser."""

import asyncio
import dataclasses
import json
import os
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from skyfast.skydive import topology_nodes
from skyfast.stats import Failure
from skyfast.web import status_html
from skyfast.web.status_report import CapturePointStatus, CaptureStatus, InterfaceStatus
from tests.model import make_flow
from tests.support.browser import CHROMIUM, MISSING, chromium
from tests.support.model_specs import TOPOLOGY
from tests.support.paths import ROOT
from tests.support.status_site import EVIL, FORMATS, StatusSite, three_connections
from tests.support.waiting import until

needs_chromium = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason=MISSING)
pytestmark = [
    needs_chromium,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
]

AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
needs_axe = pytest.mark.skipif(
    not AXE.exists() and not os.environ.get("CI"),
    reason="axe-core is not installed (install npm, then run make test-slow)",
)
SCREENS = {
    "light": {"width": 1280, "dark": False},
    "dark": {"width": 1280, "dark": True},
    "narrow": {"width": 400, "dark": True},
}

HOURS = """
let hours = 0;
Date = class extends Date {
  hours = hours += 1;
  valueOf() { return super.valueOf() + 3_600_000 * this.hours }
}
"""
"""A script that advances the time by an hour with each call of ``new Date()``."""

REFRESHED = "performance.getEntriesByType('resource').some((entry) => /top/.test(entry.name))"
RANKS = """
[...document.querySelectorAll('[data-rows=top] tbody tr')].map((row) => row.cells[1].textContent)
""".strip()
ELEMENTS = """
[...document.querySelectorAll('[data-key]:not(th), [data-highest], tbody td, #note, title, li')]
    .map((element) => [element.tagName, element.className, element.title, element.textContent])
"""
DRAWN = "[...document.querySelectorAll('[data-series] path')].map((path) => path.getAttribute('d'))"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    async with chromium() as running:
        yield running


@pytest.fixture
def visited(browser):
    """Return a context manager that opens a page, and checks for errors on exit."""

    @asynccontextmanager
    async def visit(site, path="/", **screen):
        async with browser.page() as tab:
            await tab.emulate_screen(**{"width": 1280, **screen})
            await tab.open(f"http://127.0.0.1:{site.app.web.port}{path}")
            yield tab
            assert not tab.problems
            origin = f"http://127.0.0.1:{site.app.web.port}/"
            assert all(url.startswith((origin, "data:")) for url in tab.requested), tab.requested

    return visit


def served(api_status):
    """Return a script that updates the page with ``api_status``."""
    return f"""
        const ask = window.fetch, served = {json.dumps(json.dumps(api_status))};
        window.fetch = (path, options) => String(path).includes('status')
            ? Promise.resolve(new Response(served)) : ask(path, options);
        document.querySelector('#pause').click();
        document.querySelector('#pause').click();
    """


async def test_script_renders_the_same_page_as_the_server(visited, monkeypatch):
    async with three_connections() as site:
        await site.get("/metrics")
        site.app.status.sample()
        stats = site.app.stats.analyzers["127.0.0.1:9"]
        stats.last_failure = Failure("error", "never", 1_700_000_000.0)
        report = await site.app.status.report()

        async def fixed_report():
            return report

        monkeypatch.setattr(site.app.status, "report", fixed_report)
        async with visited(site, "/?by=packets") as tab:
            await tab.until(REFRESHED)
            await tab.evaluate("document.querySelector('#pause').click()")
            written, drawn = await tab.evaluate(ELEMENTS), await tab.evaluate(DRAWN)
            ranks = await tab.evaluate(RANKS)
            await tab.evaluate(
                "fetch(location).then((response) => response.text()).then((text) => {"
                " window.served = new DOMParser().parseFromString(text, 'text/html') })"
            )
            await tab.until("window.served")
            assert await tab.evaluate(DRAWN.replace("document", "served")) == drawn
            served = await tab.evaluate(ELEMENTS.replace("document", "served"))
    assert ranks == ["10.0.0.1", "10.0.0.2", "fd00::3"]
    assert len(written) > 80
    assert written[0] == ["TITLE", "", "", "▲ 0 of 1 analyzer · skyfast · skyfast-test"]
    assert written == served
    assert [path for path in drawn if path.startswith("M")]


async def test_script_shows_the_same_names_and_groups_as_the_server(visited, monkeypatch):
    view = {"prefix": "x", "labels": ["initiator_workload", "direction"], "metrics": ["bytes"]}
    async with three_connections(views=[view]) as site:
        parts, now = site.app._parts, site.app.clock.now()
        parts.interfaces.update(topology_nodes.read(TOPOLOGY), now)
        # The HTML parser would replace NUL.
        nameless, evil = ("",) * 8, EVIL.rstrip("\x00")
        parts.names.nodes["node-1"] = ("eth0", "h1", "", evil, *nameless[4:])
        parts.names.addresses["10.0.0.1"] = (evil, *nameless[1:])
        parts.captures.message(json.dumps({"CaptureID": "c-1"}).encode(), now)
        parts.capture_points._points["c-1"] = dict.fromkeys(
            ["node-1", "nowhere", *list(parts.interfaces.names)[:3]], now
        )
        report = await site.app.status.report()

        async def fixed_report():
            return report

        monkeypatch.setattr(site.app.status, "report", fixed_report)
        for query in (
            "",
            "?filter=H1%20&n=2",
            "?group=node_tid,initiator_ip",
            "?group=protocol&n=1",
            "?view=x",
            "?group=initiator_workload",
            "?view=x&filter=nothing",
            "?filter=nothing",
        ):
            async with visited(site, f"/{query}") as tab:
                await tab.until(REFRESHED)
                await tab.evaluate("document.querySelector('#pause').click()")
                written = await tab.evaluate(ELEMENTS)
                await tab.evaluate(
                    "fetch(location).then((response) => response.text()).then((text) => {"
                    " window.served = new DOMParser().parseFromString(text, 'text/html') })"
                )
                await tab.until("window.served")
                assert await tab.evaluate(ELEMENTS.replace("document", "served")) == written
                texts = "\n".join(text for *_, text in written)
                titles = "\n".join(title for _, _, title, _ in written)
                assert "eth0" in texts or query not in ("", "?group=node_tid,initiator_ip")
                assert "and 2 more" in texts
                assert "\nnowhere" in titles


async def test_group_can_be_chosen(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.evaluate(
            "const select = document.querySelector('#group'); select.value = 'protocol';"
            " select.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        await tab.until("location.search.includes('group=protocol')")
        await tab.until(f"{RANKS}.join() === 'TCP'")
        await tab.until(REFRESHED)
        note = await tab.evaluate("document.querySelector('#note').textContent")
        assert note == "1 of 1 group"
        await tab.click(".choice a[data-by=packets]")
        await tab.until("location.search === '?by=packets&filter=&group=protocol&n=20'")
        await tab.until("document.querySelector('.choice [aria-current]').dataset.by === 'packets'")
        assert await tab.evaluate(f"{RANKS}.join()") == "TCP"
        await tab.evaluate(
            "const again = document.querySelector('#group'); again.value = '';"
            " again.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        await tab.until("!location.search.includes('group')")
        await tab.until(f"{RANKS}.length === 3")


async def test_column_of_a_metric_is_hidden_while_the_metric_ranks_the_list(visited):
    shown = (
        "[...document.querySelector('[data-rows=top]').rows].slice(0, 2)"
        ".flatMap((row) => [...row.cells])"
        ".filter((cell) => cell.offsetWidth).map((cell) => cell.textContent.trim())"
    )
    view = {"prefix": "x", "labels": ["target_port"], "metrics": ["bytes", "new_flows"]}
    view["direction"] = "sum"
    async with three_connections(views=[view]) as site, visited(site, "/?view=x") as tab:
        await tab.until(f"{RANKS}.join() === '443'")
        assert await tab.evaluate(shown) == [
            *("bytes", "target port", "new flows"),
            *("6.00 kB", "443", "3"),
        ]
        await tab.click(".choice a[data-by=new_flows]")
        await tab.until("document.querySelector('th[aria-sort]').textContent === 'new flows'")
        assert await tab.evaluate(shown) == [
            *("new flows", "target port", "bytes"),
            *("3", "443", "6.00 kB"),
        ]


@pytest.mark.parametrize("width", [500, 1200])
async def test_bar_of_a_percentage_is_below_the_digits(visited, width):
    async with three_connections() as site:
        site.app.stats.analyzer("127.0.0.1:9").flows = 10
        async with visited(site, width=width) as tab:
            bars = await tab.evaluate(
                "[...document.querySelectorAll('td.share')].map((cell) => {"
                " const range = document.createRange();"
                " range.selectNodeContents(cell.querySelector('span'));"
                " const text = range.getBoundingClientRect(), y = text.y + text.height / 2;"
                " const bar = cell.querySelector('svg').getBoundingClientRect();"
                " return [bar.top - y, bar.height, text.height] })"
            )
    assert len(bars) == 4
    for below_middle, height, text_height in bars:
        # The digits end a quarter of the text height below the middle.
        assert below_middle >= text_height / 4
        assert height <= 3


async def test_grouping_and_view_can_be_chosen(visited):
    view = {"prefix": "ports", "labels": ["target_port"], "metrics": ["bytes"]}
    async with three_connections(views=[view]) as site, visited(site, "/?by=rtt") as tab:
        await tab.until(f"{RANKS}.length === 2")
        await tab.click(".choice a[data-by=packets]")
        await tab.until("location.search.includes('by=packets')")
        await tab.click(".choice a[data-group=target_port]")
        await tab.until("location.search === '?by=packets&filter=&n=20&group=target_port'")
        await tab.until(f"{RANKS}.join() === '443'")
        # This view has no packets, so it is ranked by its default metric.
        await tab.click(".choice a[data-view=ports]")
        await tab.until("location.search.includes('view=ports')")
        await tab.until(f"{RANKS}.join() === '443'")
        await tab.until(REFRESHED)
        note = await tab.evaluate("document.querySelector('#note').textContent")
        assert note == "1 of 1 row of the view ports"
        assert await tab.evaluate("document.querySelector('#ask').elements.by.value") == "bytes"
        await tab.click(".choice a[data-group='']")
        await tab.until("!location.search.includes('view')")
        await tab.until(f"{RANKS}.length === 3")


async def test_script_formats_values_like_the_server(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        api_status = await site.json("/api/status")
        heads = "".join(
            f'<th data-key="v{i}" data-format="{format_}">'
            for i, (format_, _, _) in enumerate(FORMATS)
        )
        table = f'<table data-rows="formats"><thead><tr>{heads}</tr></thead><tbody></tbody></table>'
        row = {f"v{i}": value for i, (_, value, _) in enumerate(FORMATS)}
        api_status |= {"timestamp_seconds": 1000, "formats": [row]}
        await tab.evaluate(
            f"""
            document.querySelector('[data-rows=analyzers]').insertAdjacentHTML('afterend',
                '{table}');
            """
        )
        await tab.evaluate(served(api_status))
        await tab.until("document.querySelectorAll('[data-rows=formats] td').length > 0")
        written = await tab.evaluate(
            "[...document.querySelectorAll('[data-rows=formats] td')].map((td) => td.textContent)"
        )
    assert written == [text for _, _, text in FORMATS]


async def test_ranking_can_be_sorted_and_filtered(visited):
    async with three_connections() as site, visited(site) as tab:
        assert await tab.evaluate(RANKS) == ["fd00::3", "10.0.0.2", "10.0.0.1"]
        await tab.until(REFRESHED)
        await tab.click(".choice a[data-by=packets]")
        await tab.until(f"{RANKS}[0] === '10.0.0.1'")
        assert (
            await tab.evaluate("document.querySelector('th[aria-sort]').textContent") == "packets"
        )
        assert (
            await tab.evaluate("document.querySelector('.choice [aria-current]').dataset.by")
            == "packets"
        )
        await tab.click("th a[data-by=rtt]")
        await tab.until(f"{RANKS}.length === 2")
        await tab.type("#filter", "0.0.1")
        await tab.until("location.search.includes('filter=0.0.1')")
        await tab.click(".choice a[data-by=bytes]")
        await tab.until(f"{RANKS}.join() === '10.0.0.1'")
        await tab.type("#filter", "x")
        await tab.until(f"{RANKS}.length === 0")
        assert await tab.evaluate("document.querySelector('#note').textContent") == (
            "No connection matches “0.0.1x”."
        )
        # A bookmark or a reload needs the selection in the URL.
        search = await tab.evaluate("location.search")
        assert search == "?by=bytes&filter=0.0.1x&n=20"
        site.report(make_flow("5", a="10.0.0.1x"))
        await tab.click(".choice a[data-by=bytes_per_second]")
        await tab.until("document.querySelector('#note').textContent.startsWith('No rates yet')")
        assert (
            await tab.evaluate("document.querySelector('th[aria-sort]').textContent") == "bytes/s"
        )


async def test_hostile_values_are_shown_as_text(visited):
    async with three_connections() as site:
        site.report(make_flow("6", (10**9, 0, 1, 0), node=EVIL))
        site.app.stats.analyzers["127.0.0.1:9"].last_failure = Failure("error", EVIL)
        async with visited(site) as tab:
            await tab.evaluate("window.alert = () => { window.forged = true }")
            for _ in ("as served", "as the script writes it"):
                shown = await tab.evaluate(
                    "document.querySelector('[data-rows=top] tbody tr').cells[5].textContent"
                )
                # The HTML parser removes NUL.
                assert shown.rstrip("\x00") == EVIL.rstrip("\x00")
                assert (
                    await tab.evaluate("document.querySelectorAll('td img, td script').length") == 0
                )
                assert not await tab.evaluate("window.forged")
                await tab.click("#pause")
                await tab.click("#pause")
                await tab.until(REFRESHED)


async def test_page_works_without_its_script(browser):
    async with three_connections() as site, browser.page() as tab:
        await tab.disable_scripts()
        await tab.call("Page.navigate", url=f"http://127.0.0.1:{site.app.web.port}/?by=rtt")
        async with asyncio.timeout(10):
            while True:
                tree = json.dumps(await tab.call("DOMSnapshot.captureSnapshot", computedStyles=[]))
                if "20.0 ms" in tree:
                    break
                await asyncio.sleep(0.05)
        assert "Show" in tree
        assert not [url for url in tab.requested if "api" in url]


async def test_page_shows_that_responses_are_missing(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        assert await tab.evaluate("document.querySelector('#stale').hidden")
        await tab.evaluate("window.fetch = () => Promise.reject(new Error('gone'))")
        for _ in range(2):
            await tab.click(".choice a")
        await tab.until("!document.querySelector('#stale').hidden")
        text = await tab.evaluate("document.querySelector('#stale').textContent")
        assert text.startswith("No response from skyfast since ")
        assert await tab.evaluate("document.title") == "▲ skyfast does not respond"


async def test_errors_of_a_proxy_count_as_missing_responses(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.evaluate("window.fetch = () => Promise.resolve(new Response('', {status: 503}))")
        for _ in range(2):
            await tab.click("#pause")
            await tab.click("#pause")
            await tab.until("document.querySelector('#note').textContent.includes('try again')")
        await tab.click(".choice a")
        await tab.until("!document.querySelector('#stale').hidden")


async def test_page_of_an_older_version_is_reloaded_once(visited, monkeypatch):
    rendered = []
    as_html = status_html.as_html

    def old_at_first(report, *others):
        rendered.append(report)
        old = dataclasses.replace(report, version="98")
        return as_html(report if rendered[1:] else old, *others)

    monkeypatch.setattr(status_html, "as_html", old_at_first)
    async with three_connections() as site, visited(site) as tab:
        await until(lambda: len(rendered) == 2)
        await tab.until(REFRESHED)
        assert len(rendered) == 2, "the page was reloaded again"


async def test_new_version_reloads_the_page(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.evaluate("window.old = true")
        await tab.evaluate(served((await site.json("/api/status")) | {"version": "99"}))
        await tab.until("!window.old")


CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
  const ratios = {};
  const base = matchMedia('(prefers-color-scheme: dark)').matches ? '#121212' : '#fff';
  for (const element of document.querySelectorAll('body *')) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || !element.checkVisibility() || element.closest('.unseen, script')) continue;
    const below = [];
    for (let ancestor = element; ancestor; ancestor = ancestor.parentElement) {
      below.unshift(getComputedStyle(ancestor).backgroundColor);
    }
    const colour = getComputedStyle(element).color;
    const background = light(over([base, ...below]));
    const foreground = light(over([base, ...below, colour]));
    const ratio = (Math.max(background, foreground) + .05)
      / (Math.min(background, foreground) + .05);
    const name = element.tagName + '.' + element.className;
    ratios[name] = Math.min(ratios[name] ?? 99, ratio);
  }
  return ratios;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_page_is_accessible(visited, dark):
    async with three_connections() as site, visited(site, dark=dark) as tab:
        await tab.until(REFRESHED)
        contrasts = await tab.evaluate(CONTRASTS)
        assert len(contrasts) > 20
        # 4.5 is the limit of WCAG 2.2, level AA.
        assert not {name: ratio for name, ratio in contrasts.items() if ratio < 4.5}
        background = await tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert background is dark
        unlabelled = await tab.evaluate(
            "[...document.querySelectorAll('input:not([type=hidden]), select')]"
            ".filter((field) => !field.labels.length).length"
        )
        headless = await tab.evaluate("document.querySelectorAll('th:not([scope])').length")
        assert (unlabelled, headless) == (0, 0)
        # The Tab key visits links and controls in the order of the page. The focus has a visible
        # outline.
        focused = []
        before = ["Status", "Cardinality", "Help", "Metrics", "Pause"]
        before += ["Connections", "Flows", "Series (upper bound)"]
        before += ["Analyzers", "share", "lag", "age of data", "lost", "Busiest connections"]
        expected = [*before, *_choices()]
        for _ in expected:
            await tab.press("Tab")
            focused.append(await tab.evaluate("document.activeElement.textContent.trim()"))
        assert focused == expected
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await tab.evaluate(outline) != "none"


@needs_axe
@pytest.mark.parametrize("screen", SCREENS, ids=SCREENS.keys())
@pytest.mark.parametrize("path", ["/", "/cardinality", "/help", "/missing"])
async def test_axe_finds_no_accessibility_violations(browser, path, screen):
    view = {"prefix": "x", "labels": ["initiator_ip", "direction"], "metrics": ["bytes"]}
    async with three_connections(views=[view]) as site, browser.page() as tab:
        site.app.stats.analyzers["127.0.0.1:9"].last_failure = Failure("error", "refused")
        await tab.emulate_screen(**SCREENS[screen])
        await tab.open(f"http://127.0.0.1:{site.app.web.port}{path}")
        await tab.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true })")
        await tab.evaluate(AXE.read_text())
        await tab.evaluate(
            "axe.run({resultTypes: ['violations']}).then((found) => { window.found = found })"
        )
        await tab.until("window.found !== undefined")
        violations = await tab.evaluate(
            "found.violations.map(({id, nodes}) => [id, nodes.map(({html}) => html)])"
        )
        assert not violations
        assert await tab.evaluate("found.passes.length") > 10


async def test_label_values_are_links_that_filter_the_list(visited):
    async with three_connections() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.click("td a[data-filter='10.0.0.1']")
        await tab.until(f"{RANKS}.join() === '10.0.0.1'")
        assert "filter=10.0.0.1" in await tab.evaluate("location.search")
        assert await tab.evaluate("document.querySelector('#filter').value") == "10.0.0.1"


async def test_cardinality_page_updates_itself(visited):
    async with three_connections() as site, visited(site, "/cardinality") as tab:
        assert "3 connections" in await tab.evaluate("document.querySelector('main').textContent")
        await tab.evaluate("document.querySelector('details').open = true")
        opened = await tab.evaluate("document.querySelector('details').dataset.open")
        site.report(make_flow("7", a="10.0.0.7"))
        site.app.exposition.source.cardinality._reports._results.clear()
        await tab.evaluate(HOURS)
        for _ in range(2):
            await tab.click("#pause")
        await tab.until("document.querySelector('main').textContent.includes('4 connections')")
        still = "[...document.querySelectorAll('details[open]')].map((e) => e.dataset.open).join()"
        assert await tab.evaluate(still) == opened
        await tab.evaluate("window.fetch = () => Promise.reject(new Error('gone'))")
        for _ in range(2):
            await tab.click("#pause")
        await tab.until("!document.querySelector('#stale').hidden")


def _choices():
    return ["bytes", "packets", "rtt", "bytes/s", "packets/s"]


@pytest.mark.parametrize("width", [320, 768])
async def test_page_fits_narrow_screens(visited, width):
    async with three_connections() as site:
        for path in ("/", "/cardinality"):
            async with visited(site, path, width=width) as tab:
                # Only tables can scroll horizontally.
                assert await tab.evaluate("document.documentElement.scrollWidth") == width


async def test_all_tables_fit_a_screen_of_usual_width(visited, monkeypatch):
    settings = {
        "labels": [
            *("initiator_name", "initiator_ip", "initiator_port"),
            *("target_name", "target_ip", "target_port", "protocol"),
        ]
    }
    async with three_connections(**settings) as site:
        report = await site.app.status.report()
        interface = InterfaceStatus(
            labels={
                "interface_name": "vethef5e5c2",
                "host": "worker-12.example",
                "interface_type": "openvswitch",
                "ipv4": "172.31.255.254/24",
                "ipv6": "",
                "node_tid": "1",
            },
            owner="monitoring/node-exporter-x7k2p",
            received_bytes=10**12,
            transmitted_bytes=10**12,
            dropped_packets=10**6,
            errors=10**6,
        )
        capture = CaptureStatus(
            capture_id="0d1b9e6a-68f7-4e88-bb49-62bef3ae4964",
            points=[
                CapturePointStatus(node_tid=str(n), name="worker-12.example shop/cart-x2x4q eth0")
                for n in range(5)
            ],
            packets_received=1e9,
            packets_dropped=1e6,
            kernel_flows_dropped=10**6,
            flows=10**6,
            flows_dropped=10**6,
            reports=1,
        )
        full = dataclasses.replace(
            report,
            interfaces=dataclasses.replace(report.interfaces, enabled=True, busiest=[interface]),
            captures=dataclasses.replace(report.captures, count=1, first=[capture]),
        )

        async def fixed_report():
            return full

        monkeypatch.setattr(site.app.status, "report", fixed_report)
        async with visited(site, width=1200) as tab:
            widths = await tab.evaluate(
                "[...document.querySelectorAll('.scroll:not([hidden])')]"
                ".map((table) => [table.scrollWidth, table.clientWidth])"
            )
    assert len(widths) == 5
    assert all(content <= visible for content, visible in widths)


async def test_paused_page_sends_no_requests(visited):
    async with StatusSite() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.click("#pause")
        requests = len(tab.requested)
        await tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await asyncio.sleep(0.3)
        assert len(tab.requested) == requests
        assert await tab.evaluate("document.querySelector('#pause').textContent") == "Resume"
        await tab.click("#pause")
        await tab.until("document.querySelector('#pause').textContent === 'Pause'")
        await until(lambda: len(tab.requested) >= requests + 2)


async def test_page_shown_again_during_an_update_starts_no_second_update(visited):
    async with StatusSite() as site, visited(site) as tab:
        await tab.until(REFRESHED)
        await tab.click("#pause")
        await tab.evaluate(
            "window.started = [];"
            " window.fetch = (url) => { started.push(String(url)); return new Promise(() => {}) }"
        )
        await tab.click("#pause")
        await tab.until("started.length")
        started = await tab.evaluate("started")
        for _ in range(3):
            await tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        assert await tab.evaluate("started") == started
        assert len(set(started)) == len(started)
