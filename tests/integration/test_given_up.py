"""Requests that JetStream gave up: the job fails, a copy is kept, and the queue is empty, come what may."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

import scheduler.dead_letters
import scheduler.endings
from infra.connections.clients import Role
from infra.connections.dead import ORIGINAL_ID, ORIGINAL_SUBJECT
from infra.connections.pulling import Delivery, PullConsumer, Settler
from infra.connections.replies import ReplyInbox
from infra.connections.results import Results
from infra.connections.streams import Streams, consumer_config
from scheduler.dead_letters import Advisories, ParkedSweep
from scheduler.endings import Endings
from schemas.envelope import Failure, Result, decode_reply, encode_reply
from schemas.errors import ErrorCode, Unavailable
from schemas.headers import ATTEMPTS, REASON, RequestHeaders, write_headers
from schemas.jobs import ItemState
from schemas.subjects import ADVISORY_CONSUMER, Lane, consumer_name, infer_subject
from tests.integration.broker_stand import MODEL, Declared, Link, connected, declared
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration

JOB = "job-0123456789abcdef"
TENANT = "acme"
DELIVERIES = 2
TOLD = "the request was delivered 2 times and never ended"


@dataclass(frozen=True, slots=True)
class Stand:
    """The broker, the scheduler's ways to end requests, and links of who else is there."""

    broker: Declared
    gateway: Link
    worker: Link
    results: Results
    endings: Endings

    @property
    def advisories(self) -> Advisories:
        """A scheduler that follows advisories."""
        link = self.broker.link
        return Advisories(link.connection, link.requests, self.broker.streams, self.endings)

    @property
    def sweep(self) -> ParkedSweep:
        """A scheduler that sweeps when it is told to."""
        known = frozenset({MODEL})
        return ParkedSweep(self.broker.streams, self.endings, known=lambda: known, period_s=60)

    async def submit(self, *, lane: Lane = Lane.BATCH, body: bytes = b"body", **keys: Any) -> None:
        """Publish a request, by default the one item of JOB."""
        headers = write_headers(RequestHeaders(**({"id": "r1", "tenant": TENANT, "job": JOB} | keys)))
        ack = await self.gateway.publish_request(body, lane=lane, headers=headers)
        assert ack.err_code == 0, ack

    async def stored(self) -> tuple[int, int]:
        """Count the requests and the dead letters that are stored."""
        infer, live, dead = [await self.broker.count(name) for name in ("INFER", "INFER_LIVE", "DEAD")]
        return infer + live, dead

    async def all_told(self) -> bool:
        """Say whether every advisory was dealt with."""
        info = await self.broker.link.requests.api(f"CONSUMER.INFO.ADVISORIES.{ADVISORY_CONSUMER}")
        return bool(info["num_pending"] == info["num_ack_pending"] == 0 < info["delivered"]["stream_seq"])

    async def failure(self, item: int = 0) -> Failure | None:
        """Return why an item of JOB failed, None as long as it has no record."""
        record = await self.results.read(TENANT, JOB, item)
        if record is None:
            return None
        assert (record.state, record.attempts) == (ItemState.FAILED, DELIVERIES)
        reply = decode_reply(record.body)
        assert isinstance(reply, Failure)
        return reply


@pytest_asyncio.fixture
async def stand(nats_server: NatsServer) -> AsyncIterator[Stand]:
    async with (
        declared(nats_server, MODEL) as broker,
        connected(nats_server, Role.GATEWAY) as gateway,
        connected(nats_server, Role.WORKER) as worker,
    ):
        for lane in Lane:
            await give_up_soon(broker, lane)
        link = broker.link
        results = Results(link.connection, link.requests, timeout_s=5)
        endings = Endings(link.connection, link.requests, broker.streams, results)
        yield Stand(broker, gateway, worker, results, endings)


async def give_up_soon(broker: Declared, lane: Lane) -> None:
    """Let the consumer of a lane give up after DELIVERIES, each of which a silent worker keeps for 0.3 s."""
    config = consumer_config(MODEL, lane, broker.streams._settings)
    await declare_consumer(broker, lane, config | {"max_deliver": DELIVERIES, "ack_wait": 300_000_000})


async def declare_consumer(broker: Declared, lane: Lane, config: dict[str, Any]) -> None:
    """Create or update the consumer of a lane."""
    await broker.link.requests.api(
        f"CONSUMER.CREATE.{lane.stream}.{config['durable_name']}.{infer_subject(MODEL, lane)}",
        {"stream_name": lane.stream, "config": config},
    )


