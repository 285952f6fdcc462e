"""Pulling over deleted consumers, restarts, cuts and servers that hang."""

import asyncio

import pytest

from infra.connections import pulling
from infra.connections.clients import Role
from schemas.errors import Unavailable
from tests.integration.broker_stand import MODEL, Declared, Link, connected, declared, hung
from tests.integration.pulling_stand import Puller, pulling_from, settled
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_a_consumer_that_was_deleted_is_found_again_when_it_is_back(
    nats_server: NatsServer, broker: Declared, publisher: Link
) -> None:
    async with pulling_from(nats_server) as puller:
        await until(lambda: puller.consumer.available, "the consumer to be available")
        await broker.delete_consumer()
        await until(lambda: not puller.consumer.available, "the loss to be noticed")
        await publisher.publish_request()
        await broker.streams.declare_consumers(MODEL)
        await puller.got(1)
        assert puller.consumer.available
        await puller.ack_held()
        assert await settled(broker)


async def test_pulling_begins_when_the_consumer_is_declared(nats_server: NatsServer, publisher: Link) -> None:
    async with declared(nats_server) as broker, pulling_from(nats_server) as puller:
        await until(lambda: not puller.consumer.has_credit, "the first refusal")
        assert not puller.consumer.available
        await publisher.publish_request()
        await broker.streams.declare_consumers(MODEL)
        await puller.got(1)


@pytest.mark.parametrize("kill", [False, True])
async def test_pulling_goes_on_after_the_server_restarted(own_server: NatsServer, kill: bool) -> None:
    async with (
        declared(own_server, MODEL, ack_wait_s=2) as broker,
        connected(own_server, Role.PUBLISHER) as publisher,
        pulling_from(own_server) as puller,
    ):
        await publisher.publish_request(b"before")
        (before,) = await puller.got(1)
        subscriptions = len(puller.link.connection.client._subs)
        back = [asyncio.Event() for _ in range(2)]
        for link, event in zip((publisher, puller.link), back, strict=True):
            link.connection.on_reconnect(event.set)
        await asyncio.to_thread(own_server.restart, kill=kill)
        async with asyncio.timeout(10):
            for event in back:
                await event.wait()
        await publisher.publish_request(b"after")
        await until(lambda: b"after" in [one.body for one in puller.all], "the request from afterwards")
        await puller.ack(before)  # the ack of a delivery from before the restart still counts
        await puller.ack_held()
        assert await settled(broker)
        assert len(puller.link.connection.client._subs) == subscriptions


async def test_an_outage_longer_than_patience_leaves_no_subscription_behind(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    async with (
        declared(own_server, MODEL) as broker,
        connected(own_server, Role.PUBLISHER) as publisher,
        pulling_from(own_server) as puller,
    ):
        client = puller.link.connection.client
        subscriptions = len(client._subs)
        lost, back = asyncio.Event(), asyncio.Event()
        puller.link.connection.on_disconnect(lost.set)
        puller.link.connection.on_reconnect(back.set)
        publisher_back = asyncio.Event()
        publisher.connection.on_reconnect(publisher_back.set)
        inbox = puller.consumer._inbox
        await asyncio.to_thread(own_server.stop)
        await until(lambda: puller.consumer._inbox != inbox, "the silence to be taken for a loss")
        await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(10):
            await back.wait()
            await publisher_back.wait()
        await publisher.publish_request()
        await puller.got(1)
        assert len(client._subs) == subscriptions
        await puller.ack_held()
        assert await settled(broker)


async def test_a_connection_cut_in_the_middle_of_a_burst_loses_no_delivery(
    own_server: NatsServer,
) -> None:
    """The server keeps our pull, and goes on with it as soon as the connection is back."""
    async with (
        declared(own_server, MODEL) as broker,
        connected(own_server, Role.PUBLISHER) as publisher,
        pulling_from(own_server, hold=400) as puller,
    ):
        back = asyncio.Event()
        puller.link.connection.on_reconnect(back.set)
        puller.link.connection.client.abort()
        for _ in range(400):
            await publisher.publish_request()
        async with asyncio.timeout(10):
            await back.wait()
        await until(lambda: len({one.stream_seq for one in puller.all}) == 400, "all of them", timeout_s=10)
        await puller.ack_held()
        assert await settled(broker)


async def test_stopping_while_the_server_hangs_gives_up_after_a_while(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "RETIRE_TIMEOUT_S", 0.3)
    async with declared(own_server, MODEL), connected(own_server, Role.WORKER) as link:
        puller = Puller(link, hold=4)
        running = asyncio.create_task(puller.consumer.run())
        await until(lambda: puller.consumer.has_credit, "the first pull")
        with hung(own_server):
            async with asyncio.timeout(5):
                await puller.consumer.stop()
                await running
        assert not [s for s in link.connection.client._subs.values() if ".pull." in s.subject]


async def test_stopping_while_disconnected_ends_at_once(own_server: NatsServer) -> None:
    async with declared(own_server, MODEL), connected(own_server, Role.WORKER) as link:
        puller = Puller(link, hold=4)
        lost = asyncio.Event()
        link.connection.on_disconnect(lost.set)
        running = asyncio.create_task(puller.consumer.run())
        await until(lambda: puller.consumer.has_credit, "the first pull")
        await asyncio.to_thread(own_server.stop)
        async with asyncio.timeout(5):
            await lost.wait()
            await puller.consumer.stop()
            await running
        assert not [s for s in link.connection.client._subs.values() if ".pull." in s.subject]
        with pytest.raises(Unavailable):
            await link.requests.ask("$JS.API.INFO")
        await asyncio.to_thread(own_server.start)


async def test_heartbeats_keep_a_pull_and_silence_ends_it(
    nats_server: NatsServer, broker: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "HEARTBEAT_S", 0.1)
    async with pulling_from(nats_server) as puller:
        inbox, heard = puller.consumer._inbox, puller.consumer._last_heard
        await until(lambda: puller.consumer._last_heard > heard + 0.4, "some heartbeats")
        assert puller.consumer._inbox == inbox
        assert puller.consumer._subscription is not None
        await puller.consumer._subscription.unsubscribe()  # the server forgets the pull, and says nothing
        await until(lambda: puller.consumer._inbox != inbox, "a new inbox")
