"""Questions and replies over a real broker: answers, silence, lost connections, and nothing left behind."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra.connections.clients import Role
from infra.connections.clock import BrokerClock
from infra.connections.replies import ReplyInbox, send_reply
from infra.connections.requests import ApiError, publish
from infra.connections.streams import STREAM_NOT_FOUND
from schemas.errors import TooLarge, Unavailable
from schemas.subjects import is_reply_subject
from tests.integration.broker_stand import MODEL, connected, declared, hung, raw_connection
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def loop_complaints() -> AsyncIterator[list[str]]:
    """What the event loop complained of, such as exceptions that nobody retrieved."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context["message"])))
    yield complaints
    gc.collect()
    assert complaints == []


async def test_each_question_gets_its_own_answer(nats_server: NatsServer) -> None:
    async with declared(nats_server), connected(nats_server, Role.GATEWAY) as gateway:
        acks = await asyncio.gather(*(gateway.publish_request(b"%d" % n) for n in range(200)))
        assert sorted(ack.seq for ack in acks) == list(range(1, 201))
        assert gateway.requests._waiting == {}


async def test_a_refusal_of_the_api_has_its_number(nats_server: NatsServer) -> None:
    async with connected(nats_server, Role.SCHEDULER) as scheduler:
        with pytest.raises(ApiError, match="NONE: 10059 stream not found") as refused:
            await scheduler.requests.api("STREAM.INFO.NONE")
        assert refused.value.err_code == STREAM_NOT_FOUND


async def test_where_nobody_listens_is_unavailable_at_once(nats_server: NatsServer) -> None:
    async with connected(nats_server, Role.GATEWAY, timeout_s=30) as gateway:
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="no stream for this yet"):
                await gateway.publish_request()
            with pytest.raises(Unavailable, match="JetStream is not there"):
                await gateway.requests.api("CONSUMER.MSG.NEXT.JOBS.none")
        assert gateway.requests._waiting == {}


async def test_silence_is_unavailable_when_its_time_is_up(own_server: NatsServer) -> None:
    async with declared(own_server), connected(own_server, Role.GATEWAY, timeout_s=0.2) as gateway:
        with hung(own_server):
            async with asyncio.timeout(5):
                with pytest.raises(Unavailable, match="did not answer in time"):
                    await gateway.publish_request()
        assert gateway.requests._waiting == {}

        async def answered() -> bool:
            try:
                return not (await gateway.publish_request()).err_code
            except Unavailable:
                return False

        await until(answered, "an answer")  # and the late PubAck met nobody


async def test_a_lost_connection_fails_what_waits_at_once(
    own_server: NatsServer, loop_complaints: list[str]
) -> None:
    async with declared(own_server), connected(own_server, Role.GATEWAY, timeout_s=60) as gateway:
        lost, back = asyncio.Event(), asyncio.Event()
        gateway.connection.on_disconnect(lost.set)
        gateway.connection.on_reconnect(back.set)
        with hung(own_server):
            asked = [asyncio.create_task(gateway.publish_request(b"%d" % n)) for n in range(50)]
            await until(lambda: len(gateway.requests._waiting) == 50, "all to be asked")
            own_server.stop(kill=True)
            async with asyncio.timeout(5):
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
            own_server.start()
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert gateway.requests._waiting == {}
        assert lost.is_set()
        async with asyncio.timeout(10):
            await back.wait()
        assert not (await gateway.publish_request()).err_code


async def test_while_disconnected_nothing_waits(own_server: NatsServer) -> None:
    async with connected(own_server, Role.GATEWAY, timeout_s=60) as gateway:
        lost = asyncio.Event()
        gateway.connection.on_disconnect(lost.set)
        await asyncio.to_thread(own_server.stop)
        async with asyncio.timeout(5):
            await lost.wait()
            for attempt in (
                gateway.requests.ask("$JS.API.INFO"),
                gateway.publish_request(),
                publish(gateway.connection, "infer.m.live", b""),
            ):
                with pytest.raises(Unavailable, match="is down"):
                    await attempt
        assert not gateway.connection.connected
        assert gateway.requests._waiting == {}


async def test_who_gives_up_leaves_nothing_behind(own_server: NatsServer, loop_complaints: list[str]) -> None:
    async with declared(own_server), connected(own_server, Role.GATEWAY, timeout_s=60) as gateway:
        with hung(own_server):
            asked = [asyncio.create_task(gateway.publish_request()) for _ in range(20)]
            await until(lambda: len(gateway.requests._waiting) == 20, "all to be asked")
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            assert gateway.requests._waiting == {}
        begun = await gateway.requests.begin("infer.m.batch", b"")
        gateway.requests.forget(begun)
        gateway.requests.forget(begun)
        assert gateway.requests._waiting == {}