@asynccontextmanager
async def running(endless: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(endless)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def pulling(
    stand: Stand, *, lane: Lane = Lane.BATCH, give_back: bool = True
) -> AsyncIterator[list[Delivery]]:
    """Be a worker who gives every delivery back at once, or dies with it. Yields what it was handed."""
    settler = Settler(stand.worker.connection, stand.worker.requests)
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    handed: list[Delivery] = []
    name = consumer_name(MODEL, lane)
    consumer = PullConsumer(
        stand.worker.connection, lane.stream, name, room=lambda: 100, on_delivery=arrived.put_nowait
    )

    async def fail_at_all() -> None:
        while True:
            delivery = await arrived.get()
            handed.append(delivery)
            if give_back:
                await settler.nak(delivery, 0)
            consumer.top_up()

    async with running(consumer.run()), running(fail_at_all()):
        yield handed


async def until_given_up(stand: Stand, lane: Lane = Lane.BATCH, *, stored: int = 1) -> None:
    """Return when nothing is in hand or waiting, although so many requests are stored."""

    async def given_up() -> bool:
        backlog = await stand.broker.streams.backlog(MODEL, lane)
        return backlog.waiting == backlog.in_hand == 0 and (await stand.stored())[0] == stored

    await until(given_up, "the consumer to give up")


@pytest.mark.parametrize("give_back", [True, False], ids=["given back", "worker died"])
@pytest.mark.parametrize("lane", [Lane.BATCH, Lane.LIVE])
async def test_a_request_that_no_worker_ends_fails_as_poison_and_is_kept_for_people(
    stand: Stand, lane: Lane, give_back: bool
) -> None:
    inbox = ReplyInbox(stand.gateway.connection)
    await inbox.open()
    with inbox.expect() as reply:
        await stand.submit(lane=lane, reply_to=reply.subject)
        async with running(stand.advisories.run()), pulling(stand, lane=lane, give_back=give_back) as handed:
            told = decode_reply(await asyncio.wait_for(reply.body, 15))
            await until(stand.all_told, "the advisory to be settled")
    assert len(handed) == DELIVERIES
    assert isinstance(told, Failure)
    assert (told.code, told.message, told.id) == (ErrorCode.POISON, TOLD, "r1")
    assert await stand.failure() == told
    assert await stand.stored() == (0, 1)
    (letter,) = await stand.broker.dead_letters()
    assert letter[ORIGINAL_SUBJECT] == infer_subject(MODEL, lane)
    assert (letter[REASON], letter[ATTEMPTS]) == (f"poison: {TOLD}", str(DELIVERIES))


async def test_the_others_are_untouched(stand: Stand) -> None:
    await stand.submit(id="r1")
    async with pulling(stand):
        await until_given_up(stand)
    await stand.submit(id="r2", item=1)
    async with running(stand.advisories.run()):
        await until(stand.all_told, "the advisory to be settled")
    assert await stand.stored() == (1, 1)
    assert await stand.failure(item=1) is None


async def test_what_was_given_up_while_no_scheduler_ran_ends_when_one_does(stand: Stand) -> None:
    for item in range(20):
        await stand.submit(id=f"r{item}", item=item, body=b"%d" % item)
    async with pulling(stand):
        await until_given_up(stand, stored=20)
    async with running(stand.advisories.run()):
        await until(stand.all_told, "the advisories to be settled")
    assert await stand.stored() == (0, 20)


async def test_an_advisory_that_was_never_stored_is_made_up_for_by_the_sweep(stand: Stand) -> None:
    for lane, item in ((Lane.BATCH, 0), (Lane.LIVE, 1)):
        await stand.submit(id=f"r{item}", lane=lane, item=item)
        async with pulling(stand, lane=lane):
            await until_given_up(stand, lane, stored=item + 1)
    await stand.submit(id="waits", item=2, lane=Lane.BATCH)
    await stand.broker.link.requests.api("STREAM.PURGE.ADVISORIES")
    sweep = stand.sweep
    assert [await sweep.sweep() for _ in range(3)] == [0, 2, 0]
    assert await stand.stored() == (1, 2)
    for item in range(2):
        failure = await stand.failure(item)
        assert failure is not None
        assert (failure.code, failure.message) == (ErrorCode.POISON, TOLD)
    assert await stand.failure(item=2) is None
    await sweep.sweep()
    assert REGISTRY.get_sample_value("model_serving_deadletter_depth") == 2


async def test_the_sweep_touches_nothing_as_long_as_anything_is_in_hand(stand: Stand) -> None:
    await stand.submit(id="given up")
    async with pulling(stand):
        await until_given_up(stand)
    patient = consumer_config(MODEL, Lane.BATCH, stand.broker.streams._settings)
    await declare_consumer(stand.broker, Lane.BATCH, patient)
    await stand.submit(id="in hand", item=1)
    async with pulling(stand, give_back=False) as handed:
        await until(lambda: len(handed) == 1, "a delivery")
        sweep = stand.sweep
        assert [await sweep.sweep() for _ in range(3)] == [0, 0, 0]
        assert await stand.stored() == (2, 0)
        settler = Settler(stand.worker.connection, stand.worker.requests)
        await settler.ack_stored(handed[0])
        assert await sweep.sweep() == 1
    assert [letter[ORIGINAL_ID] for letter in await stand.broker.dead_letters()] == ["given up"]


@pytest.mark.parametrize("step", ["send_reply", "bury", "remove", "ack"])
async def test_a_crash_before_any_step_is_made_good_by_the_next_try(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner: Any = {"remove": Streams, "ack": Settler}.get(step, scheduler.endings)
    works, crashes = getattr(owner, step), [Unavailable("crashed")]

    async def crash_once(*arguments: Any, **options: Any) -> Any:
        if crashes:
            raise crashes.pop()
        return await works(*arguments, **options)

    monkeypatch.setattr(scheduler.dead_letters, "RETRY_S", 0.01)
    monkeypatch.setattr(owner, step, crash_once)
    await stand.submit(reply_to="_INBOX_gateway.gone.reply")
    async with pulling(stand):
        await until_given_up(stand)
    async with running(stand.advisories.run()):
        await until(lambda: not crashes, "the crash")
        await until(stand.all_told, "the advisory to be settled")
    assert await stand.stored() == (0, 1)
    failure = await stand.failure()
    assert failure is not None
    assert failure.code is ErrorCode.POISON


async def test_an_answer_that_is_stored_already_stands_and_leaves_no_dead_letter(stand: Stand) -> None:
    await stand.submit()
    async with pulling(stand):
        await until_given_up(stand)
    body = encode_reply(Result(id="r1", model=MODEL, version=1, outputs=()))
    assert await stand.results.write(TENANT, JOB, 0, state=ItemState.SUCCEEDED, body=body, attempts=1)
    async with running(stand.advisories.run()):
        await until(stand.all_told, "the advisory to be settled")
    assert await stand.stored() == (0, 0)
    record = await stand.results.read(TENANT, JOB, 0)
    assert record is not None
    assert record.state is ItemState.SUCCEEDED


async def test_an_old_advisory_does_not_end_what_took_its_place_in_memory(stand: Stand) -> None:
    await stand.submit(lane=Lane.LIVE)
    async with pulling(stand, lane=Lane.LIVE):
        await until_given_up(stand, Lane.LIVE)
    await stand.broker.link.requests.api("STREAM.DELETE.INFER_LIVE")
    await stand.broker.streams.declare()
    await stand.broker.streams.declare_consumers(MODEL)
    await stand.submit(id="r2", lane=Lane.LIVE)  # as the first one did, it gets sequence 1
    async with running(stand.advisories.run()):
        await until(stand.all_told, "the advisory to be settled")
    assert await stand.stored() == (1, 0)


async def test_a_malformed_request_is_buried_too_and_answered_where_that_can_be(stand: Stand) -> None:
    inbox = ReplyInbox(stand.gateway.connection)
    await inbox.open()
    with inbox.expect() as reply:
        headers = {"Ms-Reply-To": reply.subject, "Ms-Tenant": "NOT A TENANT"}
        await stand.gateway.publish_request(headers=headers)
        async with running(stand.advisories.run()), pulling(stand):
            told = decode_reply(await asyncio.wait_for(reply.body, 15))
            await until(stand.all_told, "the advisory to be settled")
    assert isinstance(told, Failure)
    assert told.code is ErrorCode.POISON
    assert await stand.stored() == (0, 1)


async def test_what_is_terminated_is_only_noted(stand: Stand) -> None:
    await stand.submit()
    settler = Settler(stand.worker.connection, stand.worker.requests)
    async with pulling(stand, give_back=False) as handed:
        await until(lambda: len(handed) == 1, "a delivery")
        await settler.term(handed[0], "for no reason")
        async with running(stand.advisories.run()):
            await until(stand.all_told, "the advisory to be settled")
    assert await stand.stored() == (0, 0)
