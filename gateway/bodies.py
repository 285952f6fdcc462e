"""Bodies on their way: read within a limit, and put into the blob store if too large for a message."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from litestar import Request
from litestar.exceptions import InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from gateway import metrics
from gateway.errors import ClientGone
from infra.connections.blobs import BlobStore
from schemas.envelope import BlobRef, Failure, Result, decode_reply, encode_blob_ref
from schemas.errors import Internal, InvalidInput, TooLarge, Unavailable

log = structlog.get_logger()


async def body_chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """Yield a body as it comes. Raises ClientGone if the caller leaves before its end."""
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except InternalServerException as error:  # what Litestar makes of a disconnect
        raise ClientGone from error
    except RequestEntityTooLarge as error:
        raise too_large(request.route_handler.resolve_request_max_body_size()) from error


async def read_body(request: Request[Any, Any, Any], *, max_bytes: int) -> bytes:
    """Read a whole body. Raises TooLarge, if it can be told before reading, and ClientGone."""
    announced = request.content_length
    if announced is not None and announced > max_bytes:
        raise too_large(max_bytes)
    chunks, size = [], 0
    async for chunk in body_chunks(request):
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(max_bytes: int | None) -> TooLarge:
    """Say what the limit of a body is."""
    return TooLarge(f"the body is over the limit of {max_bytes} bytes", field="body")


class Envelopes:
    """Message bodies at the gateway's end: inline, or a reference to a blob."""

    def __init__(self, blobs: BlobStore, tasks: asyncio.TaskGroup) -> None:
        self._blobs = blobs
        self._tasks = tasks

    async def pack(self, tenant: str, body: bytes) -> tuple[bytes, BlobRef | None]:
        """Return what to publish for `body`, and the blob it went into, if it did. Raises Unavailable."""
        if len(body) <= self._blobs.inline_limit_bytes:
            return body, None
        ref = await self._blobs.put(tenant, body)
        metrics.payload_offloads_total.labels("request").inc()
        return encode_blob_ref(ref), ref

    async def unpack(self, tenant: str, body: bytes, *, keep: bool) -> Result | Failure:
        """Decode a reply, fetching it if it is a reference, and deleting the blob unless `keep`.

        Raises Unavailable if the blob store is down, Internal if the reply is gone or none at all.
        """
        try:
            reply = decode_reply(body)
            if not isinstance(reply, BlobRef):
                return reply
            metrics.payload_offloads_total.labels("reply").inc()
            fetched = decode_reply(await self._blobs.get(tenant, reply))
        except InvalidInput as error:  # not of the caller, who never saw it
            raise Internal(f"the result {error.message}") from error
        if not keep:
            self.forget(reply)
        if isinstance(fetched, BlobRef):
            raise Internal("the result is a reference to a reference")
        return fetched

    def forget(self, ref: BlobRef) -> None:
        """Delete a blob soon, without waiting; what can not be deleted is swept later."""
        self._tasks.create_task(self._delete(ref), name="delete blob")

    async def _delete(self, ref: BlobRef) -> None:
        try:
            await self._blobs.delete(ref)
        except Unavailable as error:
            log.warning("blob left behind", reason=error.message)
