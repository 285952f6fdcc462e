"""What a job is, what may become of it, and how its state follows from what is stored.

A job is one or many requests ("items") whose results are kept. Its record says what was submitted; the
terminal records of its items, each written once, say what became of it. Nothing else is stored, so
any gateway answers for any job.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import msgpack
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter

from schemas.errors import ErrorCode
from schemas.subjects import Lane


class ItemState(StrEnum):
    """How an item ended. Each of these is final."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobState(StrEnum):
    """Where a job is. All but the first four are final."""

    RECEIVING = "receiving"  # its lines are still being uploaded
    QUEUED = "queued"  # accepted; no item has ended
    RUNNING = "running"  # some items have ended
    CANCELLING = "cancelling"  # cancelled, with items that have not ended yet
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # every item has ended, at least one failed
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Say whether the job can still change."""
        return self not in (JobState.RECEIVING, JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What was submitted. Times are unix seconds on the clock of the gateway that took the job."""

    job: StrictStr
    model: StrictStr
    lane: Annotated[Lane, Field(strict=False)]
    created_at: StrictFloat
    items: StrictInt  # how many there are; how many were published so far while `receiving`
    version: StrictInt | None = None
    deadline_ms: StrictInt | None = None
    receiving: StrictBool = False
    metadata: dict[StrictStr, StrictStr] = field(default_factory=dict)
    webhook: StrictStr | None = None  # the URL to tell of its end
    fingerprint: StrictStr | None = None  # of the request that made it, if that carried an idempotency key
    v: StrictInt = 1


class AttemptEvent(StrEnum):
    """What happened in an attempt at a request."""

    STARTED = "started"  # a worker is about to prepare and run it
    RELEASED = "released"  # a worker gave it back, for the reason that stands beside it


@dataclass(frozen=True, slots=True)
class Attempt:
    """One event in the attempts at a request. `at` is unix seconds on the worker's clock, for people."""

    attempt: StrictInt  # which delivery it was, from 1
    worker: StrictStr
    event: Annotated[AttemptEvent, Field(strict=False)]
    reason: StrictStr
    at: StrictFloat
    v: StrictInt = 1


_ATTEMPT: TypeAdapter[Attempt] = TypeAdapter(Attempt)
_RECORD: TypeAdapter[JobRecord] = TypeAdapter(JobRecord)
_LATER = ("webhook", "fingerprint")


def encode_job(record: JobRecord) -> bytes:
    """Encode a job's record as msgpack. What came after the first version is left out where unset."""
    raw = _RECORD.dump_python(record, mode="json")
    for later in _LATER:
        if raw[later] is None:
            del raw[later]
    packed: bytes = msgpack.packb(raw, use_bin_type=True)
    return packed


def decode_job(body: bytes) -> JobRecord:
    """Decode a job's record. Raises ValueError if it is none, which only a fault of ours can cause."""
    return _RECORD.validate_python(msgpack.unpackb(body, raw=False))


def encode_attempt(attempt: Attempt) -> bytes:
    """Encode an attempt's event as msgpack."""
    packed: bytes = msgpack.packb(_ATTEMPT.dump_python(attempt, mode="json"), use_bin_type=True)
    return packed


def decode_attempt(body: bytes) -> Attempt:
    """Decode an attempt's event. Raises ValueError if it is none, which only a fault of ours can cause."""
    return _ATTEMPT.validate_python(msgpack.unpackb(body, raw=False))


def job_state(record: JobRecord, counts: Mapping[ItemState, int], *, cancelled: bool) -> JobState:
    """Derive a job's state from its record and from how many of its items ended how."""
    ended = sum(counts.values())
    if record.receiving and not cancelled:
        return JobState.RECEIVING
    if ended < record.items:
        if cancelled:
            return JobState.CANCELLING
        return JobState.RUNNING if ended else JobState.QUEUED
    if counts.get(ItemState.CANCELLED) or (cancelled and not ended):
        return JobState.CANCELLED
    for state, name in ((ItemState.FAILED, JobState.FAILED), (ItemState.EXPIRED, JobState.EXPIRED)):
        if counts.get(state):
            return name
    return JobState.SUCCEEDED


def item_state_of(code: ErrorCode) -> ItemState:
    """Name the terminal state that an error of this code puts an item in."""
    special = {
        ErrorCode.CANCELLED: ItemState.CANCELLED,
        ErrorCode.DEADLINE_EXCEEDED: ItemState.EXPIRED,
    }
    return special.get(code, ItemState.FAILED)
