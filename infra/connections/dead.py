"""Dead letters: copies of messages that were given up, with the reason, for people to look at."""

import hashlib
import re
from collections import deque
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from infra.connections.clients import NatsConnection
from infra.connections.reading import Stored, StreamReader
from infra.connections.requests import ApiError, Requests
from infra.connections.streams import MESSAGE_DELETE_FAILED, MESSAGE_NOT_FOUND
from schemas.errors import InvalidInput, Unavailable
from schemas.headers import (
    ATTEMPTS,
    CONTENT_TYPE,
    DEADLINE_MS,
    ITEM,
    JOB,
    MSG_ID,
    PRIORITY,
    REASON,
    REPLY_TO,
    SIGNATURE,
    TENANT,
)
from schemas.subjects import DEAD_STREAM, dead_subject, model_of_token

ORIGINAL_SUBJECT = "Ms-Subject"
ORIGINAL_BYTES = "Ms-Original-Bytes"  # only where the copy was cut
ORIGINAL_ID = "Ms-Original-Id"
_KEPT = (TENANT, JOB, ITEM, REPLY_TO, DEADLINE_MS, PRIORITY, CONTENT_TYPE, SIGNATURE)
MAX_REASON_CHARS = 500
MAX_HEADER_CHARS = 500
_TOKEN = re.compile(r"[A-Za-z0-9_~-]{1,300}")
_NO_MODEL = "~"  # where the subject names nothing that could be a model
_SIZE = "Nats-Msg-Size"  # what the server says of a body that it leaves out
_SHOWN = (*_KEPT, ORIGINAL_ID, ORIGINAL_SUBJECT, ORIGINAL_BYTES, REASON, ATTEMPTS)
_FIRST_WINDOW = 256


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `body` is empty where only the headers were read."""

    seq: int
    model: str | None  # None if its subject named nothing that could be one
    stored_at: float  # unix seconds, on the broker's clock
    size_bytes: int  # of what is kept of the body
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def subject(self) -> str:
        """Where the message was published."""
        return self.headers.get(ORIGINAL_SUBJECT, "")

    @property
    def is_cut(self) -> bool:
        """Say whether the end of the body is missing."""
        return ORIGINAL_BYTES in self.headers

    @property
    def original_headers(self) -> dict[str, str]:
        """Give those of its own headers that were kept, its id in the usual place."""
        own = {name: self.headers[name] for name in _KEPT if name in self.headers}
        return own | ({MSG_ID: self.headers[ORIGINAL_ID]} if ORIGINAL_ID in self.headers else {})


async def bury(
    requests: Requests, stream: str, message: Stored, reason: str, *, attempts: int | None = None
) -> None:
    """Copy a message to the dead letters; copying the same one again changes nothing. Raises Unavailable.

    The copy's id is made of the original's place in its stream, and of its body, because a stream in memory
    counts anew after a restart. Its other headers are kept only if we know them, so that no header of a
    stranger's can act on the DEAD stream. A body that has no room beside our headers is cut.
    """
    headers = {name: message.headers[name][:MAX_HEADER_CHARS] for name in _KEPT if name in message.headers}
    headers |= {
        MSG_ID: f"{stream}:{message.seq}:{hashlib.sha256(message.body).hexdigest()[:16]}",
        ORIGINAL_SUBJECT: message.subject[:MAX_HEADER_CHARS],
        REASON: reason[:MAX_REASON_CHARS].replace("\r", " ").replace("\n", " "),
    }
    if MSG_ID in message.headers:
        headers[ORIGINAL_ID] = message.headers[MSG_ID][:MAX_HEADER_CHARS]
    if attempts is not None:
        headers[ATTEMPTS] = str(attempts)
    body = message.body
    if len(body) > requests.room_for_body(headers):
        headers[ORIGINAL_BYTES] = str(len(body))
        body = body[: requests.room_for_body(headers)]
    ack = await requests.publish(f"dead.{_token(message.subject)}", body, headers)
    if ack.err_code:
        raise Unavailable(f"dead letters can not be stored now: {ack.description}", retry_after_s=5)


def _token(subject: str) -> str:
    """Take the model's token from a subject, which may hold anything that the server takes for a token."""
    token = subject.split(".")[1]
    return token if _TOKEN.fullmatch(token) else _NO_MODEL


