"""Whether a server answers now. Each check returns a bool or raises OSError, and takes 2 seconds at most."""

import asyncio
import http.client
from urllib.parse import urlsplit

from scripts.stack.spec import ReadyCheck

_TIMEOUT_S = 2.0


def http_ready(url: str) -> ReadyCheck:
    """Check that GET `url`, plain HTTP, answers 200."""

    async def check() -> bool:
        return await asyncio.to_thread(_answers_200, url)

    return check


def valkey_ready(port: int, password: str) -> ReadyCheck:
    """Check that Valkey on loopback takes our password and is done loading its snapshot."""

    async def check() -> bool:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"AUTH {password}\r\nPING\r\n".encode())
                return [await reader.readline() for _ in range(2)] == [b"+OK\r\n", b"+PONG\r\n"]
            finally:
                writer.close()

    return check


def _answers_200(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except http.client.HTTPException:
        return False
    finally:
        connection.close()
