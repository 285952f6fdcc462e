"""One HTTP request, from its first byte to its log line: its ids, its tenant, what it was about."""

import re
import secrets
from dataclasses import dataclass
from typing import Any

from schemas.errors import ErrorCode

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Call:
    """Filled in on the way: `tenant` by the front, `model` once it is known to exist, `error` if it fails,
    `replayed` if the answer is that of an earlier request with the same idempotency key.

    An admin has no tenant: `tenant` then names the admin, for logs.

    `request_id` is ours and unguessable; a caller can not choose it, because it becomes the message's id.
    """

    request_id: str
    traceparent: str
    tenant: str = ""
    is_admin: bool = False
    model: str = ""
    error: ErrorCode | None = None
    replayed: bool = False
    refused_for: str = ""  # why there was no room for it

    @property
    def trace_id(self) -> str:
        """The trace this call belongs to."""
        return self.traceparent[3:35]


def new_call(traceparent: str | None) -> Call:
    """Begin a call in the caller's trace, or in a new one if the caller names none that is well-formed."""
    request_id = secrets.token_hex(16)
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        traceparent = f"00-{request_id}-{secrets.token_hex(8)}-01"
    return Call(request_id, traceparent)


def call_of(scope: Any) -> Call:
    """Return the call that the front put into an ASGI scope."""
    call: Call = scope["state"]["call"]
    return call
