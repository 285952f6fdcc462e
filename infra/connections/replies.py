"""Replies to callers who wait: one wildcard inbox a gateway, and the publish at the worker's end.

A reply is core NATS, at most once. What must not be lost is stored in RESULTS as well.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection
from infra.connections.requests import publish


@dataclass(frozen=True, slots=True)
class ExpectedReply:
    """A reply somebody waits for. `subject` can not be guessed, so only who was told it can answer."""

    subject: str
    body: asyncio.Future[bytes]


class ReplyInbox:
    """The gateway's end: one subscription for every request in flight."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._prefix = f"{connection.inbox_prefix}.reply"
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def open(self) -> None:
        """Listen. Call once, before anything is expected."""
        await self._connection.client.subscribe(
            f"{self._prefix}.*", cb=self._received, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    @contextmanager
    def expect(self) -> Iterator[ExpectedReply]:
        """Open a place for one reply; a reply that comes after the block is dropped."""
        token = secrets.token_hex(16)
        body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = body
        try:
            yield ExpectedReply(f"{self._prefix}.{token}", body)
        finally:
            self._waiting.pop(token, None)

    @property
    def in_flight(self) -> int:
        """How many replies are waited for."""
        return len(self._waiting)

    async def _received(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():  # the first reply counts
            waiting.set_result(message.data)


async def send_reply(connection: NatsConnection, subject: str, body: bytes) -> None:
    """The worker's end; `is_reply_subject` holds for `subject`. Raises Unavailable while disconnected."""
    await publish(connection, subject, body)
