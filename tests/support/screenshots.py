"""Takes the screenshots of docs/status.md: skyfast with its demo recording, in Chromium.

python -m tests.support.screenshots [SECONDS]

By default, the program first waits ten minutes, because the charts cover ten minutes. One of the
two configured analyzers does not exist, so the page also shows a problem.
"""

import asyncio
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from skyfast.replay import recording
from skyfast.replay.player import ReplayServer
from tests.support.browser import chromium
from tests.support.paths import ROOT
from tests.support.process import running

SECONDS = 600.0
SCRAPE_INTERVAL_S = 15.0
REFRESHED_S = 6.0
"""After this time, the page has refreshed itself."""

SCREENSHOTS = {
    "status-light.png": {"width": 1280, "height": 940, "dark": False},
    "status-dark.png": {"width": 1280, "height": 940, "dark": True},
    "status-narrow.png": {"width": 400, "height": 800, "dark": True},
}
SHOWN = "/?by=bytes_per_second&n=20"

CONFIG = """\
host_id: skyfast-1
pipeline:
  subscriber: {{urls: ["{url}", "ws://127.0.0.1:9/ws/subscriber/flow"]}}
  store:
    prom_sky_con:
      port: 0
      listen_address: 127.0.0.1
      labels: [initiator_name, initiator_ip, initiator_port, target_name, target_ip, target_port,
               protocol, direction]
      deduplicate: first
"""


async def take_screenshots(seconds: float) -> None:
    player = ReplayServer(recording.demo())
    endpoint, _ = await player.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "skyfast.yml"
            config.write_text(CONFIG.format(url=endpoint))
            async with running(config, quiet=False) as skyfast, chromium() as browser:
                await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
                for _ in range(int(seconds / SCRAPE_INTERVAL_S)):
                    await skyfast.get("/metrics")
                    await skyfast.get("/api/top?by=bytes_per_second")
                    await asyncio.sleep(SCRAPE_INTERVAL_S)
                for name, screen in SCREENSHOTS.items():
                    async with browser.page() as tab:
                        await tab.emulate_screen(**screen)
                        await tab.open(skyfast.url + SHOWN)
                        await asyncio.sleep(REFRESHED_S)
                        image = recompress(await tab.screenshot())
                    (ROOT / "docs" / name).write_bytes(image)
                    print(f"docs/{name}: {len(image) / 1000:.0f} kB")  # noqa: T201
    finally:
        await player.stop()


def recompress(png: bytes) -> bytes:
    """Return the same image with the best compression and without metadata."""
    signature, position = png[:8], 8
    chunks: list[tuple[bytes, bytes]] = []
    data = b""
    while position < len(png):
        (size,) = struct.unpack_from(">I", png, position)
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + size]
        if kind == b"IDAT":
            data += content
        elif kind in (b"IHDR", b"IEND"):
            chunks.append((kind, content))
        position += size + 12
    chunks.insert(1, (b"IDAT", zlib.compress(zlib.decompress(data), 9)))
    return signature + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


if __name__ == "__main__":
    asyncio.run(take_screenshots(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
