"""Bodies too large for a message: a folder in the embedded stack, S3 in production.

A message then carries a reference, which names the blob, its size and its sha256 (the claim-check pattern).
A blob's key starts with its tenant's name, and a reader is told whose request it reads for.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import structlog
from botocore.config import Config

from infra.connections.settings import BlobSettings
from schemas.envelope import BlobRef
from schemas.errors import InvalidInput, TooLarge, Unavailable

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

log = structlog.get_logger()

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

MAX_BLOB_BYTES = 2 << 30
_STORE_ERRORS = (
    OSError,
    TimeoutError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
)


class BlobFiles(Protocol):
    """Where blobs lie. Every call blocks, and raises OSError or a botocore error if it can not be done."""

    def write(self, key: str, data: bytes) -> None: ...
    def read(self, key: str) -> bytes | None: ...
    def remove(self, key: str) -> None: ...
    def remove_older_than(self, age_s: float) -> int: ...


class BlobStore:
    """Puts bodies into blobs and gets them back whole. Work is done on threads, each call with a deadline."""

    def __init__(self, files: BlobFiles, *, inline_limit_bytes: int, timeout_s: float) -> None:
        self.inline_limit_bytes = inline_limit_bytes
        self._files = files
        self._timeout_s = timeout_s

    async def put(self, tenant: str, data: bytes) -> BlobRef:
        """Store `data` under a new, unguessable key. Raises Unavailable."""
        key = f"{tenant}/{secrets.token_hex(16)}"
        await self._do(self._files.write, key, data)
        return BlobRef(blob=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    async def get(self, tenant: str, ref: BlobRef) -> bytes:
        """Return what `ref` names. Raises InvalidInput if it is another tenant's, gone or not whole."""
        if not ref.blob.startswith(f"{tenant}/"):
            raise InvalidInput("is not a blob of this tenant", field="blob")
        if ref.size > MAX_BLOB_BYTES:
            raise TooLarge(f"is {ref.size} bytes, at most {MAX_BLOB_BYTES} are allowed", field="size")
        data = await self._do(self._files.read, ref.blob)
        if data is None:
            raise InvalidInput("is not in the blob store (any more)", field="blob")
        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise InvalidInput("does not match its sha256 and size", field="blob")
        return data

    async def delete(self, ref: BlobRef) -> None:
        """Forget a blob nobody needs any more. Raises Unavailable."""
        await self._do(self._files.remove, ref.blob)

    async def sweep(self, age_s: float) -> int:
        """Delete blobs older than `age_s` and return how many; S3 does that by a lifecycle rule."""
        return await self._do(self._files.remove_older_than, age_s)

    async def _do(self, call: Callable[[*Ts], R], *arguments: *Ts) -> R:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(call, *arguments)
        except _STORE_ERRORS as error:
            log.warning("blob store failed", error=type(error).__name__)
            raise Unavailable("the blob store can not be reached", retry_after_s=5) from error


class FolderBlobs:
    """Blobs as files. A file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, key: str, data: bytes) -> None:
        """Write atomically."""
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)

    def read(self, key: str) -> bytes | None:
        """Return the bytes, or None."""
        try:
            return (self._folder / key).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, key: str) -> None:
        """Delete if it is there."""
        (self._folder / key).unlink(missing_ok=True)

    def remove_older_than(self, age_s: float) -> int:
        """Delete files by their modification time, `.part` files of dead writers included."""
        oldest = time.time() - age_s
        old = [f for f in self._folder.glob("*/*") if f.is_file() and f.stat().st_mtime < oldest]
        for file in old:
            file.unlink(missing_ok=True)
        return len(old)


class S3Blobs:
    """Blobs as objects under a prefix of a bucket."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def write(self, key: str, data: bytes) -> None:
        """Put the object."""
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def read(self, key: str) -> bytes | None:
        """Return the object's bytes, or None."""
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None

    def remove(self, key: str) -> None:
        """Delete if it is there."""
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def remove_older_than(self, age_s: float) -> int:
        """Do nothing: a lifecycle rule of the bucket expires blobs."""
        return 0


def open_blobs(settings: BlobSettings) -> BlobStore:
    """Build the store that `settings.store` names. Raises ValueError on another scheme."""
    scheme, _, rest = settings.store.partition("://")
    files: BlobFiles
    if scheme == "file":
        files = FolderBlobs(Path(rest))
    elif scheme == "s3":
        address = urlsplit(settings.store)
        prefix = address.path.strip("/")
        files = S3Blobs(_s3_client(settings), address.netloc, f"{prefix}/" if prefix else "")
    else:
        raise ValueError(f"BLOB_STORE must be file://folder or s3://bucket/prefix, got scheme {scheme!r}")
    return BlobStore(files, inline_limit_bytes=settings.inline_limit_bytes, timeout_s=settings.timeout_s)


def _s3_client(settings: BlobSettings) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        config=Config(
            connect_timeout=5,
            read_timeout=settings.timeout_s,
            retries={"total_max_attempts": 3, "mode": "standard"},
            max_pool_connections=16,
        ),
    )
