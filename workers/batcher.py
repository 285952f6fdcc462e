"""Decides which waiting requests run together, and when. Pure: no I/O, and the clock is an argument.

A batch holds requests of one shape, up to a number of items and of bytes. The lanes share it by weight
(stride scheduling: each lane has a pass, which grows by items over weight; the lowest goes next), so none
starves. Room that the leading lanes leave is filled from the others.
"""

import bisect
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from schemas.subjects import Lane

T = TypeVar("T")

LANE_WEIGHTS = {Lane.LIVE: 16.0, Lane.INTERACTIVE: 4.0, Lane.BATCH: 1.0}


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a batch may hold, and how long its first request may wait for company."""

    max_items: int
    timeout_s: float
    max_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)  # two requests may look alike; each is itself
class Waiting(Generic[T]):
    """A request that could run. Times are monotonic seconds."""

    request: T
    lane: Lane
    shape: Hashable
    items: int
    size_bytes: int
    arrived_s: float
    deadline_s: float | None = None
    priority: int = 0  # higher goes first within its lane
    alone: bool = False  # it was delivered before, and may be what ended the worker that had it


class Batcher(Generic[T]):
    """The requests that wait for one model."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._lanes: dict[Lane, list[Waiting[T]]] = {lane: [] for lane in Lane}
        self._passes: dict[Lane, float] = dict.fromkeys(Lane, 0.0)

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._lanes.values())

    def add(self, entry: Waiting[T]) -> None:
        """Let a request wait.

        A lane that was empty does not get back the turns it had no use for. Where nothing waits, no lane
        has a claim on another, so all start level.
        """
        lane = self._lanes[entry.lane]
        if not lane:
            others = [self._passes[other] for other, waiting in self._lanes.items() if waiting]
            if others:
                self._passes[entry.lane] = max(self._passes[entry.lane], min(others))
            else:
                self._passes = dict.fromkeys(Lane, 0.0)
        bisect.insort_right(lane, entry, key=lambda waiting: -waiting.priority)

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        """Remove and return those whose deadline has passed."""
        expired = []
        for lane, waiting in self._lanes.items():
            late = [entry for entry in waiting if entry.deadline_s is not None and entry.deadline_s <= now_s]
            if late:
                expired += late
                gone = set(late)
                self._lanes[lane] = [entry for entry in waiting if entry not in gone]
        return expired

    def ready_at(self, now_s: float, *, more_coming: bool, run_s: float = 0.0) -> float | None:
        """Return when the next batch should start; None while nothing waits.

        It starts at once if it is full or nothing more is known to come. Otherwise its oldest request
        waits up to the timeout for company, but never so long that a member could miss its deadline in
        a run of `run_s`.
        """
        batch = self._compose()
        if not batch:
            return None
        full = batch[0].alone or sum(entry.items for entry in batch) >= self._limits.max_items
        if full or not more_coming:
            return now_s
        start_s = min(entry.arrived_s for entry in batch) + self._limits.timeout_s
        latest = [entry.deadline_s - run_s for entry in batch if entry.deadline_s is not None]
        return min([start_s, *latest])

    def take(self) -> list[Waiting[T]]:
        """Remove and return the next batch, at least one request; empty only if nothing waits."""
        batch = self._compose()
        taken = set(batch)
        for lane in {entry.lane for entry in batch}:
            self._lanes[lane] = [entry for entry in self._lanes[lane] if entry not in taken]
        for entry in batch:
            self._passes[entry.lane] += entry.items / LANE_WEIGHTS[entry.lane]
        self._limit_leads()
        return batch

    def _limit_leads(self) -> None:
        """Let no lane be ahead by more than a batch, for it must not pay for room that no other wanted."""
        behind = min((self._passes[lane] for lane, waiting in self._lanes.items() if waiting), default=None)
        if behind is None:
            return
        for lane, weight in LANE_WEIGHTS.items():
            self._passes[lane] = min(self._passes[lane], behind + self._limits.max_items / weight)

    def _compose(self) -> list[Waiting[T]]:
        """Choose the next batch without removing it."""
        passes = dict(self._passes)
        left = {lane: list(waiting) for lane, waiting in self._lanes.items() if waiting}
        if not left:
            return []
        first = left[min(left, key=passes.__getitem__)].pop(0)
        passes[first.lane] += first.items / LANE_WEIGHTS[first.lane]
        batch = [first]
        if first.alone:
            return batch
        items, size_bytes = first.items, first.size_bytes
        candidates = {
            lane: [entry for entry in waiting if entry.shape == first.shape and not entry.alone]
            for lane, waiting in left.items()
        }
        while candidates := {lane: waiting for lane, waiting in candidates.items() if waiting}:
            lane = min(candidates, key=passes.__getitem__)
            entry = candidates[lane].pop(0)
            if items + entry.items > self._limits.max_items:
                continue
            if size_bytes + entry.size_bytes > self._limits.max_bytes:
                continue
            batch.append(entry)
            items, size_bytes = items + entry.items, size_bytes + entry.size_bytes
            passes[lane] += entry.items / LANE_WEIGHTS[lane]
        return batch
