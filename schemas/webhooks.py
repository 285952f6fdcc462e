"""What a job tells its webhook, how that is signed, and what is kept of telling it.

The form is the one of standardwebhooks.com, so that receivers verify it with a library they have.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import msgpack
from pydantic import Field, StrictBytes, StrictFloat, StrictInt, StrictStr, TypeAdapter

from schemas.jobs import JobState

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
MAX_URL_CHARS = 2048

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)  # as the standard says


class Outcome(StrEnum):
    """Where telling a webhook stands. All but the first are final."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GONE = "gone"  # the receiver answered 410
    GIVEN_UP = "given_up"  # the last try failed


@dataclass(frozen=True, slots=True)
class WebhookRecord:
    """An event of a job, and how far telling it has come. `body` is what every try sends, byte for byte."""

    event: StrictStr
    body: StrictBytes
    attempts: StrictInt = 0
    outcome: Annotated[Outcome, Field(strict=False)] = Outcome.PENDING
    retry_after_s: StrictFloat = 0.0  # counted from when the broker stored this record
    v: StrictInt = 1


_RECORD: TypeAdapter[WebhookRecord] = TypeAdapter(WebhookRecord)


def encode_webhook(record: WebhookRecord) -> bytes:
    """Encode a record as msgpack."""
    raw = _RECORD.dump_python(record) | {"outcome": str(record.outcome)}
    packed: bytes = msgpack.packb(raw, use_bin_type=True)
    return packed


def decode_webhook(body: bytes) -> WebhookRecord:
    """Decode a record. Raises ValueError if it is none, which only a fault of ours can cause."""
    return _RECORD.validate_python(msgpack.unpackb(body, raw=False))


def job_event(job: str, state: JobState, counts: Mapping[str, int], *, created_at: int) -> WebhookRecord:
    """Write the event that a job has ended. A job ends once, so its event is named after it."""
    event = f"evt_{job}"
    body: dict[str, Any] = {
        "id": event,
        "object": "event",
        "type": f"job.{state}",
        "created_at": created_at,
        "data": {"id": job, "state": str(state), "counts": dict(counts)},
    }
    return WebhookRecord(event, json.dumps(body).encode())


def signed_headers(event: str, body: bytes, *, key: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers by which a receiver knows that `body` is ours, and no older than `timestamp`."""
    signed = b".".join((event.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {ID_HEADER: event, TIMESTAMP_HEADER: str(timestamp), SIGNATURE_HEADER: f"v1,{signature}"}


def read_secret(text: str) -> bytes:
    """Return the key in `whsec_<base64>`. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.strip().startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError("a webhook secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


def read_secrets(text: str) -> dict[str, bytes]:
    """Return the key of each tenant in `tenant:whsec_<base64>,...`. Raises ValueError."""
    keys: dict[str, bytes] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tenant, colon, secret = entry.partition(":")
        if not colon or tenant in keys:
            raise ValueError("must be tenant:whsec_<base64>, separated by commas, each tenant once")
        keys[tenant] = read_secret(secret)
    return keys
