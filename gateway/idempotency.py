"""The `Idempotency-Key` header: which job it names, and whether two requests with one key are the same."""

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from litestar import Request

from schemas.errors import IdempotencyMismatch, InvalidInput
from schemas.jobs import JobRecord

HEADER = "Idempotency-Key"
JOB_ID_CHARS = 40
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')
_BARE = re.compile(r"[\x21\x23-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request with a key is: the id of its job, and a fingerprint of all that was asked."""

    job: str
    fingerprint: str

    def check(self, record: JobRecord) -> None:
        """Return if `record` was made by this request. Raises IdempotencyMismatch."""
        if record.fingerprint != self.fingerprint:
            raise IdempotencyMismatch("was used before, for another request", field=HEADER)


class Fingerprint:
    """Takes in a request with a key, its body as it comes. Every gateway derives one job from one key."""

    def __init__(self, request: Request[Any, Any, Any], tenant: str, key: str) -> None:
        self.job = hashlib.sha256(f"{tenant}\n{key}".encode()).hexdigest()[:JOB_ID_CHARS]
        target = f"{request.method}\n{request.url.path}\n{request.url.query}\n"
        self._hash = hashlib.sha256(target.encode())

    def add(self, chunk: bytes) -> None:
        """Take in a part of the body."""
        self._hash.update(chunk)

    async def of(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield chunks of the body, and take them in."""
        async for chunk in chunks:
            self._hash.update(chunk)
            yield chunk

    @property
    def identity(self) -> Identity:
        """What the request is, once its body was taken in."""
        return Identity(self.job, self._hash.hexdigest())


def read_fingerprint(request: Request[Any, Any, Any], tenant: str) -> Fingerprint | None:
    """Begin the fingerprint of a request, or return None if it has no key. Raises InvalidInput."""
    values = request.headers.getall(HEADER, [])
    return Fingerprint(request, tenant, read_key(values)) if values else None


def read_key(values: list[str]) -> str:
    """Read a quoted string, as the draft has it, or a bare token, as callers have it. Raises InvalidInput."""
    if len(values) == 1:
        value = values[0].strip()
        if quoted := _QUOTED.fullmatch(value):
            return re.sub(r'\\(["\\])', r"\1", quoted[1])
        if _BARE.fullmatch(value):
            return value
    raise InvalidInput("must be one key of 1 to 255 printable ASCII characters", field=HEADER)
