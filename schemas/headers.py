"""The headers of a request on NATS. A public contract: `docs/MESSAGES.md` is its description."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import InvalidInput
from schemas.subjects import check_job_id, check_tenant, is_reply_subject

MSG_ID = "Nats-Msg-Id"
TTL = "Nats-TTL"
REPLY_TO = "Ms-Reply-To"
JOB = "Ms-Job"
ITEM = "Ms-Item"
TENANT = "Ms-Tenant"
SIGNATURE = "Ms-Signature"
DEADLINE_MS = "Ms-Deadline-Ms"
PRIORITY = "Ms-Priority"
CONTENT_TYPE = "Content-Type"
TRACEPARENT = "traceparent"
STATE = "Ms-State"
ATTEMPTS = "Ms-Attempts"
WORKER = "Ms-Worker"
REASON = "Ms-Reason"

MSGPACK = "application/msgpack"
JSON = "application/json"

DEFAULT_TENANT = "public"
MAX_DEADLINE_MS = 7 * 24 * 3600 * 1000
MAX_ITEM = 10_000_000
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_DIGITS = re.compile(r"[0-9]{1,12}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """Who asks, how long it may take, and where the answer goes."""

    id: str
    tenant: str = DEFAULT_TENANT
    reply_to: str | None = None
    job: str | None = None
    item: int = 0
    deadline_ms: int | None = None  # a duration, counted from when the broker stored the request
    priority: int = 0
    content_type: str = MSGPACK
    traceparent: str | None = None

    @property
    def deadline_s(self) -> float | None:
        """The deadline as a duration in seconds."""
        return None if self.deadline_ms is None else self.deadline_ms / 1000


def write_headers(headers: RequestHeaders) -> dict[str, str]:
    """Format headers for publishing; defaults are left out.

    A deadline also becomes `Nats-TTL`, rounded up to whole seconds, so that the broker itself forgets
    what nobody waits for any more.
    """
    written = {MSG_ID: headers.id, TENANT: headers.tenant, CONTENT_TYPE: headers.content_type}
    if headers.reply_to is not None:
        written[REPLY_TO] = headers.reply_to
    if headers.job is not None:
        written[JOB] = headers.job
        written[ITEM] = str(headers.item)
    if headers.deadline_ms is not None:
        written[DEADLINE_MS] = str(headers.deadline_ms)
        written[TTL] = f"{max(1, -(-headers.deadline_ms // 1000))}s"
    if headers.priority:
        written[PRIORITY] = str(headers.priority)
    if headers.traceparent is not None:
        written[TRACEPARENT] = headers.traceparent
    return written


def read_headers(raw: Mapping[str, str], *, fallback_id: str) -> RequestHeaders:
    """Parse the headers of a delivery. Raises InvalidInput naming the header that is wrong.

    Read `read_reply_to` first where the answer to a bad header should still be sent.
    """
    content_type = raw.get(CONTENT_TYPE, MSGPACK).partition(";")[0].strip().lower()
    if content_type not in (MSGPACK, JSON):
        raise InvalidInput(f"must be {MSGPACK} or {JSON}", field=CONTENT_TYPE)
    id_ = raw.get(MSG_ID, fallback_id)
    if not _ID.fullmatch(id_):
        raise InvalidInput("must be 1 to 128 printable ASCII characters", field=MSG_ID)
    traceparent = raw.get(TRACEPARENT)
    return RequestHeaders(
        id=id_,
        tenant=check_tenant(raw.get(TENANT, DEFAULT_TENANT), field=TENANT),
        reply_to=read_reply_to(raw),
        job=check_job_id(raw[JOB], field=JOB) if JOB in raw else None,
        item=_integer(raw, ITEM, default=0, most=MAX_ITEM),
        deadline_ms=_integer(raw, DEADLINE_MS, default=0, most=MAX_DEADLINE_MS) or None,
        priority=_integer(raw, PRIORITY, default=0, most=9),
        content_type=content_type,
        # A malformed trace header is dropped: it must not cost the caller an answer.
        traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None,
    )


def read_reply_to(raw: Mapping[str, str]) -> str | None:
    """Return where to reply, or None if the header is missing. Raises InvalidInput on a foreign subject."""
    reply_to = raw.get(REPLY_TO)
    if reply_to is not None and not is_reply_subject(reply_to):
        raise InvalidInput("must be a subject under _INBOX_gateway or _INBOX_publisher", field=REPLY_TO)
    return reply_to


def _integer(raw: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    text = raw.get(name)
    if text is None:
        return default
    if not _DIGITS.fullmatch(text) or int(text) > most:
        raise InvalidInput(f"must be a whole number from 0 to {most}", field=name)
    return int(text)
