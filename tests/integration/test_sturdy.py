"""A connection outlives what publishers write into headers, what servers complain of, and hung servers."""

import asyncio
from contextlib import AsyncExitStack

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection, Role, open_nats
from infra.connections.requests import publish
from infra.connections.sturdy import UNREADABLE
from schemas.errors import TooLarge
from tests.integration.broker_stand import connected, hung, raw_connection
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration

INBOX = "_INBOX_publisher.test"
HOSTILE_HEADERS = {
    "not the version line": b"X",
    "the version line cut": b"NATS/1.",
    "the version line alone": b"NATS/1.0",
    "a status that is no text": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "a status described in no text": b"NATS/1.0 503 \xff\r\n\r\n",
    "a name that is no text": b"NATS/1.0\r\n\xff: y\r\n\r\n",
    "a value that is no text": b"NATS/1.0\r\nA: \xff\r\n\r\n",
    "no end": b"NATS/1.0\r\nA: b",
    "no colon": b"NATS/1.0\r\nA\r\n\r\n",
    "zeros": bytes(60),
}


class Listener:
    """Hears what is published to INBOX, and knows when the connection was lost."""

    def __init__(self, connection: NatsConnection) -> None:
        self.client: Client = connection.client
        self.heard: asyncio.Queue[Msg] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.back = asyncio.Event()
        connection.on_disconnect(self.lost.set)
        connection.on_reconnect(self.back.set)

    async def open(self) -> None:
        await self.client.subscribe(INBOX, cb=self.heard.put)
        await self.client.flush()

    async def next(self) -> Msg:
        async with asyncio.timeout(10):
            return await self.heard.get()


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
async def test_any_header_block_is_received_and_the_next_message_too(
    nats_server: NatsServer, name: str
) -> None:
    async with open_nats(nats_server.settings("publisher"), Role.PUBLISHER) as connection:
        listener = Listener(connection)
        await listener.open()
        with raw_connection(nats_server, Role.WORKER) as raw:
            raw.publish(INBOX.encode(), b"hostile", HOSTILE_HEADERS[name])
            raw.publish(INBOX.encode(), b"good", b"NATS/1.0\r\nA: b\r\n\r\n")
        hostile, good = await listener.next(), await listener.next()
    assert hostile.data == b"hostile"
    assert set(hostile.headers or {}) <= {"A", "Status", "Description", UNREADABLE}
    assert (good.data, good.headers) == (b"good", {"A": "b"})
    assert not listener.lost.is_set()


async def test_a_message_too_large_with_its_headers_is_refused_here_and_costs_no_connection(
    nats_server: NatsServer,
) -> None:
    async with open_nats(nats_server.settings("worker"), Role.WORKER) as connection:
        listener = Listener(connection)
        headers = {"A": "é" * 100, "B": ""}
        limit = connection.max_payload_bytes
        for body, size in ((bytes(limit - 50), headers), (bytes(limit + 1), None)):
            with pytest.raises(TooLarge, match="are allowed beside its headers"):
                await publish(connection, INBOX, body, size)
        largest = bytes(limit - 12 - (1 + 200 + 4) - (1 + 4))
        await publish(connection, INBOX, largest, headers)
        await connection.client.flush()
        with pytest.raises(TooLarge):
            await publish(connection, INBOX, largest + b"x", headers)
    assert not listener.lost.is_set()


async def test_what_the_server_complains_of_ends_no_connection(nats_server: NatsServer) -> None:
    async with connected(nats_server, Role.WORKER) as worker:
        listener = Listener(worker.connection)
        await publish(worker.connection, "dead.*", b"not a subject to publish to")
        await publish(worker.connection, "infer.m.live", b"not allowed")
        await worker.connection.client.flush()
        assert worker.connection.connected
        assert not listener.lost.is_set()


async def test_a_connection_that_the_server_closes_with_a_complaint_comes_back(
    nats_server: NatsServer,
) -> None:
    async with connected(nats_server, Role.WORKER) as worker:
        listener = Listener(worker.connection)
        oversized = bytes(worker.connection.max_payload_bytes + 1)
        worker.connection.client._max_payload = len(oversized)  # as if it had shrunk at the server
        await worker.connection.client.publish(INBOX, oversized)
        async with asyncio.timeout(10):
            await listener.lost.wait()
            await listener.back.wait()
        await worker.connection.client.flush()


async def test_a_flush_that_was_given_up_does_not_make_the_connection_deaf(own_server: NatsServer) -> None:
    async with open_nats(own_server.settings("publisher"), Role.PUBLISHER) as connection:
        listener = Listener(connection)
        await listener.open()
        with hung(own_server), pytest.raises(nats.errors.FlushTimeoutError):
            await connection.client.flush(timeout=0.1)  # type: ignore[arg-type]
        with raw_connection(own_server, Role.WORKER) as raw:
            raw.publish(INBOX.encode(), b"still there?")
        assert (await listener.next()).data == b"still there?"
        await connection.client.flush()
    assert not listener.lost.is_set()


async def test_a_flush_returns_after_the_server_has_read_what_was_published_before(
    nats_server: NatsServer,
) -> None:
    violations: list[Exception] = []
    async with connected(nats_server, Role.PUBLISHER) as publisher:

        async def failed(error: Exception) -> None:
            violations.append(error)

        publisher.connection.client._error_cb = failed
        for n in range(1, 20):
            await publish(publisher.connection, "result.public.job.0", b"")
            await publisher.connection.client.flush()
            assert len(violations) == n


async def test_a_hung_server_with_unsent_data_is_left_for_another_at_once(own_server: NatsServer) -> None:
    async with open_nats(own_server.settings("worker"), Role.WORKER) as connection:
        listener = Listener(connection)
        with hung(own_server):
            for _ in range(40):  # more than the sockets hold
                await publish(connection, INBOX, bytes(1_000_000))
                await asyncio.sleep(0)
            await until(lambda: connection.client.unsent_bytes > 0, "the sockets to be full")
            # What the ping timer does after 15 s of silence.
            await connection.client._process_op_err(nats.errors.StaleConnectionError())
            async with asyncio.timeout(5):
                await listener.lost.wait()
            assert not connection.connected
        async with asyncio.timeout(10):
            await listener.back.wait()


async def test_closing_does_not_wait_for_a_hung_server(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.connections.clients.CLOSE_TIMEOUT_S", 0.2)
    async with asyncio.timeout(10), AsyncExitStack() as opened:
        settings = own_server.settings("worker")
        connection = await opened.enter_async_context(open_nats(settings, Role.WORKER))
        with hung(own_server):
            for _ in range(40):
                await publish(connection, INBOX, bytes(1_000_000))
                await asyncio.sleep(0)
            await opened.aclose()