class DeadLetters:
    """The reading end: the DEAD stream, for whoever looks after it. Every call raises Unavailable."""

    def __init__(self, connection: NatsConnection, requests: Requests, *, timeout_s: float) -> None:
        self._requests = requests
        self._reader = StreamReader(connection, requests, DEAD_STREAM, timeout_s=timeout_s)

    async def newest(
        self, model: str | None = None, *, limit: int, before_seq: int | None = None
    ) -> list[DeadLetter]:
        """Return up to `limit` letters, newest first and without bodies; older than `before_seq` if given.

        A stream is read forwards only, so this reads ever larger pieces of its end.
        """
        state = (await self._api(f"STREAM.INFO.{DEAD_STREAM}"))["state"]
        first, end = max(1, state["first_seq"]), state["last_seq"] + 1
        end = end if before_seq is None else min(end, before_seq)
        window = max(_FIRST_WINDOW, limit)
        while True:
            start = max(first, end - window)
            found = await self._between(_subjects(model), start, end, limit)
            if len(found) == limit or start <= first:
                return found[::-1]
            window *= 8

    async def get(self, seq: int) -> DeadLetter | None:
        """Return one letter with its body, or None if it is not there."""
        stored = await self._reader.at(seq)
        return None if stored is None else _letter(stored)

    async def remove(self, seq: int) -> bool:
        """Delete one letter. Returns False if it is not there."""
        try:
            await self._requests.api(f"STREAM.MSG.DELETE.{DEAD_STREAM}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code in (MESSAGE_NOT_FOUND, MESSAGE_DELETE_FAILED):
                return False
            raise Unavailable("dead letters can not be deleted now", retry_after_s=5) from error
        return True

    async def purge(self, model: str | None = None, *, older_than_s: float = 0.0) -> int:
        """Delete the letters of a model, or of all, that are older than this. Returns how many those were."""
        info = await self._api(f"STREAM.INFO.{DEAD_STREAM}")
        up_to = info["state"]["last_seq"] + 1  # what comes from now on stays
        if older_than_s > 0:
            since = datetime.fromisoformat(info["ts"]) - timedelta(seconds=older_than_s)
            young = await self._reader.first_since(_subjects(None), since)
            up_to = up_to if young is None else min(up_to, young.seq)
        purge = {"filter": _subjects(model), "seq": up_to}
        return int((await self._api(f"STREAM.PURGE.{DEAD_STREAM}", purge))["purged"])

    async def _between(self, subjects: str, start: int, end: int, limit: int) -> list[DeadLetter]:
        """Read the last `limit` letters from `start` on and before `end`, oldest first."""
        found: deque[DeadLetter] = deque(maxlen=limit)
        every = self._reader.every(subjects, after_seq=start - 1, headers_only=True)
        async with aclosing(every) as letters:
            async for stored in letters:
                if stored.seq >= end:
                    break
                found.append(_letter(stored))
        return list(found)

    async def _api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            return await self._requests.api(subject, body)
        except ApiError as error:  # not declared yet, or without a leader
            raise Unavailable("dead letters can not be reached now", retry_after_s=5) from error


def _subjects(model: str | None) -> str:
    return "dead.*" if model is None else dead_subject(model)


def _letter(stored: Stored) -> DeadLetter:
    try:
        model = model_of_token(stored.subject.partition(".")[2])
    except InvalidInput:
        model = None
    return DeadLetter(
        seq=stored.seq,
        model=model,
        stored_at=stored.stored_at_ns / 1e9,
        size_bytes=int(stored.headers.get(_SIZE, len(stored.body))),
        headers={name: stored.headers[name] for name in _SHOWN if name in stored.headers},
        body=stored.body,
    )
