"""A web server in the test's process, and an HTTP client that gives access to raw responses."""

import asyncio
import dataclasses
import socket

from skyfast.stats import Stats
from skyfast.web.exposition import Exposition
from skyfast.web.server import WebServer
from tests.support.configs import make_config
from tests.support.waiting import until
from tests.support.web_fixtures import (
    FakeTable,
    page_threads,
    source,
    status,
)

PAGES = (
    *("/metrics", "/metrics/flows", "/metrics/interfaces", "/metrics/captures"),
    "/metrics/self",
)

OWN = ("/", "/api/status", "/api/top")
"""Pages that change with every request."""

PATHS = (*PAGES, *OWN, "/cardinality", "/help", "/-/healthy", "/-/ready")
# When a client with this small buffer stops reading, skyfast has to stop rendering.
SMALL_RECEIVE_BUFFER = 8 * 1024


class Site:
    def __init__(
        self, table=None, *, ready=lambda: True, reload=None, parts=None, security=None, **settings
    ):
        config = make_config()
        settings = {"listen_address": "127.0.0.1", "port": 0} | settings
        self.config = dataclasses.replace(config, web=dataclasses.replace(config.web, **settings))
        self.table = table or FakeTable()
        self.stats = Stats()
        self.scrape = self.stats.scrape
        self.exposition = Exposition(
            source=source(self.table, **(parts or {})), stats=self.stats, now=lambda: 100.0
        )
        self.server = WebServer(
            config=self.config,
            exposition=self.exposition,
            status=status(self.table, stats=self.stats, config=self.config, ready=ready),
            ready=ready,
            stats=self.scrape,
            reload=reload,
            security=security,
        )

    async def __aenter__(self):
        await self.server.start()
        return self

    async def __aexit__(self, *_):
        await self.server.stop()
        await until(lambda: not page_threads())

    @property
    def port(self):
        return self.server.port

    async def ask(self, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", **options):
        client = await Client.open(self.port, **options)
        await client.send(request)
        return client

    async def get(self, path="/metrics", *, method="GET", version="1.1", **headers):
        client = await self.ask(request(path, method=method, version=version, **headers))
        async with client:
            return await client.read_response(head=method == "HEAD")

    async def begin_scrape(self, path="/metrics/flows", *, local=None, **headers):
        """Request a page, read only its headers, and return the client."""
        client = await self.ask(
            request(path, **headers), local=local, receive_buffer=SMALL_RECEIVE_BUFFER
        )
        assert (await client.read_head())[0] == 200
        return client


def request(path="/metrics", *, method="GET", version="1.1", **headers):
    lines = [f"{method} {path} HTTP/{version}", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclasses.dataclass
class HttpResponse:
    status: int
    headers: dict
    body: bytes

    @property
    def text(self):
        return self.body.decode()


class Client:
    """A client that gives access to raw responses, with header names in lower case.

    It uses a socket because in some versions of uvloop, a stream reports a reset as a normal end.
    """

    def __init__(self, sock):
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()

    @classmethod
    async def open(cls, port, *, host="127.0.0.1", local=None, receive_buffer=None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = cls(socket.socket(family, socket.SOCK_STREAM))
        client.sock.setblocking(False)
        if receive_buffer:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if local:
            client.sock.bind((local, 0))
        try:
            await client.loop.sock_connect(client.sock, (host, port))
        except OSError:
            client.sock.close()
            raise
        return client

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.sock.close()

    async def send(self, data):
        await self.loop.sock_sendall(self.sock, data)

    async def receive(self, size=2**18):
        """Receive data into ``buffer``. Return False at the end of the connection."""
        data = await self.loop.sock_recv(self.sock, size)
        self.buffer += data
        return bool(data)

    async def read(self, size):
        while len(self.buffer) < size:
            if not await self.receive():
                raise ConnectionAbortedError("the response is incomplete")
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def read_until(self, end):
        while (position := self.buffer.find(end)) < 0:
            if not await self.receive():
                raise ConnectionAbortedError("the response is incomplete")
        return await self.read(position + len(end))

    async def read_rest(self):
        while await self.receive():
            pass
        return await self.read(len(self.buffer))

    async def read_head(self):
        head = (await self.read_until(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")[:-2]
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers
            headers[name.lower()] = value
        return int(first.split()[1]), headers

    async def read_chunks(self):
        chunks = []
        while size := int(await self.read_until(b"\r\n"), 16):
            chunks.append(await self.read(size))
            assert await self.read(2) == b"\r\n"
        assert await self.read(2) == b"\r\n"
        return b"".join(chunks)

    async def read_response(self, *, head=False):
        """Raise ConnectionError if the response is truncated."""
        status, headers = await self.read_head()
        if head:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self.read_chunks()
        elif "content-length" in headers:
            body = await self.read(int(headers["content-length"]))
        else:
            body = await self.read_rest()
        return HttpResponse(status, headers, body)

    async def end(self):
        """Wait until the server ends the connection; return "closed" or "reset"."""
        try:
            await self.read_rest()
        except ConnectionResetError:
            return "reset"
        return "closed"

    def is_open(self):
        """Only valid if all received data has been read."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
