"""Who may come in now. What there is no room for is refused at once, so that what was let in ends in time.

Everything here is counted by one gateway process and decided without waiting; `now_s` is monotonic.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.call import Call
from gateway.catalogue import Catalogue
from gateway.errors import ClientGone
from schemas.errors import DeadlineExceeded, Overloaded, Unavailable
from schemas.models import ModelCard
from schemas.subjects import Lane

FLOOR_IN_FLIGHT = 64  # below it the rate that was measured may be that of too few callers
ROUNDS = 4  # of full batches that a model may have before it, where even the floor is hopeless
WINDOW_S = 0.5
SMOOTHING = 0.5
SILENCE_S = 2.0
UNKNOWN_DRAIN_S = 5.0
MAX_DRAIN_S = 120.0
_NOT_SERVED = (ClientGone, Overloaded, Unavailable, DeadlineExceeded)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What one tenant may ask of this process, and how long a caller may be made to wait."""

    tenant_max_in_flight: int
    tenant_requests_per_s: float  # 0 is no limit
    max_wait_s: float


class ServiceRate:
    """Answers per second of one model, over the time in which anything was asked of it."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._per_s: float | None = None
        self._warm = False
        self._answers = 0
        self._busy_s = 0.0
        self._busy_since_s = 0.0

    def begin(self, now_s: float) -> None:
        """Note a request."""
        if not self.in_flight:
            self._busy_since_s = now_s
        self.in_flight += 1

    def end(self, now_s: float, *, served: bool) -> None:
        """Note the end of a request, and whether a worker answered it."""
        busy_s = self._window_s(now_s)
        self.in_flight -= 1
        if not self.in_flight:
            self._busy_s, self._busy_since_s = busy_s, now_s
        if not served:
            if not self._answers:  # nobody serves yet, which says nothing of how fast it will be
                self._busy_s, self._busy_since_s = 0.0, now_s
            return
        first, self._warm = not self._warm, True
        if first and not self.in_flight:  # it may have waited for the model to load
            self._busy_s = 0.0
            return
        self._answers += 1
        if busy_s >= WINDOW_S:
            found = self._answers / busy_s
            self._per_s = found if self._per_s is None else self._per_s + SMOOTHING * (found - self._per_s)
            self._answers, self._busy_s, self._busy_since_s = 0, 0.0, now_s

    def per_s(self, now_s: float) -> float | None:
        """Return the rate, lower if nothing was answered for a while; None before it is known."""
        busy_s = self._window_s(now_s)
        if self._per_s is None or busy_s < SILENCE_S:
            return self._per_s
        return min(self._per_s, (self._answers + 1) / busy_s)

    def _window_s(self, now_s: float) -> float:
        return self._busy_s + (now_s - self._busy_since_s if self.in_flight else 0.0)


def excess_wait_s(
    rate: ServiceRate, now_s: float, *, timeout_s: float, max_wait_s: float, slots: int
) -> float | None:
    """Return by how much a new caller's wait would be too long, or None if it may come in.

    `slots` is how many requests the workers of the model run at once.
    """
    per_s = rate.per_s(now_s)
    if per_s is None:
        return None
    wait_s = rate.in_flight / per_s
    limit_s = min(timeout_s / 2, max_wait_s)
    floor = FLOOR_IN_FLIGHT if wait_s <= timeout_s else min(FLOOR_IN_FLIGHT, ROUNDS * slots)
    if rate.in_flight < floor or wait_s <= limit_s:
        return None
    return wait_s - limit_s


@dataclass(slots=True)
class Bucket:
    """Tokens, one a request, that fill up at `per_s`; it holds those of one second, at least one."""

    per_s: float
    filled_s: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = max(1.0, self.per_s)

    def take(self, now_s: float) -> float:
        """Take a token and return 0, or return in how many seconds there will be one."""
        self.tokens = min(max(1.0, self.per_s), self.tokens + (now_s - self.filled_s) * self.per_s)
        self.filled_s = now_s
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_s
        self.tokens -= 1
        return 0.0


class Admission:
    """The doors of one gateway process. Each raises Overloaded, and notes on the call what for."""

    def __init__(
        self, limits: AdmissionLimits, catalogue: Catalogue, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._catalogue = catalogue
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}
        self._rates: dict[str, ServiceRate] = {}

    @contextmanager
    def tenant(self, call: Call) -> Iterator[None]:
        """Let a tenant's request in, for as long as the block lasts."""
        asking = self._in_flight.get(call.tenant, 0)
        if asking >= self._limits.tenant_max_in_flight:
            most = self._limits.tenant_max_in_flight
            raise _refusal(call, "tenant_concurrency", f"{most} of your requests are under way", 1.0)
        wait_s = self._bucket(call.tenant).take(self._clock()) if self._limits.tenant_requests_per_s else 0.0
        if wait_s:
            limit = self._limits.tenant_requests_per_s
            raise _refusal(call, "tenant_rate", f"you may ask {limit:g} times a second", wait_s)
        self._in_flight[call.tenant] = asking + 1
        try:
            yield
        finally:
            self._in_flight[call.tenant] -= 1

    @contextmanager
    def live(self, call: Call, card: ModelCard, *, timeout_s: float) -> Iterator[None]:
        """Let in a request whose caller waits, for as long as the block lasts."""
        rate = self._rates.setdefault(card.name, ServiceRate())
        slots = card.max_batch_size * max(1, self._catalogue.workers_of(card.name))
        too_long_s = excess_wait_s(
            rate, self._clock(), timeout_s=timeout_s, max_wait_s=self._limits.max_wait_s, slots=slots
        )
        if too_long_s is not None:
            raise _refusal(call, "expected_wait", "the answer would come too late", too_long_s)
        rate.begin(self._clock())
        served = False
        try:
            yield
            served = True
        except Exception as error:
            served = not isinstance(error, _NOT_SERVED)
            raise
        finally:
            rate.end(self._clock(), served=served)

    @contextmanager
    def queue(self, call: Call, card: ModelCard, lane: Lane) -> Iterator[None]:
        """Say of a queue that is full when there will be room again."""
        try:
            yield
        except Overloaded as error:
            if error.retry_after_s is not None:
                raise
            raise _refusal(call, "queue_full", error.message, self._drain_s(card.name, lane)) from error

    def _bucket(self, tenant: str) -> Bucket:
        if tenant not in self._buckets:
            self._buckets[tenant] = Bucket(self._limits.tenant_requests_per_s, self._clock())
        return self._buckets[tenant]

    def _drain_s(self, model: str, lane: Lane) -> float:
        report = self._catalogue.backlog(model, lane)
        if report is None:
            return UNKNOWN_DRAIN_S
        return report.waiting / report.per_s if report.per_s > 0 else MAX_DRAIN_S


def _refusal(call: Call, reason: str, message: str, retry_after_s: float) -> Overloaded:
    call.refused_for = reason
    return Overloaded(message, retry_after_s=min(MAX_DRAIN_S, max(1.0, math.ceil(retry_after_s))))
