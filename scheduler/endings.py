"""Ends stored requests that no worker will end: the caller is told, a copy kept, the request deleted."""

from collections.abc import Mapping
from typing import Protocol

from infra.connections.clients import NatsConnection
from infra.connections.dead import bury
from infra.connections.reading import Stored
from infra.connections.replies import send_reply
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.streams import Streams
from schemas.envelope import Failure, decode_reply, encode_reply, failure_of
from schemas.errors import InferenceError, InvalidInput
from schemas.headers import RequestHeaders, read_headers, read_reply_to
from schemas.jobs import item_state_of


class ReadHeaders(Protocol):
    """Reads the headers of a request. Raises InvalidInput on those that prove nothing to anybody."""

    def __call__(self, raw: Mapping[str, str], *, fallback_id: str) -> RequestHeaders: ...


class Endings:
    """Ends requests, each in an order in which a crash at any point repeats all of it and changes nothing."""

    def __init__(
        self,
        connection: NatsConnection,
        requests: Requests,
        streams: Streams,
        results: Results,
        *,
        read: ReadHeaders = read_headers,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._streams = streams
        self._results = results
        self._read = read

    async def end(self, stream: str, message: Stored, error: InferenceError, *, attempts: int = 0) -> bool:
        """End a request with `error`. Returns False if its job has another answer, which then stands.

        Raises Unavailable or ApiError where it stopped; to be called again then.
        """
        headers = self._headers_of(message, fallback_id=f"{stream}:{message.seq}")
        ours = headers is None or await self._tell(headers, failure_of(error, headers.id), attempts)
        if ours:
            reason = f"{error.code}: {error.message}"
            await bury(self._requests, stream, message, reason, attempts=attempts or None)
        await self._streams.remove(stream, message.seq)
        return ours

    async def _tell(self, headers: RequestHeaders, failure: Failure, attempts: int) -> bool:
        if headers.job is not None and not await self._write(headers, headers.job, failure, attempts):
            return False
        if headers.reply_to is not None:
            await send_reply(self._connection, headers.reply_to, encode_reply(failure, headers.content_type))
        return True

    async def _write(self, headers: RequestHeaders, job: str, failure: Failure, attempts: int) -> bool:
        """Write a job's record. Says whether the one that stands is ours, be it from before a crash."""
        written = await self._results.write(
            headers.tenant,
            job,
            headers.item,
            state=item_state_of(failure.code),
            body=encode_reply(failure),
            attempts=attempts,
        )
        if written:
            return True
        stands = await self._results.read(headers.tenant, job, headers.item)
        if stands is None:  # its time to be kept ended just now
            return True
        try:
            reply = decode_reply(stands.body)
        except InvalidInput:
            return False
        return isinstance(reply, Failure) and reply.code is failure.code

    def _headers_of(self, message: Stored, *, fallback_id: str) -> RequestHeaders | None:
        """Read the headers, or of malformed ones at least where to reply; None if there is nobody to tell."""
        try:
            return self._read(message.headers, fallback_id=fallback_id)
        except InvalidInput:
            pass
        try:
            reply_to = read_reply_to(message.headers)
        except InvalidInput:
            return None
        return None if reply_to is None else RequestHeaders(id=fallback_id, reply_to=reply_to)
