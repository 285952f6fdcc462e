"""Pulling from a real broker: attempts, credit, settling, and coming back after what can happen to it."""

import asyncio

import pytest
from nats.aio.msg import Msg

from infra.connections import pulling
from infra.connections.clients import Role
from infra.connections.pulling import Delivery, parse_delivery
from infra.connections.sturdy import UNREADABLE
from tests.integration.broker_stand import MODEL, Declared, Link, connected, declared, raw_connection
from tests.integration.pulling_stand import CONSUMER, STREAM, SUBJECT, Puller, pulling_from, settled
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_a_delivery_says_what_it_is(nats_server: NatsServer, broker: Declared, publisher: Link) -> None:
    for n in range(3):
        await publisher.publish_request(b"body%d" % n, headers={"Ms-Job": f"job-{n}"})
    stored = await broker.streams.oldest(STREAM, SUBJECT.decode())
    async with pulling_from(nats_server) as puller:
        first, *_ = await puller.got(3)
        assert (first.subject, first.body, first.headers) == (SUBJECT.decode(), b"body0", {"Ms-Job": "job-0"})
        assert (first.stream, first.stream_seq, first.attempt) == ("INFER", 1, 1)
        assert [one.pending for one in puller.all] == [2, 1, 0]
        assert stored is not None
        assert abs(first.stored_at_ns - stored.stored_at_ns) < 1_000_000


def test_an_ack_subject_is_read_with_and_without_domain_and_account() -> None:
    short = "$JS.ACK.INFER.m~2Ev1-batch.3.17.9.1700000000000000001.42"
    long = "$JS.ACK.hub.ACCHASH.INFER.m~2Ev1-batch.3.17.9.1700000000000000001.42"
    for reply in (short, long, f"{long}.random"):
        delivery = parse_delivery(Msg(_client=None, subject="s", reply=reply, data=b"", headers=None))  # type: ignore[arg-type]
        assert (delivery.stream, delivery.stream_seq, delivery.attempt) == ("INFER", 17, 3)
        assert (delivery.stored_at_ns, delivery.pending) == (1700000000000000001, 42)
        assert delivery.headers == {}


