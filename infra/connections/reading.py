"""Read what a stream keeps: one message by its subject, or all that match a filter, in order, by pages."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection
from infra.connections.clock import unix_ns
from infra.connections.pulling import parse_delivery
from infra.connections.requests import ApiError, Requests, publish
from schemas.errors import Unavailable

PAGE = 256
PAGE_BYTES = 8 << 20
HEADERS_PAGE = 2000
_NOT_FOUND, _TIMED_OUT = "404", "408"


@dataclass(frozen=True, slots=True)
class Stored:
    """A message that a stream keeps. `seq` orders the messages of a stream and is never used twice.

    `stored_at_ns` is when the broker stored it, unix, on the broker's clock.
    """

    subject: str
    headers: dict[str, str]
    body: bytes
    seq: int
    stored_at_ns: int = 0


class StreamReader:
    """Reads one stream."""

    def __init__(
        self, connection: NatsConnection, requests: Requests, stream: str, *, timeout_s: float
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._stream = stream
        self._timeout_s = timeout_s

    async def last(self, subject: str) -> Stored | None:
        """Return the newest message on `subject`, or None. Raises Unavailable."""
        return _read_direct(await self._requests.ask(f"$JS.API.DIRECT.GET.{self._stream}.{subject}"))

    async def at(self, seq: int) -> Stored | None:
        """Return the message with this sequence, or None. Raises Unavailable."""
        return await self._get({"seq": seq})

    async def first_since(self, subjects: str, since: datetime) -> Stored | None:
        """Return the oldest message on `subjects` that was stored at `since` or later, or None."""
        return await self._get({"next_by_subj": subjects, "start_time": since.isoformat()})

    async def _get(self, wanted: dict[str, Any]) -> Stored | None:
        body = json.dumps(wanted).encode()
        return _read_direct(await self._requests.ask(f"$JS.API.DIRECT.GET.{self._stream}", body))

    async def page(
        self, subjects: str, *, after_seq: int = 0, limit: int = PAGE, headers_only: bool = False
    ) -> list[Stored]:
        """Return up to `limit` messages after `after_seq`, oldest first."""
        found: list[Stored] = []
        every = self.every(subjects, after_seq=after_seq, headers_only=headers_only, page=limit)
        async with aclosing(every) as messages:
            async for stored in messages:
                found.append(stored)
                if len(found) == limit:
                    break
        return found

    async def every(
        self, subjects: str, *, after_seq: int = 0, headers_only: bool = False, page: int = PAGE
    ) -> AsyncGenerator[Stored, None]:
        """Yield all messages after `after_seq`, oldest first, holding one page in memory.

        Between two pages any time may pass. Raises Unavailable if the stream can not be read to its end.
        Where it is left early, close it (`aclosing`), so that the server forgets the reader at once.
        """
        seq = after_seq
        while True:
            before = seq
            try:
                reading = self._read(subjects, seq, headers_only=headers_only, page=page)
                async with aclosing(reading) as messages:
                    async for stored in messages:
                        seq = stored.seq
                        yield stored
                return
            except _ReaderGone as error:
                if seq == before:
                    raise Unavailable("the stream can not be read now", retry_after_s=2) from error

    async def _read(
        self, subjects: str, after_seq: int, *, headers_only: bool, page: int
    ) -> AsyncGenerator[Stored, None]:
        """Yield by one consumer, which the server forgets if it is idle for long, or restarts."""
        name = f"read-{secrets.token_hex(8)}"
        config = _reader_config(name, subjects, after_seq, headers_only)
        try:
            await self._requests.api(
                f"CONSUMER.CREATE.{self._stream}.{name}.{subjects}",
                {"stream_name": self._stream, "config": config},
            )
        except ApiError as error:  # not declared yet, or without a leader
            raise Unavailable("the stream can not be read now", retry_after_s=2) from error
        pages = _Pages(self._connection, f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{name}", self._timeout_s)
        await pages.open()
        try:
            while batch := await pages.next(page):
                for message in batch:
                    yield _stored(message)
        finally:
            await pages.close()
            with suppress(Unavailable):  # the server forgets it by itself, later
                await publish(self._connection, f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", b"")


def _read_direct(answer: Msg) -> Stored | None:
    """Read the answer of a direct get: a message, or None if there is none."""
    headers = answer.headers or {}
    status = headers.get("Status")
    if status == _NOT_FOUND:
        return None
    if status is not None:
        raise Unavailable("the stream can not be read now", retry_after_s=2)
    return Stored(
        headers["Nats-Subject"],
        headers,
        answer.data,
        int(headers["Nats-Sequence"]),
        unix_ns(headers["Nats-Time-Stamp"]),
    )


def _reader_config(name: str, subjects: str, after_seq: int, headers_only: bool) -> dict[str, Any]:
    return {
        "name": name,
        "filter_subject": subjects,
        "ack_policy": "none",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": after_seq + 1,
        "headers_only": headers_only,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30_000_000_000,
    }


class _Pages:
    """Pulls of what is there now, each over an inbox of its own.

    A pull that brought all it may is followed by a status (409, batch completed), which the next one must
    not take for its own end.
    """

    def __init__(self, connection: NatsConnection, next_subject: str, timeout_s: float) -> None:
        self._connection = connection
        self._next_subject = next_subject
        self._timeout_s = timeout_s
        self._inbox = f"{connection.inbox_prefix}.page.{secrets.token_hex(12)}"
        self._pulls = 0
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()  # bounded by what one pull may bring

    async def open(self) -> None:
        self._subscription = await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._arrived.put)

    async def close(self) -> None:
        if not self._connection.client.is_closed:
            await self._subscription.unsubscribe()

    async def next(self, limit: int) -> list[Msg]:
        """Pull up to `limit` messages. An empty page is the end. Raises _ReaderGone and Unavailable."""
        pull = {"batch": limit, "no_wait": True, "max_bytes": PAGE_BYTES}
        self._pulls += 1
        inbox = f"{self._inbox}.{self._pulls}"
        await publish(self._connection, self._next_subject, json.dumps(pull).encode(), reply=inbox)
        page: list[Msg] = []
        try:
            while len(page) < limit:
                async with asyncio.timeout(self._timeout_s):
                    message = await self._arrived.get()
                if message.reply.startswith("$JS.ACK."):
                    page.append(message)
                elif message.subject == inbox:
                    if not _ends_a_page(message):
                        raise _ReaderGone
                    break
        except TimeoutError as error:
            raise Unavailable("the stream fell silent", retry_after_s=2) from error
        return page


class _ReaderGone(Exception):
    """The server has forgotten the consumer that we read by."""


def _ends_a_page(message: Msg) -> bool:
    """Say whether a status means that there is no more for this pull, or no room left in it."""
    headers = message.headers or {}
    full = "MaxBytes" in headers.get("Description", "")
    return full or headers.get("Status") in (_NOT_FOUND, _TIMED_OUT)


def _stored(message: Msg) -> Stored:
    place = parse_delivery(message)
    return Stored(message.subject, message.headers or {}, message.data, place.stream_seq, place.stored_at_ns)
