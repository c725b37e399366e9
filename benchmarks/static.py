"""Serves a static body with skyfast's HTTP library, to measure the cost of sending alone.

python -m benchmarks.static PORT SIZE
"""

import asyncio
import sys
from typing import cast

import uvloop
from aiohttp import web

from skyfast.web.connections import WRITE_BUFFER_BYTES
from skyfast.web.exposition import CHUNK_BYTES


class _Connection(web.RequestHandler):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES)


async def main(port: int, size: int) -> None:
    chunks = [bytes([65 + index % 26]) * CHUNK_BYTES for index in range(size // CHUNK_BYTES)]
    chunks.append(b"." * (size % CHUNK_BYTES))

    def connection() -> _Connection:
        return _Connection(manager, loop=loop, access_log=None)  # type: ignore[arg-type]

    async def respond(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
        return response

    loop = asyncio.get_running_loop()
    manager = web.Server(respond)
    await loop.create_server(connection, "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2])))
