"""A NATS client that is not there: tests see what was published, and say what comes back."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import nats.errors
from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection, Role
from schemas.envelope import Failure, Result, encode_reply
from schemas.headers import REPLY_TO

Callback = Callable[[Msg], Awaitable[None]]


@dataclass(frozen=True)
class Published:
    """A message as it left, with the inbox its PubAck goes to."""

    subject: str
    body: bytes
    inbox: str
    headers: dict[str, str]


class FakeClient:
    """The few calls of nats-py that are made. It has no server: nothing is answered by itself."""

    def __init__(self) -> None:
        self.is_connected = True
        self.is_closed = False
        self.max_payload = 1 << 20
        self.published: list[Published] = []
        self.subscribed: dict[str, Callback] = {}
        self.on_publish: Callable[[Published], None] = lambda _: None

    async def publish(
        self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        if not self.is_connected:
            raise nats.errors.OutboundBufferLimitError
        message = Published(subject, body, reply, headers or {})
        self.published.append(message)
        self.on_publish(message)

    async def subscribe(self, subject: str, *, cb: Callback, **_: object) -> None:
        self.subscribed[subject.removesuffix("*")] = cb


class FakeNats:
    """A connection over a FakeClient, and the broker's side of it."""

    def __init__(self) -> None:
        self.client = FakeClient()
        self.connection = NatsConnection(Role.GATEWAY)
        self.connection.client = cast(Any, self.client)
        self._changed = asyncio.Event()
        self.client.on_publish = lambda _: self._changed.set()

    async def message(self, number: int) -> Published:
        """Return the message published as the `number`-th, 0 first, as soon as it is."""
        async with asyncio.timeout(2):
            while len(self.client.published) <= number:
                self._changed.clear()
                await self._changed.wait()
        return self.client.published[number]

    async def ack(self, message: Published, *, err_code: int = 0) -> None:
        """Answer as JetStream does to a publish."""
        error = {"error": {"code": 503, "err_code": err_code, "description": "refused"}}
        body = error if err_code else {"stream": "S", "seq": 1}
        await self.deliver(message.inbox, json.dumps(body).encode())

    async def no_stream(self, message: Published) -> None:
        """Answer as the server does when no stream takes a subject."""
        await self.deliver(message.inbox, b"", {"Status": "503"})

    async def reply(self, message: Published, reply: Result | Failure) -> None:
        """Answer as a worker does."""
        await self.deliver(message.headers[REPLY_TO], encode_reply(reply))

    async def lose(self) -> None:
        """Lose the connection."""
        self.client.is_connected = False
        await self.connection.disconnected()

    async def restore(self) -> None:
        """Have it back."""
        self.client.is_connected = True
        await self.connection.reconnected()

    async def deliver(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Hand a message to whoever subscribed."""
        for prefix, callback in self.client.subscribed.items():
            if subject.startswith(prefix):
                await callback(Msg(cast(Any, self.client), subject, "", body, headers))
