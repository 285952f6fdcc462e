"""The deliveries a worker has in hand, and until when the broker leaves each of them to it.

A worker that was frozen past its lease must not say that a request failed: somebody else may be at it, or
done. It may still give a result, for the first one stored stands (JetStream itself does not fence acks).
"""

import asyncio
import time
from collections.abc import Collection, Mapping

from infra.connections.pulling import Delivery, Settler
from schemas.subjects import Lane


class Held:
    """Deliveries from their coming to their settling. `ack_wait_s` is the lease by lane."""

    def __init__(self, ack_wait_s: Mapping[Lane, float]) -> None:
        self._ack_wait_s = ack_wait_s
        self._lanes: dict[str, tuple[Lane, Delivery]] = {}
        self._leased_until_s: dict[str, float] = {}
        self._by_lane = dict.fromkeys(Lane, 0)
        self._released: dict[str, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def on(self, lane: Lane) -> int:
        """How many are held of one lane."""
        return self._by_lane[lane]

    def add(self, delivery: Delivery, lane: Lane) -> None:
        """Take a delivery in hand; its lease begins."""
        self._lanes[delivery.ack_subject] = (lane, delivery)
        self._leased_until_s[delivery.ack_subject] = time.monotonic() + self._ack_wait_s[lane]
        self._by_lane[lane] += 1

    def release(self, delivery: Delivery) -> Lane | None:
        """Let go of a settled delivery and return its lane; None if it was let go before."""
        found = self._lanes.pop(delivery.ack_subject, None)
        if found is None:
            return None
        del self._leased_until_s[delivery.ack_subject]
        self._by_lane[found[0]] -= 1
        if waiting := self._released.pop(delivery.ack_subject, None):
            waiting.set()
        return found[0]

    async def until_released(self, delivery: Delivery) -> None:
        """Wait until somebody releases a delivery that is held."""
        if delivery.ack_subject in self._lanes:
            await self._released.setdefault(delivery.ack_subject, asyncio.Event()).wait()

    def twin(self, delivery: Delivery) -> Delivery | None:
        """Return an older delivery of the same message that we still hold, as after a broker's restart."""
        message = (delivery.stream, delivery.stream_seq, delivery.stored_at_ns)
        for _, other in self._lanes.values():
            same = (other.stream, other.stream_seq, other.stored_at_ns) == message
            if same and other.attempt < delivery.attempt:
                return other
        return None

    def is_leased(self, delivery: Delivery) -> bool:
        """Say whether the broker still leaves a delivery to us."""
        return time.monotonic() < self._leased_until_s.get(delivery.ack_subject, 0.0)

    async def extend(self, lanes: Collection[Lane], settler: Settler) -> None:
        """Start the leases on `lanes` anew, but for those that have lapsed. Raises Unavailable."""
        for lane, delivery in list(self._lanes.values()):
            if lane in lanes and self.is_leased(delivery):
                asked_s = time.monotonic()
                await settler.in_progress(delivery)
                if delivery.ack_subject in self._leased_until_s:  # it may have been settled meanwhile
                    self._leased_until_s[delivery.ack_subject] = asked_s + self._ack_wait_s[lane]
