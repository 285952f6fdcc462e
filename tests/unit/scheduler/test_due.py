"""When a job needs the scheduler, and what follows from a try to tell its webhook."""

from dataclasses import replace

import pytest

from scheduler.due import (
    LOOK_LEAST_S,
    LOOK_MOST_S,
    NEVER,
    Patience,
    after_try,
    choose_fairly,
    delivery_ns,
    end_ns,
    look_ns,
    needs_us,
)
from schemas.jobs import JobRecord
from schemas.subjects import Lane
from schemas.webhooks import Outcome, WebhookRecord

S = 1_000_000_000
STORED = 1_700_000_000 * S
PATIENCE = Patience(expiry_grace_s=5, abandoned_s=3600)
JOB = JobRecord("j" * 16, "m", Lane.BATCH, created_at=0.0, items=3)
EVENT = WebhookRecord("evt_j", b"{}")
URL = "https://hooks.example/"


@pytest.mark.parametrize(
    ("job", "needed"),
    [
        (JOB, False),
        (replace(JOB, deadline_ms=1), True),
        (replace(JOB, webhook=URL), True),
        (replace(JOB, receiving=True), True),
    ],
)
def test_only_jobs_with_a_deadline_a_webhook_or_an_upload_need_us(job: JobRecord, needed: bool) -> None:
    assert needs_us(job) is needed


@pytest.mark.parametrize(
    ("job", "after_s"),
    [
        (JOB, None),
        (replace(JOB, webhook=URL), None),
        (replace(JOB, deadline_ms=1500), 6.5),
        (replace(JOB, receiving=True), 3600),
        (replace(JOB, receiving=True, deadline_ms=30_000), 90),
        (replace(JOB, receiving=True, deadline_ms=86_400_000), 3600),
    ],
)
def test_a_job_is_ended_after_its_deadline_and_a_grace_by_the_brokers_clock(
    job: JobRecord, after_s: float | None
) -> None:
    expected = NEVER if after_s is None else STORED + int(after_s * S)
    assert end_ns(job, STORED, PATIENCE) == expected


def test_the_clock_of_the_gateway_decides_nothing() -> None:
    fast, slow = (replace(JOB, deadline_ms=1000, created_at=at) for at in (2e9, 1.0))
    assert end_ns(fast, STORED, PATIENCE) == end_ns(slow, STORED, PATIENCE)


@pytest.mark.parametrize(
    ("age_s", "wait_s"), [(0, LOOK_LEAST_S), (4, LOOK_LEAST_S), (20, 2), (100, 10), (86_400, LOOK_MOST_S)]
)
def test_a_job_that_takes_long_is_looked_at_less_often(age_s: int, wait_s: float) -> None:
    now_ns = STORED + age_s * S
    job = replace(JOB, webhook=URL)
    assert look_ns(job, STORED, now_ns=now_ns) == now_ns + int(wait_s * S)
    assert look_ns(job, STORED) == STORED
    assert look_ns(JOB, STORED, now_ns=now_ns) == NEVER


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_means_delivered(status: int) -> None:
    after = after_try(EVENT, status, tries=5, retry_s=10, chance=0.5)
    assert (after.outcome, after.attempts) == (Outcome.DELIVERED, 1)
    assert delivery_ns(after, STORED) == NEVER


@pytest.mark.parametrize("status", [None, 100, 302, 400, 404, 429, 500, 503])
def test_anything_else_is_tried_again_with_the_same_event(status: int | None) -> None:
    after = after_try(EVENT, status, tries=5, retry_s=10, chance=0.5)
    assert (after.event, after.body) == (EVENT.event, EVENT.body)
    assert (after.outcome, after.attempts, after.retry_after_s) == (Outcome.PENDING, 1, 10)
    assert delivery_ns(after, STORED) == STORED + 10 * S


def test_410_ends_it_at_once() -> None:
    assert after_try(EVENT, 410, tries=5, retry_s=10, chance=0.5).outcome is Outcome.GONE


def test_tries_are_spread_over_a_quarter_of_an_hour_and_then_given_up() -> None:
    webhook, waited_s = EVENT, []
    while webhook.outcome is Outcome.PENDING:
        webhook = after_try(webhook, 500, tries=5, retry_s=10, chance=0.5)
        waited_s.append(webhook.retry_after_s)
    assert waited_s == [10, 40, 160, 640, 0]
    assert webhook.outcome is Outcome.GIVEN_UP


@pytest.mark.parametrize(("chance", "wait_s"), [(0.0, 8), (0.5, 10), (1.0, 12)])
def test_what_failed_together_does_not_come_back_together(chance: float, wait_s: float) -> None:
    assert after_try(EVENT, None, tries=5, retry_s=10, chance=chance).retry_after_s == pytest.approx(wait_s)


def test_a_tenant_whose_receiver_hangs_holds_up_nobody_else() -> None:
    wanted = ["slow"] * 10 + ["quick"] * 2
    assert choose_fairly(wanted, {"slow": 1}, at_once=8, per_tenant=3) == [0, 1, 10, 11]
    assert choose_fairly(wanted, {"slow": 3, "other": 3}, at_once=8, per_tenant=3) == [10, 11]
    assert choose_fairly(wanted, {"slow": 3, "quick": 3}, at_once=6, per_tenant=3) == []
