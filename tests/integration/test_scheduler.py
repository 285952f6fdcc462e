"""The scheduler over real servers: it brings the broker to what it should be, and ends what nobody serves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import redis
from nats.aio.msg import Msg

from infra.connections.clients import Role, open_redis
from infra.connections.placement import Placement
from infra.connections.requests import ApiError
from infra.connections.results import Results
from infra.connections.settings import StreamSettings
from infra.connections.streams import Streams, stream_configs
from scheduler.reconciler import Reconciler
from schemas.headers import REASON
from schemas.jobs import ItemState
from schemas.models import ModelCard, Signature
from schemas.placement import WorkerState, WorkerStatus
from schemas.subjects import Lane, consumer_name
from tests.integration.broker_stand import (
    MODEL,
    Declared,
    Link,
    connected,
    declared,
    raw_connection,
    remove_streams,
)
from tests.integration.services import Service, service
from tests.servers import NatsServer, ValkeyServer, streams_of
from tests.waiting import until

pytestmark = pytest.mark.integration

ALL_STREAMS = sorted(config["name"] for config in stream_configs(StreamSettings()))
FAST = {"SCHEDULER_RECONCILE_S": "0.1", "SCHEDULER_SWEEP_S": "0.2", "SCHEDULER_UNKNOWN_MODEL_GRACE_S": "0"}
JOB = "job-0123456789abcdef"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A NATS server that this test may stop and kill."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def redis_client(valkey_server: ValkeyServer) -> Iterator[redis.Redis]:
    """Valkey, empty before and after the test."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushdb()
        yield client
        client.flushdb()


def a_card(name: str) -> ModelCard:
    return ModelCard(
        name=name, version=1, format="onnx", signature=Signature(inputs=(), outputs=()), max_batch_size=8
    )


async def announce(valkey: ValkeyServer, *models: str) -> None:
    async with open_redis(valkey.settings()) as client:
        status = WorkerStatus(worker="w", state=WorkerState.READY, models=models)
        await Placement(client).announce(status, [a_card(model) for model in models])


@asynccontextmanager
async def looking_at(server: NatsServer) -> AsyncIterator[Declared]:
    """Look at a broker whose streams somebody else declares."""
    async with connected(server, Role.SCHEDULER) as link:
        yield Declared(Streams(link.requests, StreamSettings()), link)


def ours(server: NatsServer) -> list[str]:
    """List the streams of a server that are of our design."""
    return [name for name in streams_of(server) if name in ALL_STREAMS]


async def has_consumers(broker: Declared, model: str = MODEL) -> bool:
    names: list[str] = []
    for stream in ("INFER", "INFER_LIVE"):
        try:
            answer = await broker.link.requests.api(f"CONSUMER.NAMES.{stream}")
        except ApiError:  # the stream is not declared yet
            return False
        names += answer["consumers"] or []
    return {consumer_name(model, lane) for lane in Lane} <= set(names)


@asynccontextmanager
async def scheduling(
    server: NatsServer, valkey: ValkeyServer, folder: Path, **settings: str
) -> AsyncIterator[Service]:
    with service("scheduler", folder, server, valkey, **FAST | settings) as scheduler:
        await asyncio.to_thread(scheduler.wait_ready)
        yield scheduler


