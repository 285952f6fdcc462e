"""Who receives an upload that has an idempotency key: one gateway at a time, for as long as it says so.

The record's sequence in its stream is the claim. Its holder stores the record anew every PROGRESS_S; one
that fell silent has died, and another may take the record over, after which the first can not store it.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from infra.connections.jobs import Jobs
from schemas.errors import Cancelled, Conflict, Unavailable
from schemas.jobs import JobRecord

SILENCE_S = 6.0  # three times what a holder needs between two signs of life
LOOK_S = 0.25


@dataclass(slots=True)
class Claim:
    """A record, and its newest sequence. A record with a fingerprint is complete, and claimed by nobody."""

    record: JobRecord
    seq: int


class Claims:
    """The claims on uploads."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def claim(self, tenant: str, record: JobRecord) -> Claim:
        """Claim the job of `record`, or find it complete.

        Waits for SILENCE_S if somebody has claimed it and says nothing. Raises Conflict if somebody is at
        it, Cancelled if it was given up for good, and Unavailable.
        """
        seq = await self._jobs.create(tenant, record)
        if seq is not None:
            return Claim(record, seq)
        first = await self._look(tenant, record.job)
        take_over_at = asyncio.get_running_loop().time() + SILENCE_S
        while True:
            known = await self._look(tenant, record.job)
            if known.record.fingerprint is not None:
                return known
            if not known.record.receiving:
                raise Cancelled("the upload with this key was given up; use another key")
            if known.seq != first.seq:
                raise _being_received()
            if asyncio.get_running_loop().time() >= take_over_at:
                break
            await asyncio.sleep(LOOK_S)
        taken = Claim(record, first.seq)
        await self.keep(tenant, taken, record)
        return taken

    async def keep(self, tenant: str, claim: Claim, record: JobRecord) -> None:
        """Store the record anew. Raises Conflict if somebody else has it now."""
        seq = await self._jobs.replace(tenant, record, claim.seq)
        if seq is None:
            raise _being_received()
        claim.seq = seq

    async def _look(self, tenant: str, job: str) -> Claim:
        found = await self._jobs.look(tenant, job)
        if found is None:  # it was forgotten this very moment
            raise Unavailable("the job of this key is not kept any more", retry_after_s=1)
        return Claim(*found)


async def with_beats(chunks: AsyncIterator[bytes], every_s: float) -> AsyncIterator[bytes]:
    """Yield the chunks, and empty ones while none comes."""
    coming: asyncio.Task[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(chunks), name="next chunk")
            await asyncio.wait({coming}, timeout=every_s)
            if not coming.done():
                yield b""
                continue
            try:
                chunk, coming = coming.result(), None
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if coming is not None:
            coming.cancel()


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


def _being_received() -> Conflict:
    return Conflict("an upload with this key is being received", retry_after_s=2)
