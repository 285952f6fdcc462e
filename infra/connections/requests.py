"""Ask NATS and await one answer: PubAcks, double acks and JetStream's API, all over one private inbox.

nats-py's own `request` costs a flush and a subscription's worth of book-keeping a call; this costs a
future. Each question's token is random, because a publisher could otherwise aim its own PubAcks at us.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection
from schemas.errors import TooLarge, Unavailable

NO_RESPONDERS = "503"


class ApiError(Exception):
    """JetStream refused an API call. `err_code` is its stable number."""

    def __init__(self, subject: str, err_code: int, description: str) -> None:
        super().__init__(f"{subject}: {err_code} {description}")
        self.err_code = err_code
        self.description = description


@dataclass(frozen=True, slots=True)
class PubAck:
    """JetStream's word on a publish: stored at `seq`, or refused for `description`."""

    seq: int = 0
    duplicate: bool = False
    err_code: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A message that was published, and the answer to it, which may not have come yet."""

    token: str
    answer: asyncio.Future[Msg]


class Requests:
    """Questions in flight on one connection. `timeout_s` bounds each but those that `begin` returns."""

    def __init__(self, connection: NatsConnection, *, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._inbox = f"{connection.inbox_prefix}.ask"
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    async def open(self) -> None:
        """Listen on the inbox. Call once, before anything else."""
        await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._answered)
        self._connection.on_disconnect(self._fail_all)

    async def begin(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Question:
        """Publish and return without the answer, which fails with Unavailable if the connection is lost.

        The caller bounds its own wait, and calls `forget` when it ends. Raises Unavailable and TooLarge.
        """
        question = Question(secrets.token_hex(12), asyncio.get_running_loop().create_future())
        self._waiting[question.token] = question.answer
        try:
            await publish(self._connection, subject, body, headers, reply=f"{self._inbox}.{question.token}")
        except BaseException:
            self.forget(question)
            raise
        return question

    def room_for_body(self, headers: Mapping[str, str]) -> int:
        """Say how many bytes a message with these headers may hold."""
        return self._connection.max_payload_bytes - header_bytes(headers)

    def forget(self, question: Question) -> None:
        """Wait for an answer no more; one that comes later is dropped."""
        self._waiting.pop(question.token, None)

    async def ask(self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Msg:
        """Publish and await the answer. Raises Unavailable if none comes, TooLarge over max_payload."""
        question = await self.begin(subject, body, headers)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await question.answer
        except TimeoutError as error:
            raise Unavailable("the queue did not answer in time", retry_after_s=2) from error
        finally:
            self.forget(question)

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> PubAck:
        """Publish into a stream. Raises Unavailable if whether it was stored is unknown."""
        return read_pub_ack(await self.ask(subject, body, headers))

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call `$JS.API.<subject>`. Raises ApiError if JetStream refuses, Unavailable if it is silent."""
        answer = await self.ask(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"")
        if _status(answer) == NO_RESPONDERS:
            raise Unavailable("JetStream is not there", retry_after_s=2)
        raw: dict[str, Any] = json.loads(answer.data)
        if error := raw.get("error"):
            raise ApiError(subject, error.get("err_code", 0), error.get("description", ""))
        return raw

    async def _answered(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _fail_all(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the connection to the queue was lost", retry_after_s=2))


def read_pub_ack(answer: Msg) -> PubAck:
    """Read JetStream's answer to a publish. Raises Unavailable if no stream takes the subject."""
    if _status(answer) == NO_RESPONDERS:
        raise Unavailable("the queue has no stream for this yet", retry_after_s=2)
    raw = json.loads(answer.data)
    if error := raw.get("error"):
        return PubAck(err_code=error.get("err_code", 0), description=error.get("description", ""))
    return PubAck(seq=raw["seq"], duplicate=raw.get("duplicate", False))


async def publish(
    connection: NatsConnection,
    subject: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    reply: str = "",
) -> None:
    """Publish without awaiting anything. Raises Unavailable while disconnected, TooLarge over max_payload."""
    room = connection.max_payload_bytes - header_bytes(headers)
    if len(body) > room:  # the server would close the connection
        raise TooLarge(
            f"the message is {len(body)} bytes, at most {room} are allowed beside its headers", field="body"
        )
    try:
        await connection.client.publish(subject, body, reply, headers)
    except nats.errors.Error as error:
        raise Unavailable("the connection to the queue is down", retry_after_s=2) from error


def header_bytes(headers: Mapping[str, str] | None) -> int:
    """Count what headers take of a message, which max_payload bounds as a whole."""
    if headers is None:
        return 0
    return 12 + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())


def _status(message: Msg) -> str | None:
    return message.headers.get("Status") if message.headers else None