async def test_what_is_asked_for_and_in_hand_never_exceeds_the_room(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    for n in range(300):
        await publisher.publish_request(b"%d" % n)
    async with pulling_from(nats_server, hold=10) as puller:
        await puller.got(10)
        assert (await broker.consumer())["num_ack_pending"] == 10  # and no more, though 290 wait
        acks: asyncio.Queue[Delivery] = asyncio.Queue()
        puller.on_delivery = acks.put_nowait
        for delivery in list(puller.held.values()):
            await puller.ack(delivery)
        while len(puller.all) < 300 or puller.held:
            await puller.ack(await acks.get())
        assert puller.most_promised <= 10
        assert sorted(int(one.body) for one in puller.all) == list(range(300))
        assert await settled(broker)


async def test_pulls_that_end_empty_give_their_credit_back(
    nats_server: NatsServer, broker: Declared, publisher: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "EXPIRES_S", 0.3)
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    async with pulling_from(nats_server, hold=6) as puller:
        await publisher.publish_request()
        await puller.got(1)
        asked = puller.consumer._last_asked
        await until(lambda: puller.consumer._last_asked > asked + 0.5, "pulls to expire and be renewed")
        assert puller.consumer._credit <= 5
        await puller.ack_held()
        for _ in range(6):
            await publisher.publish_request()
        await puller.got(7)
        assert puller.most_promised <= 6


async def test_a_refused_pull_is_tried_again_slowly_and_not_in_a_loop(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    config = (await broker.consumer())["config"] | {"max_batch": 4}
    body = {"stream_name": STREAM, "config": config}
    await broker.link.requests.api(f"CONSUMER.CREATE.{STREAM}.{CONSUMER}.{SUBJECT.decode()}", body)
    async with connected(nats_server, Role.WORKER) as link:
        puller = Puller(link, hold=8)
        refusals = 0
        refused = puller.consumer._status

        def count(status: str, headers: dict[str, str]) -> None:
            nonlocal refusals
            refusals += 1
            refused(status, headers)

        puller.consumer._status = count  # type: ignore[method-assign]
        running = asyncio.create_task(puller.consumer.run())
        await until(lambda: refusals >= 3, "some refusals")
        assert not puller.consumer.available
        await publisher.publish_request()
        before = refusals
        puller.hold = 4
        await puller.got(1)
        assert refusals <= before + 1  # the wait between two grew to a quarter of a second and more
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_nak_brings_the_delivery_back_after_its_delay(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    await publisher.publish_request()
    async with pulling_from(nats_server) as puller:
        (first,) = await puller.got(1)
        loop = asyncio.get_running_loop()
        naked_at = loop.time()
        await puller.settler.nak(first, 0.4)
        _, again = await puller.got(2)
        assert loop.time() - naked_at >= 0.35
        assert (again.attempt, again.stream_seq, again.body) == (2, first.stream_seq, first.body)
        await puller.ack(again)
        assert await settled(broker)


async def test_a_terminated_delivery_never_comes_back(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    await publisher.publish_request()
    async with pulling_from(nats_server) as puller:
        (first,) = await puller.got(1)
        await puller.settler.term(first, "no use")
        await until(lambda: settled(broker), "the term to count")
        assert await broker.count(STREAM) == 0
        assert await broker.count("ADVISORIES") == 1


async def test_a_delivery_in_progress_is_not_delivered_again(
    nats_server: NatsServer, publisher: Link
) -> None:
    async with declared(nats_server, MODEL, ack_wait_s=1):
        await publisher.publish_request(b"kept")
        await publisher.publish_request(b"let go")
        async with pulling_from(nats_server) as puller:
            kept, _ = await puller.got(2)

            async def extended_until_the_other_came_back() -> bool:
                await puller.settler.in_progress(kept)
                return len(puller.all) >= 4

            await until(extended_until_the_other_came_back, "the other to come back twice", timeout_s=10)
            assert [one.body for one in puller.all[2:]] == [b"let go", b"let go"]
            assert [one.attempt for one in puller.all[2:]] == [2, 3]


async def test_stopping_in_a_burst_keeps_what_came_and_leaves_the_rest_to_others_at_once(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    """The default lease is 30 s: what were sent to nobody's inbox, or lost in ours, would come too late."""
    for _ in range(4):
        for n in range(100):
            await publisher.publish_request(b"%d" % n)
        async with connected(nats_server, Role.WORKER) as link:
            stopping, other = Puller(link, hold=1000), Puller(link, hold=1000)
            running = asyncio.create_task(stopping.consumer.run())
            await stopping.got(10)
            await stopping.consumer.stop()
            await running
            got = len(stopping.all)
            running = asyncio.create_task(other.consumer.run())
            await other.got(100 - got)
            assert len(stopping.all) == got
            assert sorted(int(one.body) for one in stopping.all + other.all) == list(range(100))
            await stopping.ack_held()
            await other.ack_held()
            await other.consumer.stop()
            await running
        assert await settled(broker)


async def test_nothing_is_listened_for_after_stopping(nats_server: NatsServer, broker: Declared) -> None:
    async with connected(nats_server, Role.WORKER) as link:
        before = set(link.connection.client._subs)
        puller = Puller(link, hold=4)
        running = asyncio.create_task(puller.consumer.run())
        await until(lambda: puller.consumer.has_credit, "the first pull")
        await puller.consumer.stop()
        await puller.consumer.stop()
        await running
        assert set(link.connection.client._subs) == before


async def test_hostile_headers_are_delivered_like_any_others(
    nats_server: NatsServer, broker: Declared
) -> None:
    async with pulling_from(nats_server) as puller:
        with raw_connection(nats_server) as raw:
            raw.publish(SUBJECT, b"1", b"X")
            raw.publish(SUBJECT, b"2", b"NATS/1.0 503 \xff\r\n\r\n")
            raw.publish(SUBJECT, b"3", b"NATS/1.0 409 Consumer Deleted\r\nNats-Pending-Messages: 999\r\n\r\n")
            raw.publish(SUBJECT, b"4")
        deliveries = await puller.got(4)
        assert [one.body for one in deliveries] == [b"1", b"2", b"3", b"4"]
        assert deliveries[0].headers == {UNREADABLE: "1"}
        await puller.ack_held()
        assert await settled(broker)
