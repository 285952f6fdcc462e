"""A load generator light enough to share a core with what it loads: HTTP/1.1 keep-alive over bare streams.

Closed loop: each connection sends its next request when its last answer is whole. It goes to loopback
only, for a bounded time, and counts every answer that is not the expected status.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: one request, over and over."""

    host: str
    port: int
    path: str
    body: bytes
    headers: dict[str, str]
    expect_status: int = 200

    def encode(self) -> bytes:
        """Lay the request out as it goes over the wire."""
        head = [f"POST {self.path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        head.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(head) + "\r\n\r\n").encode() + self.body


@dataclass(slots=True)
class Measured:
    """What came of a load. Latencies in seconds; `unexpected` counts answers of another status."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    unexpected: int = 0

    @property
    def per_s(self) -> float:
        """Expected answers a second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def quantile_ms(self, q: float) -> float:
        """Return a quantile of the latency in milliseconds."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


class _Connection(asyncio.Protocol):
    """One connection of the closed loop."""

    def __init__(self, request: bytes, expect: bytes, measured: Measured, until_s: float) -> None:
        self._request, self._expect = request, expect
        self._measured, self._until_s = measured, until_s
        self._buffer = bytearray()
        self._need = -1
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._need < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._need = end + 4 + _content_length(bytes(self._buffer[:end]))
        if len(self._buffer) >= self._need:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._measured.unexpected += 1
            self.done.set_result(None)

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def _answered(self) -> None:
        now_s = time.perf_counter()
        if self._buffer.startswith(self._expect):
            self._measured.latencies_s.append(now_s - self._sent_s)
        else:
            self._measured.unexpected += 1
        self._buffer.clear()
        self._need = -1
        if now_s < self._until_s:
            self._send()
            return
        self.done.set_result(None)
        self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ValueError("the answer has no Content-Length")


async def run_load(load: Load, *, connections: int, seconds: float) -> Measured:
    """Send `load` over `connections` for `seconds`. Raises ValueError on a host that is not loopback."""
    if load.host not in LOOPBACK:
        raise ValueError("load goes to loopback only")
    measured = Measured()
    request, expect = load.encode(), f"HTTP/1.1 {load.expect_status}".encode()
    loop = asyncio.get_running_loop()
    started_s = time.perf_counter()
    until_s = started_s + seconds
    made = [
        (
            await loop.create_connection(
                lambda: _Connection(request, expect, measured, until_s), load.host, load.port
            )
        )
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(protocol.done for _, protocol in made))
    measured.seconds = time.perf_counter() - started_s
    return measured