async def test_a_begun_question_that_nobody_awaits_complains_of_nothing(
    own_server: NatsServer, loop_complaints: list[str]
) -> None:
    async with declared(own_server), connected(own_server, Role.GATEWAY) as gateway:
        lost = asyncio.Event()
        gateway.connection.on_disconnect(lost.set)
        with hung(own_server):
            begun = await gateway.requests.begin("infer.m.batch", b"")
            own_server.stop(kill=True)
            async with asyncio.timeout(5):
                await lost.wait()
            own_server.start()
        assert isinstance(begun.answer.exception(), Unavailable)
        gateway.requests.forget(begun)


async def test_a_message_over_the_limit_is_refused_and_leaves_nothing_behind(nats_server: NatsServer) -> None:
    async with connected(nats_server, Role.GATEWAY) as gateway:
        with pytest.raises(TooLarge, match="at most 10485"):
            await gateway.publish_request(bytes(gateway.connection.max_payload_bytes + 1))
        with pytest.raises(TooLarge):
            await gateway.publish_request(
                bytes(gateway.connection.max_payload_bytes), headers={"Nats-Msg-Id": "id"}
            )
        assert gateway.requests._waiting == {}
        assert gateway.connection.connected


async def test_an_answer_to_another_token_or_twice_changes_nothing(nats_server: NatsServer) -> None:
    """Answers come over our inbox, which workers may publish to."""
    async with declared(nats_server), connected(nats_server, Role.GATEWAY) as gateway:
        inbox = f"{gateway.connection.inbox_prefix}.ask"
        with raw_connection(nats_server, Role.WORKER) as raw:
            begun = await gateway.requests.begin("$JS.API.STREAM.INFO.INFER")
            for token in ("guessed", begun.token[:-1], ">", begun.token):
                raw.publish(f"{inbox}.{token}".encode(), b"forged")
            raw.publish(f"{inbox}.{begun.token}".encode(), b"again")
        async with asyncio.timeout(5):
            await begun.answer
        await gateway.connection.client.flush()
        gateway.requests.forget(begun)
        assert not (await gateway.publish_request()).err_code


async def test_a_reply_reaches_the_one_who_waits_and_nobody_else(nats_server: NatsServer) -> None:
    async with (
        connected(nats_server, Role.GATEWAY) as gateway,
        connected(nats_server, Role.GATEWAY) as other,
        connected(nats_server, Role.WORKER) as worker,
    ):
        inbox, others = ReplyInbox(gateway.connection), ReplyInbox(other.connection)
        await inbox.open()
        await others.open()
        for link in (gateway, other):
            await link.connection.client.flush()
        with inbox.expect() as one, inbox.expect() as two, others.expect() as foreign:
            assert is_reply_subject(one.subject)
            assert inbox.in_flight == 2
            await send_reply(worker.connection, two.subject, b"for two")
            await send_reply(worker.connection, two.subject, b"again")  # the first counts
            await send_reply(worker.connection, foreign.subject, b"for the other")
            async with asyncio.timeout(5):
                assert await two.body == b"for two"
                assert await foreign.body == b"for the other"
            assert not one.body.done()
        assert inbox.in_flight == 0
        await send_reply(worker.connection, one.subject, b"too late")
        await worker.connection.client.flush()
        await gateway.connection.client.flush()
        assert not one.body.done()


async def test_the_brokers_clock_does_not_follow_ours(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with declared(nats_server, MODEL) as broker, connected(nats_server, Role.WORKER) as worker:
        monkeypatch.setattr("time.time_ns", lambda: 0)  # our clock says 1970
        clock = BrokerClock(worker.requests)
        async with connected(nats_server, Role.PUBLISHER) as publisher:
            await publisher.publish_request()
        stored = await broker.streams.oldest("INFER", "infer.>")
        assert stored is not None
        assert clock.age_s(stored.stored_at_ns) == 0
        await clock.sync()
        assert 0 <= clock.age_s(stored.stored_at_ns) < 10
        assert clock.age_s(stored.stored_at_ns - 3_600 * 10**9) == pytest.approx(3600, abs=10)
        assert clock.age_s(stored.stored_at_ns + 3_600 * 10**9) == 0


async def test_an_api_answer_is_json_with_a_type(nats_server: NatsServer) -> None:
    async with connected(nats_server, Role.SCHEDULER) as scheduler:
        answer: dict[str, Any] = json.loads((await scheduler.requests.ask("$JS.API.INFO")).data)
        assert answer["type"] == (await scheduler.requests.api("INFO"))["type"]
