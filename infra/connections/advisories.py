"""What JetStream says of requests that it will not deliver again, as the ADVISORIES stream keeps it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StrictInt, StrictStr, TypeAdapter, ValidationError

_PREFIX = ["$JS", "EVENT", "ADVISORY", "CONSUMER"]


class AdvisoryKind(StrEnum):
    """Why a request is delivered no more."""

    MAX_DELIVERIES = "MAX_DELIVERIES"  # it stays in its stream, and no consumer counts it any more
    MSG_TERMINATED = "MSG_TERMINATED"  # it is gone already


@dataclass(frozen=True, slots=True)
class Advisory:
    """One request that was given up. `consumer` is the durable consumer that delivered it."""

    stream: StrictStr
    consumer: StrictStr
    stream_seq: Annotated[StrictInt, Field(ge=1)]
    deliveries: Annotated[StrictInt, Field(ge=1)]


_ADVISORY: TypeAdapter[Advisory] = TypeAdapter(Advisory)


def kind_of(subject: str) -> AdvisoryKind | None:
    """Read from its subject what an advisory tells; None if it is none of ours."""
    tokens = subject.split(".")
    if len(tokens) != 7 or tokens[:4] != _PREFIX or tokens[4] not in list(AdvisoryKind):
        return None
    return AdvisoryKind(tokens[4])


def read_advisory(body: bytes) -> Advisory | None:
    """Read the body of an advisory, or None if it is unreadable, which only another server could cause."""
    try:
        return _ADVISORY.validate_json(body)
    except ValidationError:
        return None
