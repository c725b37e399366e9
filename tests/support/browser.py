"""Controls a headless Chromium for tests and screenshots, using the DevTools protocol."""

import asyncio
import base64
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.support.waiting import WAIT_S

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = "Chromium is missing: install Debian's package chromium"

START_S = 30.0
POLL_S = 0.05
MAX_MESSAGE_BYTES = 64 * 2**20

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)


class NavigatedError(AssertionError):
    """The tab left the page before a call got its response."""


class Page:
    """A browser tab."""

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._connection = connection
        self._session = session
        self._numbers = itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def handle(self, message: dict[str, Any]) -> None:
        if future := self._responses.pop(message.get("id", 0), None):
            if not future.done():
                future.set_result(message)
            return
        match message:
            case {"method": "Runtime.exceptionThrown", "params": params}:
                self.problems.append(json.dumps(params["exceptionDetails"]))
            case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
            case {"method": "Network.requestWillBeSent", "params": params}:
                self.requested.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._responses[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params, "sessionId": self._session}
        await self._connection.send(json.dumps(message))
        response = await asyncio.wait_for(future, WAIT_S)
        if "navigated" in response.get("error", {}).get("message", ""):
            raise NavigatedError(response)
        assert "error" not in response, response
        result: dict[str, Any] = response["result"]
        return result

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(
            f"location.href !== 'about:blank' && document.readyState === 'complete'"
            f" && performance.timing.loadEventEnd > 0 && {json.dumps(url)}.length > 0"
        )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        response = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true, even if the tab opens another page meanwhile.

        Return the value of the expression.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    with suppress(NavigatedError):
                        if value := await self.evaluate(condition):
                            return value
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"never true: {condition}; {self.problems}") from None

    async def click(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, selector: str, text: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Tab": 9, "Enter": 13}[key],
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )

    async def emulate_screen(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    async def disable_scripts(self) -> None:
        await self.call("Emulation.setScriptExecutionDisabled", value=True)

    async def screenshot(self) -> bytes:
        shot = await self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(shot["data"])


class Browser:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._pages: dict[str, Page] = {}
        self._numbers = itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Dispatch messages to the tabs until the connection ends."""
        async for text in self._connection:
            message = json.loads(text)
            if page := self._pages.get(message.get("sessionId", "")):
                page.handle(message)
            elif future := self._responses.pop(message.get("id", 0), None):
                future.set_result(message)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._responses[number] = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        response = await asyncio.wait_for(future, WAIT_S)
        assert "error" not in response, response
        result: dict[str, Any] = response["result"]
        return result

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self._connection, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        yield page
        await self.call("Target.closeTarget", targetId=target["targetId"])


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run Chromium with a temporary profile. Raise RuntimeError if it is missing."""
    if CHROMIUM is None:
        raise RuntimeError(MISSING)
    with TemporaryDirectory(prefix="skyfast-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        reading: list[asyncio.Task[Any]] = []
        try:
            url = await asyncio.wait_for(_devtools_url(process.stderr), START_S)
            # Without a reader, the pipe would become full and block Chromium.
            reading.append(asyncio.create_task(process.stderr.read()))
            async with connect(url, max_size=MAX_MESSAGE_BYTES, compression=None) as connection:
                browser = Browser(connection)
                reading.append(asyncio.create_task(browser.read()))
                yield browser
                with suppress(Exception):
                    await browser.call("Browser.close")
            await asyncio.wait_for(process.wait(), WAIT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)


async def _devtools_url(log: asyncio.StreamReader) -> str:
    lines = []
    async for line in log:
        lines.append(line)
        if match := re.match(rb"DevTools listening on (ws://\S+)", line):
            return match[1].decode()
    raise RuntimeError(f"Chromium did not start: {b''.join(lines).decode(errors='replace')}")
