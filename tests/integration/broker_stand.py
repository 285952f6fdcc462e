"""A real broker with our streams, and connections of each role to it, for tests of `infra.connections`."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import psutil

from infra.connections.clients import NatsConnection, Role, open_nats
from infra.connections.requests import ApiError, PubAck, Requests
from infra.connections.settings import StreamSettings
from infra.connections.streams import STREAM_NOT_FOUND, Streams, stream_configs
from schemas.errors import Unavailable
from schemas.subjects import Lane, consumer_name, infer_subject
from tests.servers import HOST, NatsServer, Server, wait_until

MODEL = "m.v1"


@dataclass(frozen=True, slots=True)
class Link:
    """A connection of one role, and its questions."""

    connection: NatsConnection
    requests: Requests

    async def publish_request(self, body: bytes = b"x", *, model: str = MODEL, **keys: Any) -> PubAck:
        """Publish into the queue of a model, as a gateway or a publisher does."""
        lane: Lane = keys.pop("lane", Lane.BATCH)
        return await self.requests.publish(infer_subject(model, lane), body, keys.pop("headers", None))


@asynccontextmanager
async def connected(server: NatsServer, role: Role, *, timeout_s: float = 2.0) -> AsyncIterator[Link]:
    """Connect as `role`; each question is given `timeout_s`."""
    async with open_nats(server.settings(role), role) as connection:
        requests = Requests(connection, timeout_s=timeout_s)
        await requests.open()
        yield Link(connection, requests)


@dataclass(frozen=True, slots=True)
class Declared:
    """The streams of a test, and the scheduler's link to them."""

    streams: Streams
    link: Link

    async def info(self, stream: str) -> dict[str, Any]:
        """Read a stream's configuration and state."""
        return await self.link.requests.api(f"STREAM.INFO.{stream}")

    async def count(self, stream: str) -> int:
        """Count the messages that a stream holds."""
        return int((await self.info(stream))["state"]["messages"])

    async def consumer(self, lane: Lane = Lane.BATCH, *, model: str = MODEL) -> dict[str, Any]:
        """Read the state of the consumer of a model."""
        return await self.link.requests.api(f"CONSUMER.INFO.{lane.stream}.{consumer_name(model, lane)}")

    async def delete_consumer(self, lane: Lane = Lane.BATCH) -> None:
        """Delete the consumer of MODEL, as an operator's mistake would."""
        await self.link.requests.api(f"CONSUMER.DELETE.{lane.stream}.{consumer_name(MODEL, lane)}")

    async def dead_letters(self) -> list[dict[str, str]]:
        """Read the headers of all dead letters, oldest first."""
        found: list[dict[str, str]] = []
        seq = int((await self.info("DEAD"))["state"]["first_seq"])
        last = int((await self.info("DEAD"))["state"]["last_seq"])
        while seq <= last:
            old = await self.streams.oldest("DEAD", "dead.>", from_seq=seq)
            if old is None:
                break
            found.append(old.message.headers)
            seq = old.message.seq + 1
        return found


@asynccontextmanager
async def declared(server: NatsServer, *models: str, **limits: Any) -> AsyncIterator[Declared]:
    """Declare every stream, and the consumers of `models`; remove all of it afterwards."""
    async with connected(server, Role.SCHEDULER) as link:
        settings = StreamSettings(**limits)
        streams = Streams(link.requests, settings)
        await remove_streams(link)
        await streams.declare()
        for model in models:
            await streams.declare_consumers(model)
        try:
            yield Declared(streams, link)
        finally:
            with suppress(Unavailable):  # a test may have stopped its own server
                await remove_streams(link)


async def remove_streams(link: Link) -> None:
    """Delete our streams, those of an earlier test included."""
    for config in stream_configs(StreamSettings()):
        try:
            await link.requests.api(f"STREAM.DELETE.{config['name']}")
        except ApiError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise


@contextmanager
def hung(server: Server) -> Iterator[None]:
    """Let a server's process stand still; a server that the test ends meanwhile stays ended."""
    process = psutil.Process(server.pid)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, f"{server.name} to stand still")
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


class RawConnection:
    """A connection that writes the protocol by hand, so that no client keeps it from doing harm."""

    def __init__(self, connection: socket.socket, reader: BinaryIO) -> None:
        self._socket = connection
        self._reader = reader

    def publish(self, subject: bytes, body: bytes = b"x", headers: bytes | None = None) -> None:
        """Publish these very bytes, and return when the server has taken them."""
        if headers is None:
            head = b"PUB %s %d\r\n" % (subject, len(body))
        else:
            head = b"HPUB %s %d %d\r\n" % (subject, len(headers), len(headers) + len(body))
        self._socket.sendall(head + (headers or b"") + body + b"\r\n")
        self.flush()

    def flush(self) -> None:
        """Return when the server has read what was written so far."""
        self._socket.sendall(b"PING\r\n")
        while (line := self._reader.readline()) != b"PONG\r\n":
            assert line, "the server closed the connection"


@contextmanager
def raw_connection(server: NatsServer, role: Role = Role.PUBLISHER) -> Iterator[RawConnection]:
    """Log in by hand."""
    options = {
        "verbose": False,
        "headers": True,
        "protocol": 1,
        "user": str(role),
        "pass": server.passwords[role],
    }
    address = (HOST, server.port)
    with socket.create_connection(address, timeout=10) as connection, connection.makefile("rb") as reader:
        raw = RawConnection(connection, reader)
        connection.sendall(f"CONNECT {json.dumps(options)}\r\n".encode())
        raw.flush()
        yield raw
