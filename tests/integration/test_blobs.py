"""Bodies in a folder and in S3: whole, a tenant's own, and unavailable in time."""

import asyncio
import hashlib
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from infra.connections import blobs as blobs_module
from infra.connections.blobs import BlobStore, FolderBlobs, open_blobs
from infra.connections.settings import BlobSettings
from schemas.envelope import BlobRef
from schemas.errors import InvalidInput, TooLarge, Unavailable
from tests.servers import HOST, S3Server, free_port

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    name = f"bucket-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3_server.endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """A blob store of each kind."""
    if request.param == "folder":
        return open_blobs(BlobSettings(store=f"file://{tmp_path}", timeout_s=10))
    bucket: str = request.getfixturevalue("bucket")
    server: S3Server = request.getfixturevalue("s3_server")
    return open_blobs(
        BlobSettings(store=f"s3://{bucket}/some/prefix", s3_endpoint=server.endpoint, timeout_s=10)
    )


async def test_a_blob_comes_back_whole(store: BlobStore) -> None:
    body = os.urandom(2_000_000)
    ref = await store.put("acme", body)
    assert await store.get("acme", ref) == body
    assert (ref.size, ref.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (await store.put("acme", body)).blob != ref.blob
    assert await store.get("acme", await store.put("acme", b"")) == b""


async def test_a_blob_of_another_tenant_is_refused(store: BlobStore) -> None:
    ref = await store.put("acme", b"secret")
    for other in ("umbrella", "acm", "acme-2"):
        with pytest.raises(InvalidInput, match="not a blob of this tenant"):
            await store.get(other, ref)


async def test_a_blob_that_is_not_there_is_refused(store: BlobStore) -> None:
    ref = await store.put("acme", b"body")
    await store.delete(ref)
    await store.delete(ref)
    with pytest.raises(InvalidInput, match="is not in the blob store") as refused:
        await store.get("acme", ref)
    assert refused.value.field == "blob"


async def test_a_blob_that_is_not_what_its_reference_says_is_refused(store: BlobStore) -> None:
    ref = await store.put("acme", b"body")
    other = await store.put("acme", b"tampered with")
    for wrong in (
        replace(ref, size=5),
        replace(ref, size=3),
        replace(ref, sha256="0" * 64),
        replace(other, sha256=ref.sha256),
        replace(other, sha256=ref.sha256, size=ref.size),
    ):
        with pytest.raises(InvalidInput, match="does not match its sha256 and size"):
            await store.get("acme", wrong)


async def test_a_reference_over_the_limit_is_refused_unread(store: BlobStore) -> None:
    ref = BlobRef("acme/" + "0" * 32, "0" * 64, blobs_module.MAX_BLOB_BYTES + 1)
    with pytest.raises(TooLarge, match="at most 2147483648 are allowed"):
        await store.get("acme", ref)


async def test_blobs_lie_under_their_tenant_and_the_prefix(bucket: str, s3_server: S3Server) -> None:
    store = open_blobs(BlobSettings(store=f"s3://{bucket}/some/prefix/", s3_endpoint=s3_server.endpoint))
    ref = await store.put("acme", b"x")
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == [f"some/prefix/{ref.blob}"]


async def test_old_blobs_of_a_folder_are_swept_with_the_parts_of_dead_writers(tmp_path: Path) -> None:
    store = open_blobs(BlobSettings(store=f"file://{tmp_path}"))
    old, new = await store.put("acme", b"old"), await store.put("acme", b"new")
    part = tmp_path / "acme" / "0123.part"
    part.write_bytes(b"half")
    for path in (tmp_path / old.blob, part):
        os.utime(path, (time.time() - 100, time.time() - 100))
    assert await store.sweep(50) == 2
    assert await store.get("acme", new) == b"new"
    with pytest.raises(InvalidInput):
        await store.get("acme", old)


async def test_no_bucket_and_no_server_is_unavailable_within_the_deadline(s3_server: S3Server) -> None:
    nobody = f"http://{HOST}:{free_port()}"
    for endpoint, name in ((s3_server.endpoint, "no-such-bucket"), (nobody, "bucket")):
        store = open_blobs(BlobSettings(store=f"s3://{name}", s3_endpoint=endpoint, timeout_s=1.0))
        for attempt in (store.put("acme", b"x"), store.get("acme", BlobRef("acme/" + "0" * 32, "0" * 64, 1))):
            async with asyncio.timeout(3):
                with pytest.raises(Unavailable):
                    await attempt


async def test_a_server_that_never_answers_is_unavailable_within_the_deadline(s3_server: S3Server) -> None:
    with socket.create_server((HOST, 0)) as silent:
        endpoint = f"http://{HOST}:{silent.getsockname()[1]}"
        store = open_blobs(BlobSettings(store="s3://bucket", s3_endpoint=endpoint, timeout_s=0.3))
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await store.put("acme", b"x")
        assert time.monotonic() - started < 2


async def test_a_folder_that_hangs_is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    release = threading.Event()

    class HangingFolder(FolderBlobs):
        def read(self, key: str) -> bytes | None:
            release.wait(30)
            return None

    store = BlobStore(HangingFolder(tmp_path), inline_limit_bytes=1024, timeout_s=0.2)
    try:
        with pytest.raises(Unavailable):
            await store.get("acme", BlobRef("acme/" + "0" * 32, "0" * 64, 1))
    finally:
        release.set()


async def test_a_folder_that_can_not_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "acme").write_text("a file where a folder should be")
    store = open_blobs(BlobSettings(store=f"file://{tmp_path}"))
    with pytest.raises(Unavailable):
        await store.put("acme", b"x")


def test_a_store_of_an_unknown_kind_is_refused_at_the_start() -> None:
    for store in ("ftp://host/x", "/just/a/folder", "gs://bucket"):
        with pytest.raises(ValueError, match="must be file://folder or s3://bucket/prefix"):
            open_blobs(BlobSettings(store=store))
