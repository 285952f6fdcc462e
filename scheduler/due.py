"""Decides when a job needs us. Pure: times are unix nanoseconds on the broker's clock, `NEVER` among them.

what there is                    when          what is done then
a deadline, every item stored    deadline + g  items that have not ended become expired
an upload that says nothing      see `end_ns`  the job is cancelled, because its gateway died
a webhook, the job not ended     now and then  look whether it has ended
a webhook, its event stored      as stored     try to deliver
"""

from dataclasses import dataclass

from schemas.jobs import JobRecord
from schemas.webhooks import Outcome, WebhookRecord

NEVER = 1 << 63
UPLOAD_SLACK_S = 60.0  # longer than a full queue may stall an upload
LOOK_LEAST_S = 0.5
LOOK_MOST_S = 30.0
RETRY_FACTOR = 4.0
JITTER = 0.2

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what may still come by itself, seconds."""

    expiry_grace_s: float
    abandoned_s: float  # how long an upload may say nothing


def needs_us(record: JobRecord) -> bool:
    """Say whether anything is ever to be done for a job, beside its items."""
    return record.deadline_ms is not None or record.webhook is not None or record.receiving


def end_ns(record: JobRecord, stored_at_ns: int, patience: Patience) -> int:
    """Return when the items of a job are to be ended.

    A live upload replaces its record every few seconds, and its deadline counts from the last line. So one
    that says nothing for an hour, or for its deadline and a minute more, has lost its gateway.
    """
    deadline_s = None if record.deadline_ms is None else record.deadline_ms / 1000
    if record.receiving:
        quiet_s = patience.abandoned_s
        if deadline_s is not None:
            quiet_s = min(quiet_s, deadline_s + UPLOAD_SLACK_S)
        return stored_at_ns + int(quiet_s * _NS)
    if deadline_s is None:
        return NEVER
    return stored_at_ns + int((deadline_s + patience.expiry_grace_s) * _NS)


def look_ns(record: JobRecord, stored_at_ns: int, *, now_ns: int | None = None) -> int:
    """Return when to look whether a job with a webhook has ended, `now_ns` being the last time.

    A job that took long so far is looked at less often, so its webhook is late by a tenth at most.
    """
    if record.webhook is None:
        return NEVER
    if now_ns is None:
        return stored_at_ns
    age_s = (now_ns - stored_at_ns) / _NS
    return now_ns + int(min(LOOK_MOST_S, max(LOOK_LEAST_S, age_s / 10)) * _NS)


def delivery_ns(webhook: WebhookRecord, stored_at_ns: int) -> int:
    """Return when to try to deliver an event."""
    if webhook.outcome is not Outcome.PENDING:
        return NEVER
    return stored_at_ns + int(webhook.retry_after_s * _NS)


def after_try(
    webhook: WebhookRecord, status: int | None, *, tries: int, retry_s: float, chance: float
) -> WebhookRecord:
    """Say what becomes of an event after a try that was answered by `status`, or by nothing.

    `retry_s` is the wait after the first try; each later one is four times as long. `chance`, from 0 to 1,
    moves the wait by up to a fifth, so that what failed together does not come back together.
    """
    attempts, retry_after_s = webhook.attempts + 1, 0.0
    if status is not None and 200 <= status < 300:
        outcome = Outcome.DELIVERED
    elif status == 410:
        outcome = Outcome.GONE
    elif attempts >= tries:
        outcome = Outcome.GIVEN_UP
    else:
        outcome = Outcome.PENDING
        retry_after_s = retry_s * RETRY_FACTOR ** (attempts - 1) * (1 + JITTER * (2 * chance - 1))
    return WebhookRecord(webhook.event, webhook.body, attempts, outcome, retry_after_s)


def choose_fairly(wanted: list[str], in_hand: dict[str, int], *, at_once: int, per_tenant: int) -> list[int]:
    """Choose which of the deliveries, given by their tenants, to start, oldest first.

    `in_hand` counts those under way by tenant. No tenant gets more than its share, so one whose receiver
    hangs holds up nobody else.
    """
    room, held = at_once - sum(in_hand.values()), dict(in_hand)
    chosen: list[int] = []
    for place, tenant in enumerate(wanted):
        if len(chosen) >= room:
            break
        if held.get(tenant, 0) < per_tenant:
            held[tenant] = held.get(tenant, 0) + 1
            chosen.append(place)
    return chosen