class Asker:
    """A publisher that listens for replies."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.inbox = f"_INBOX_publisher.{link.connection.instance}.replies"
        self.replies: asyncio.Queue[Msg] = asyncio.Queue()

    async def reply(self) -> dict[str, object]:
        async with asyncio.timeout(15):
            message = await self.replies.get()
        answer: dict[str, object] = msgpack.unpackb(message.data)
        return answer


@asynccontextmanager
async def asking(server: NatsServer) -> AsyncIterator[Asker]:
    async with connected(server, Role.PUBLISHER) as link:
        asker = Asker(link)
        await link.connection.client.subscribe(asker.inbox, cb=asker.replies.put)
        yield asker


async def test_everything_is_declared_from_nothing(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with scheduling(own_server, valkey_server, tmp_path), looking_at(own_server) as broker:
        assert ours(own_server) == ALL_STREAMS
        await announce(valkey_server, MODEL, "org/other")
        for model in (MODEL, "org/other"):
            await until(lambda model=model: has_consumers(broker, model), f"the consumers of {model}")  # type: ignore[misc]


async def test_an_empty_redis_unlearns_nothing(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with (
        scheduling(own_server, valkey_server, tmp_path) as scheduler,
        looking_at(own_server) as broker,
        connected(own_server, Role.PUBLISHER) as publisher,
    ):
        await announce(valkey_server, MODEL)
        await until(lambda: has_consumers(broker), "consumers")
        redis_client.flushdb()
        await publisher.publish_request()
        await publisher.publish_request(model="nobody")
        await until(lambda: scheduler.metric("model_serving_swept_total") == 1, "the other to be swept")
        assert await broker.count("INFER") == 1


async def test_a_scheduler_that_starts_later_adopts_the_models_that_have_consumers(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with declared(own_server, MODEL) as broker, connected(own_server, Role.PUBLISHER) as publisher:
        await publisher.publish_request()
        await publisher.publish_request(model="nobody")
        async with scheduling(own_server, valkey_server, tmp_path) as scheduler:
            await until(lambda: scheduler.metric("model_serving_swept_total") == 1, "the other to be swept")
            assert await broker.count("INFER") == 1


async def test_nothing_is_taken_for_unknown_while_redis_was_never_heard_of(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with (
        scheduling(own_server, valkey_server, tmp_path, REDIS_URL="redis://127.0.0.1:1/0") as scheduler,
        looking_at(own_server) as broker,
        connected(own_server, Role.PUBLISHER) as publisher,
    ):
        await publisher.publish_request(model="not-announced-yet")
        rounds = scheduler.metric("process_cpu_seconds_total")
        await until(
            lambda: scheduler.metric("process_cpu_seconds_total") > rounds + 0.03, "some rounds to be done"
        )
        assert await broker.count("INFER") == 1


async def test_a_request_for_an_unknown_model_is_answered_recorded_and_buried(
    nats_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with declared(nats_server) as broker, asking(nats_server) as asker:
        async with scheduling(nats_server, valkey_server, tmp_path):
            for item, lane in enumerate(Lane):
                id_ = f"id-{lane}"
                headers = {
                    "Nats-Msg-Id": id_,
                    "Ms-Reply-To": asker.inbox,
                    "Ms-Job": JOB,
                    "Ms-Item": str(item),
                }
                await asker.link.publish_request(b"body", model="nobody", lane=lane, headers=headers)
                failure = await asker.reply()
                assert (failure["id"], failure["code"], failure["field"]) == (id_, "unknown_model", "model")
                await until(lambda lane=lane: gone(broker, lane.stream), "the request to be removed")  # type: ignore[misc]
        results = Results(broker.link.connection, broker.link.requests, timeout_s=2)
        records = [record async for record in results.every("public", JOB)]
        assert [(record.item, record.state, record.attempts) for record in records] == [
            (item, ItemState.FAILED, 0) for item in range(3)
        ]
        letters = await broker.dead_letters()
        assert [letter[REASON] for letter in letters] == [
            "unknown_model: no model of this name is served"
        ] * 3


async def gone(broker: Declared, stream: str) -> bool:
    return await broker.count(stream) == 0


HOSTILE_SUBJECTS = (
    b"infer.*.batch",
    b"infer.>.batch",
    b"infer.*.interactive",
    b"infer.\xff.batch",
    b"infer.\xfe.batch",
    b"infer.\xfd\xfc.batch",
    b"infer.a\x0bb.batch",
    b"infer.a*b.batch",
    b"infer.\x00.batch",
    b'infer."q".batch',
    "infer.é.batch".encode(),
    b"infer." + b"a" * 900 + b".batch",
    b"infer.~2E.batch",
)


async def test_hostile_subjects_end_nobodys_requests_but_their_own(
    nats_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """`infer.*.batch`, read as a filter, names the requests of every model."""
    async with declared(nats_server, MODEL) as broker, asking(nats_server) as asker:
        for lane in (Lane.BATCH, Lane.INTERACTIVE):
            await asker.link.publish_request(b"served", lane=lane)
        with raw_connection(nats_server) as raw:
            for subject in HOSTILE_SUBJECTS:
                raw.publish(subject, b"NATS/1.0\r\nMs-Reply-To: $JS.API.STREAM.DELETE.RESULTS\r\n\r\n")
        stored = len(HOSTILE_SUBJECTS) + 2
        await until(lambda: holds(broker, "INFER", stored), "all of them to be stored")
        async with scheduling(nats_server, valkey_server, tmp_path) as scheduler:
            await until(lambda: holds(broker, "INFER", 2), "the hostile ones to be ended")
            swept = scheduler.metric("model_serving_swept_total", reason="unknown_model")
            assert swept == len(HOSTILE_SUBJECTS) == await broker.count("DEAD")
        for lane in (Lane.BATCH, Lane.INTERACTIVE):
            assert (await broker.streams.backlog(MODEL, lane)).waiting == 1


async def holds(broker: Declared, stream: str, count: int) -> bool:
    return await broker.count(stream) == count


async def test_a_request_with_headers_that_can_not_be_read_is_ended_too(
    nats_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with declared(nats_server) as broker, asking(nats_server) as asker:
        with raw_connection(nats_server) as raw:
            raw.publish(b"infer.nobody.batch", b"x", b"NATS/1.0 \xff\xff\xff\r\n\r\n")
            raw.publish(b"infer.nobody.live", bytes(1_048_576 - 60), b"X")
            reply_to = f"NATS/1.0\r\nMs-Deadline-Ms: soon\r\nMs-Reply-To: {asker.inbox}\r\n\r\n"
            raw.publish(b"infer.nobody.batch", b"x", reply_to.encode())
        async with scheduling(nats_server, valkey_server, tmp_path):
            assert (await asker.reply())["code"] == "unknown_model"
            await until(lambda: gone(broker, "INFER"), "INFER to be empty")
            await until(lambda: gone(broker, "INFER_LIVE"), "INFER_LIVE to be empty")
        assert await broker.count("DEAD") == 3


async def test_a_restart_of_the_broker_heals(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis, tmp_path: Path
) -> None:
    async with scheduling(own_server, valkey_server, tmp_path) as scheduler:
        await announce(valkey_server, MODEL)
        async with looking_at(own_server) as broker:
            await until(lambda: has_consumers(broker), "consumers")
        await asyncio.to_thread(own_server.restart, kill=True)
        restarted = time.monotonic()
        async with looking_at(own_server) as broker:
            await until(lambda: "INFER_LIVE" in streams_of(own_server), "INFER_LIVE to be back")
            await until(lambda: has_consumers(broker), "all consumers to be back")
        assert time.monotonic() - restarted < 10
        await asyncio.to_thread(scheduler.wait_ready)


@asynccontextmanager
async def reconciling(server: NatsServer, valkey: ValkeyServer) -> AsyncIterator[tuple[Reconciler, Declared]]:
    """Reconcile in this process, and look at the broker over another connection."""
    async with (
        connected(server, Role.SCHEDULER) as link,
        open_redis(valkey.settings()) as client,
        looking_at(server) as broker,
    ):
        streams = Streams(link.requests, StreamSettings())
        reconciler = Reconciler(link.connection, streams, Placement(client), period_s=0.05)
        running = asyncio.create_task(reconciler.run())
        try:
            yield reconciler, broker
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("lane", Lane)
async def test_a_consumer_that_was_deleted_is_declared_again(
    own_server: NatsServer,
    valkey_server: ValkeyServer,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    lane: Lane,
) -> None:
    monkeypatch.setattr("scheduler.reconciler.MEASURE_S", 0.05)
    async with reconciling(own_server, valkey_server) as (_, broker):
        await announce(valkey_server, MODEL)
        await until(lambda: has_consumers(broker), "consumers")
        redis_client.flushdb()
        await broker.delete_consumer(lane)
        await until(lambda: has_consumers(broker), "the consumer to be back")


async def test_streams_that_were_deleted_are_declared_again(
    own_server: NatsServer,
    valkey_server: ValkeyServer,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scheduler.reconciler.MEASURE_S", 0.05)
    async with reconciling(own_server, valkey_server) as (reconciler, broker):
        await announce(valkey_server, MODEL)
        await until(lambda: has_consumers(broker), "consumers")
        await remove_streams(broker.link)
        await until(lambda: ours(own_server) == ALL_STREAMS, "the streams")
        await until(lambda: has_consumers(broker), "the consumers")
        await until(lambda: reconciler.health().ready, "the scheduler to be content")


async def test_a_model_whose_consumers_are_refused_does_not_keep_others_from_theirs(
    own_server: NatsServer, valkey_server: ValkeyServer, redis_client: redis.Redis
) -> None:
    async with reconciling(own_server, valkey_server) as (reconciler, broker):
        await announce(valkey_server, "x" * 300, MODEL)
        await until(lambda: has_consumers(broker), "the consumers of the other")
        await until(lambda: not reconciler.health().ready, "the refusal to show")
        assert {MODEL, "x" * 300} == reconciler.known
