"""Deadlines of jobs, kept by the scheduler alone: there is no worker in any of these tests."""

import time
from collections.abc import AsyncIterator

import msgpack
import pytest
import pytest_asyncio

from infra.connections.outcomes import read_state
from schemas.errors import ErrorCode
from schemas.jobs import ItemState, JobRecord, JobState
from tests.integration.broker_stand import declared
from tests.integration.duties_stand import TENANT, Gateway, duties, gateway
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration

JOB, LATER = "job-0123456789abcdef", "job-fedcba9876543210"


@pytest_asyncio.fixture
async def theirs(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    """What a gateway stores, in streams that are empty."""
    async with declared(nats_server), gateway(nats_server) as connected:
        yield connected


async def state_of(theirs: Gateway, record: JobRecord) -> JobState:
    state, _ = await read_state(theirs.jobs, theirs.results, TENANT, record)
    return state


async def test_a_job_without_a_worker_ends_as_expired(nats_server: NatsServer, theirs: Gateway) -> None:
    record = await theirs.submit(JOB, items=300, deadline_ms=10_000)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due(ahead_s=14)
        assert await state_of(theirs, record) is JobState.QUEUED  # the grace is not over
        await scheduler.end_due(ahead_s=16)
    assert await theirs.results.counts(TENANT, JOB) == {ItemState.EXPIRED: 300}
    assert await state_of(theirs, record) is JobState.EXPIRED
    ended = await theirs.results.read(TENANT, JOB, 7)
    assert ended is not None
    assert ended.attempts == 0
    reply = msgpack.unpackb(ended.body)
    assert (reply["kind"], reply["code"]) == ("failure", ErrorCode.DEADLINE_EXCEEDED)
    assert reply["id"] == f"{JOB}.7"


async def test_the_loop_ends_it_by_itself(nats_server: NatsServer, theirs: Gateway) -> None:
    record = await theirs.submit(JOB, deadline_ms=1)
    async with duties(nats_server) as scheduler, scheduler.running():
        scheduler.clock.ahead_s = 10

        async def expired() -> bool:
            return await state_of(theirs, record) is JobState.EXPIRED

        await until(expired, "the job to expire")


async def test_a_result_that_came_first_stands(nats_server: NatsServer, theirs: Gateway) -> None:
    await theirs.submit(JOB, items=3, deadline_ms=10_000)
    await theirs.end(JOB, 1)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due(ahead_s=20)
    assert await theirs.results.counts(TENANT, JOB) == {ItemState.SUCCEEDED: 1, ItemState.EXPIRED: 2}
    ended = await theirs.results.read(TENANT, JOB, 1)
    assert ended is not None
    assert ended.body == b"theirs"
    assert not await theirs.end(JOB, 0)  # a result that comes now comes too late


async def test_a_job_that_ended_in_time_is_left_alone(nats_server: NatsServer, theirs: Gateway) -> None:
    await theirs.submit(JOB, items=2, deadline_ms=10_000)
    await theirs.end(JOB, 0)
    await theirs.end(JOB, 1, ItemState.FAILED)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due(ahead_s=20)
        assert len(scheduler.of.open_jobs) == 0
    assert await theirs.results.counts(TENANT, JOB) == {ItemState.SUCCEEDED: 1, ItemState.FAILED: 1}


@pytest.mark.parametrize("skew_s", [-3600, 3600])
async def test_a_wall_clock_that_is_an_hour_wrong_expires_nothing_valid(
    nats_server: NatsServer, theirs: Gateway, monkeypatch: pytest.MonkeyPatch, skew_s: int
) -> None:
    right, right_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: right() + skew_s)
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + skew_s * 10**9)
    valid = await theirs.submit(JOB, created_at=time.time(), deadline_ms=60_000)
    over = await theirs.submit(LATER, created_at=time.time(), deadline_ms=1)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due()
        assert await state_of(theirs, over) is JobState.QUEUED  # in its grace
        await scheduler.end_due(ahead_s=30)
        assert await state_of(theirs, over) is JobState.EXPIRED
        assert await state_of(theirs, valid) is JobState.QUEUED
        assert await theirs.end(JOB)


async def test_what_came_before_a_restart_and_after_it_is_found(
    nats_server: NatsServer, theirs: Gateway
) -> None:
    before = await theirs.submit(JOB, deadline_ms=10_000)
    async with duties(nats_server) as first:
        await first.end_due()
    async with duties(nats_server) as second:
        await second.end_due()
        after = await theirs.submit(LATER, deadline_ms=10_000)
        await second.end_due(ahead_s=20)
        assert await state_of(theirs, before) is JobState.EXPIRED
        assert await state_of(theirs, after) is JobState.EXPIRED
        assert len(second.of.open_jobs) == 0


async def test_jobs_beyond_what_may_be_kept_wait_their_turn(nats_server: NatsServer, theirs: Gateway) -> None:
    records = [await theirs.submit(f"{JOB}-{n}", deadline_ms=10_000) for n in range(3)]
    async with duties(nats_server, max_open_jobs=1) as scheduler:
        for done in range(3):
            assert await state_of(theirs, records[done]) is JobState.QUEUED
            await scheduler.end_due(ahead_s=20)
            assert await state_of(theirs, records[done]) is JobState.EXPIRED


async def test_the_rest_of_a_cancelled_job_is_cancelled(nats_server: NatsServer, theirs: Gateway) -> None:
    record = await theirs.submit(JOB, items=2, deadline_ms=10_000)
    await theirs.end(JOB, 0)
    await theirs.jobs.cancel(TENANT, JOB)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due(ahead_s=20)
    assert await state_of(theirs, record) is JobState.CANCELLED


@pytest.mark.parametrize(("deadline_ms", "quiet_s"), [(None, 3600), (10_000, 70)])
async def test_an_upload_whose_gateway_is_gone_is_cancelled(
    nats_server: NatsServer, theirs: Gateway, deadline_ms: int | None, quiet_s: int
) -> None:
    record = await theirs.submit(JOB, items=5, receiving=True, deadline_ms=deadline_ms)
    await theirs.end(JOB, 0)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due(ahead_s=quiet_s - 5)
        assert await state_of(theirs, record) is JobState.RECEIVING
        record = await theirs.submit(JOB, items=6, receiving=True, deadline_ms=deadline_ms)
        await scheduler.end_due(ahead_s=quiet_s - 5)
        assert await state_of(theirs, record) is JobState.RECEIVING  # because it goes on
        await scheduler.end_due(ahead_s=quiet_s + 5)
        assert await state_of(theirs, record) is JobState.CANCELLED
    counts = await theirs.results.counts(TENANT, JOB)
    assert counts == {ItemState.SUCCEEDED: 1, ItemState.CANCELLED: 5}


async def test_streams_that_were_made_anew_are_read_from_their_beginning(
    nats_server: NatsServer, theirs: Gateway
) -> None:
    for n in range(3):
        await theirs.submit(f"{JOB}-{n}", deadline_ms=10_000)
    async with duties(nats_server) as scheduler:
        await scheduler.end_due()
        assert len(scheduler.of.open_jobs) == 3
        async with declared(nats_server):
            record = await theirs.submit(JOB, deadline_ms=10_000)
            await scheduler.end_due(ahead_s=20)
            assert await state_of(theirs, record) is JobState.EXPIRED
