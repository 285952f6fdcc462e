"""How fast each lane of a model is served, from how its consumer's count moves between two looks. Pure."""

from dataclasses import dataclass

from infra.connections.streams import Backlog
from schemas.subjects import Lane

SMOOTHING = 0.5


@dataclass(slots=True)
class _Seen:
    at_s: float
    settled: int
    busy: bool
    per_s: float = 0.0


class Rates:
    """Deliveries settled a second, while there was something to deliver."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Lane], _Seen] = {}

    def update(self, key: tuple[str, Lane], backlog: Backlog, now_s: float) -> float:
        """Take in what a look found and return the rate, 0 before it is known."""
        busy = backlog.waiting + backlog.in_hand > 0
        seen = self._seen.get(key)
        if seen is None or backlog.settled < seen.settled:  # the consumer is another one
            self._seen[key] = _Seen(now_s, backlog.settled, busy, 0.0 if seen is None else seen.per_s)
            return self._seen[key].per_s
        if busy and seen.busy and now_s > seen.at_s:  # idle time says nothing of what could be served
            found = (backlog.settled - seen.settled) / (now_s - seen.at_s)
            seen.per_s = found if not seen.per_s else seen.per_s + SMOOTHING * (found - seen.per_s)
        seen.at_s, seen.settled, seen.busy = now_s, backlog.settled, busy
        return seen.per_s
