"""The broker's clock, as seen from here, so that queue time never depends on our own wall clock."""

import time
from datetime import datetime

from infra.connections.requests import Requests
from schemas.subjects import INFER_STREAM


class BrokerClock:
    """Tells how long ago the broker stored a message.

    `sync()` asks the broker what time it is; between calls our monotonic clock goes on from there, so a
    wall clock that is wrong or jumps changes nothing. The error is at most the round trip of that call.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    async def sync(self) -> None:
        """Measure anew. Raises Unavailable, and ApiError while the stream is not declared."""
        asked = time.monotonic_ns()
        info = await self._requests.api(f"STREAM.INFO.{INFER_STREAM}")
        answered = time.monotonic_ns()
        self._offset_ns = unix_ns(info["ts"]) - (asked + answered) // 2

    def now_ns(self) -> int:
        """Return the broker's time, unix nanoseconds."""
        return time.monotonic_ns() + self._offset_ns

    def age_s(self, stored_at_ns: int) -> float:
        """Return how long ago, at least 0, a message was stored."""
        return max(0.0, (self.now_ns() - stored_at_ns) / 1e9)


def unix_ns(timestamp: str) -> int:
    """Read a time as the server writes it, RFC 3339, to unix nanoseconds, exact to the microsecond."""
    return int(datetime.fromisoformat(timestamp).timestamp() * 1e6) * 1000
