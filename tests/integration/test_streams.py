"""The streams on a real broker: declared as they should be, with the limits that our promises rest on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from infra.connections.clients import Role
from infra.connections.requests import ApiError, PubAck, Requests
from infra.connections.results import SUBJECT_FULL
from infra.connections.settings import StreamSettings
from infra.connections.streams import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, Streams, stream_configs
from schemas.errors import Unavailable
from schemas.subjects import Lane
from tests.integration.broker_stand import MODEL, Declared, Link, connected, declared
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration

FULL = 10077  # what publishers are told, and `docs/MESSAGES.md` says


@pytest_asyncio.fixture
async def publisher(nats_server: NatsServer) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.PUBLISHER) as publisher:
        yield publisher


@pytest_asyncio.fixture
async def worker(nats_server: NatsServer) -> AsyncIterator[Link]:
    async with connected(nats_server, Role.WORKER) as worker:
        yield worker


async def configs(broker: Declared) -> dict[str, Any]:
    names = [config["name"] for config in stream_configs(StreamSettings())]
    return {name: (await broker.info(name))["config"] for name in names}


async def test_declaring_again_changes_nothing(nats_server: NatsServer, publisher: Link) -> None:
    async with declared(nats_server, MODEL) as broker:
        await publisher.publish_request()
        before = await configs(broker), await broker.consumer()
        for _ in range(2):
            await broker.streams.declare()
            await broker.streams.declare_consumers(MODEL)
        after = await configs(broker), await broker.consumer()
        assert after[0] == before[0]
        for state in (before[1], after[1]):
            state.pop("ts")
        assert after[1] == before[1]
        assert await broker.count("INFER") == 1


async def test_the_server_has_the_streams_as_we_describe_them(nats_server: NatsServer) -> None:
    async with declared(nats_server) as broker:
        real = await configs(broker)
    for wanted in stream_configs(StreamSettings()):
        assert real[wanted["name"]].items() >= wanted.items()
    assert {name for name, config in real.items() if config["storage"] == "memory"} == {"INFER_LIVE"}
    # A limit must refuse new work, and never drop what was accepted.
    assert {real[name]["discard"] for name in ("INFER", "INFER_LIVE", "RESULTS")} == {"new"}


async def test_a_changed_setting_reaches_streams_that_are_there(nats_server: NatsServer) -> None:
    async with declared(nats_server, max_requests=5) as broker:
        await Streams(broker.link.requests, StreamSettings(max_requests=7)).declare()
        assert (await broker.info("INFER"))["config"]["max_msgs_per_subject"] == 7


@pytest.mark.parametrize("lane", Lane)
async def test_a_full_queue_refuses_and_other_queues_do_not(
    nats_server: NatsServer, publisher: Link, lane: Lane
) -> None:
    async with declared(nats_server, MODEL, max_requests=2) as broker:
        acks = [await publisher.publish_request(lane=lane) for _ in range(3)]
        assert [ack.err_code for ack in acks] == [0, 0, FULL]
        assert acks[-1].description == SUBJECT_FULL
        for other in Lane:
            ack = await publisher.publish_request(lane=other, model="m" if other is lane else MODEL)
            assert not ack.err_code
        assert (await broker.streams.backlog(MODEL, lane)).waiting == 2


async def test_a_full_stream_refuses(nats_server: NatsServer, publisher: Link) -> None:
    async with declared(nats_server, max_bytes=1 << 20) as broker:
        ack = PubAck()
        stored = -1
        while not ack.err_code:
            ack = await publisher.publish_request(bytes(300_000))
            stored += 1
        assert (ack.err_code, ack.description) == (FULL, "maximum bytes exceeded")
        assert stored == await broker.count("INFER") == 3


async def test_the_same_id_within_the_window_is_stored_once(nats_server: NatsServer, publisher: Link) -> None:
    async with declared(nats_server, duplicate_window_s=0.5) as broker:
        headers = {"Nats-Msg-Id": "same"}
        first = await publisher.publish_request(headers=headers)
        again = await publisher.publish_request(b"other", headers=headers)
        assert (first.duplicate, again.duplicate, again.seq) == (False, True, first.seq)

        async def is_new() -> bool:
            return not (await publisher.publish_request(headers=headers)).duplicate

        await until(is_new, "the window to pass")
        assert await broker.count("INFER") == 2


async def test_the_broker_forgets_what_nobody_waits_for_any_more(
    nats_server: NatsServer, publisher: Link
) -> None:
    async with declared(nats_server, MODEL) as broker:
        for lane in Lane:
            await publisher.publish_request(lane=lane, headers={"Nats-TTL": "1s"})
            await publisher.publish_request(lane=lane)

        async def forgotten() -> bool:
            return await broker.count("INFER") == 2 and await broker.count("INFER_LIVE") == 1

        await until(forgotten, "the messages with a TTL to be gone")


async def test_settled_work_is_gone(nats_server: NatsServer, publisher: Link, worker: Link) -> None:
    async with declared(nats_server, MODEL) as broker:
        await publisher.publish_request()
        pull = await worker.connection.client.subscribe(f"{worker.connection.inbox_prefix}.x")
        subject = "$JS.API.CONSUMER.MSG.NEXT.INFER.m~2Ev1-batch"
        await worker.connection.client.publish(subject, b'{"batch":1}', reply=pull.subject)
        delivery = await pull.next_msg(10)
        assert (await broker.streams.backlog(MODEL, Lane.BATCH)).in_hand == 1
        await worker.requests.ask(delivery.reply, b"+ACK")
        assert await broker.count("INFER") == 0


async def write_result(worker: Link, body: bytes) -> PubAck:
    return await worker.requests.publish("result.acme.job-0123456789abcdef.0", body)


async def test_the_first_result_stands_across_a_killed_server(own_server: NatsServer) -> None:
    async with declared(own_server), connected(own_server, Role.WORKER) as worker:
        assert not (await write_result(worker, b"first")).err_code
        assert (await write_result(worker, b"second")).description == SUBJECT_FULL
        back = asyncio.Event()
        worker.connection.on_reconnect(back.set)
        await asyncio.to_thread(own_server.restart, kill=True)
        async with asyncio.timeout(10):
            await back.wait()
        third: list[PubAck] = []

        async def answered() -> bool:
            try:
                third.append(await write_result(worker, b"third"))
            except Unavailable:  # its streams are being recovered
                return False
            return True

        await until(answered, "the stream to be back")
        assert third[0].description == SUBJECT_FULL
        stored = await worker.requests.ask("$JS.API.DIRECT.GET.RESULTS.result.acme.job-0123456789abcdef.0")
        assert stored.data == b"first"


async def test_live_work_is_lost_with_the_server_and_declared_again(own_server: NatsServer) -> None:
    async with connected(own_server, Role.SCHEDULER) as scheduler:
        streams = Streams(scheduler.requests, StreamSettings())
        broker = Declared(streams, scheduler)
        await streams.declare()
        await streams.declare_consumers(MODEL)
        async with connected(own_server, Role.PUBLISHER) as publisher:
            for lane in Lane:
                await publisher.publish_request(lane=lane)
        back = asyncio.Event()
        scheduler.connection.on_reconnect(back.set)
        await asyncio.to_thread(own_server.restart)
        async with asyncio.timeout(10):
            await back.wait()
        with pytest.raises(ApiError) as gone:
            await broker.info("INFER_LIVE")
        assert gone.value.err_code == STREAM_NOT_FOUND
        await streams.declare()
        with pytest.raises(ApiError) as missing:
            await streams.backlog(MODEL, Lane.LIVE)
        assert missing.value.err_code == CONSUMER_NOT_FOUND
        await streams.declare_consumers(MODEL)
        waiting = {lane: (await streams.backlog(MODEL, lane)).waiting for lane in Lane}
        assert waiting == {Lane.LIVE: 0, Lane.INTERACTIVE: 1, Lane.BATCH: 1}


async def test_models_are_listed_by_their_consumers(nats_server: NatsServer) -> None:
    async with declared(nats_server, MODEL, "org/other", "a-b") as broker:
        stranger = {"durable_name": "NOT_OURS", "ack_policy": "explicit", "filter_subject": "infer.zz.batch"}
        body = {"stream_name": "INFER", "config": stranger}
        await broker.link.requests.api("CONSUMER.CREATE.INFER.NOT_OURS.infer.zz.batch", body)
        assert await broker.streams.declared_models() == {MODEL, "org/other", "a-b"}
    async with declared(nats_server) as broker:
        assert await broker.streams.declared_models() == set()


async def test_the_oldest_message_is_read_and_removed_by_its_number(
    nats_server: NatsServer, publisher: Link
) -> None:
    async with declared(nats_server) as broker:
        for body in (b"a", b"b"):
            await publisher.publish_request(body, headers={"Ms-Job": "j", "X": " spaced "})
        streams, subject = broker.streams, "infer.m~2Ev1.batch"
        first = await streams.oldest("INFER", subject)
        assert first is not None
        assert (first.message.body, first.message.seq, first.message.subject) == (b"a", 1, subject)
        assert first.message.headers == {"Ms-Job": "j", "X": "spaced"}
        await streams.remove("INFER", 1)
        await streams.remove("INFER", 1)
        await streams.remove("INFER", 99)
        second = await streams.oldest("INFER", subject)
        assert second is not None
        assert second.message.body == b"b"
        assert await streams.oldest("INFER", subject, from_seq=3) is None
        assert await streams.oldest("INFER", "infer.other.batch") is None


async def test_subjects_are_counted_over_all_pages(nats_server: NatsServer, publisher: Link) -> None:
    async with declared(nats_server) as broker:
        for n in range(30):
            await publisher.publish_request(model=f"m{n % 10}")

        class SmallPages(Requests):
            """The server's answer, cut to pages of 3 subjects."""

            async def api(self, subject: str, body: Any = None) -> dict[str, Any]:
                info = await broker.link.requests.api(subject, {**body, "offset": 0})
                page = sorted(info["state"]["subjects"].items())[body["offset"] :][:3]
                return info | {"state": {"subjects": dict(page)}}

        small = Streams(SmallPages(broker.link.connection, timeout_s=2), StreamSettings())
        counts = await small.subject_counts("INFER", "infer.>")
        assert counts == await broker.streams.subject_counts("INFER", "infer.>")
        assert counts == {f"infer.m{n}.batch": 3 for n in range(10)}
        assert await broker.streams.subject_counts("INFER_LIVE", "infer.>") == {}
