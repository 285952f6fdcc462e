"""The real scheduler and workers as processes, and a publisher that knows NATS only."""

import asyncio
import json
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connections.blobs import BlobStore, open_blobs
from infra.connections.clients import Role
from infra.connections.results import ItemRecord, Results
from infra.connections.settings import BlobSettings, StreamSettings
from infra.connections.streams import Streams
from schemas.envelope import (
    BlobRef,
    Failure,
    InferRequest,
    Result,
    decode_reply,
    encode_blob_ref,
    encode_request,
)
from schemas.headers import JSON, MSGPACK
from schemas.subjects import Lane, infer_subject
from schemas.tensors import Tensor
from tests.integration.broker_stand import Declared, connected
from tests.integration.services import Service, service
from tests.servers import NatsServer, ValkeyServer
from tests.waiting import until

OWN, OWN_LOOP = "own-identity", "own-loop"  # for tests with a worker of their own


ACK_WAIT_S = 2


INLINE_LIMIT_BYTES = 2048


SETTINGS = {
    "STREAM_ACK_WAIT_S": str(ACK_WAIT_S),
    "STREAM_LIVE_ACK_WAIT_S": str(ACK_WAIT_S),
    "BLOB_INLINE_LIMIT_BYTES": str(INLINE_LIMIT_BYTES),
    "SCHEDULER_RECONCILE_S": "0.1",
    "SCHEDULER_SWEEP_S": "0.5",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """Servers, a scheduler and a model repository; workers are started by who needs them."""

    folder: Path
    nats: NatsServer
    valkey: ValkeyServer

    @contextmanager
    def worker(self, *, models: str = "identity,div,loop,expand", **settings: str) -> Iterator[Service]:
        """Run a worker, ready to serve."""
        environment = SETTINGS | {"WORKER_MODELS": models} | settings
        with service("workers", self.folder, self.nats, self.valkey, **environment) as worker:
            worker.wait_ready()
            yield worker

    def blobs(self) -> BlobStore:
        """Open the blob store that the worker has."""
        return open_blobs(
            BlobSettings(store=f"file://{self.folder}/blobs", inline_limit_bytes=INLINE_LIMIT_BYTES)
        )


@dataclass(slots=True)
class Publisher:
    """A service on NATS that asks and listens."""

    client: Client
    inbox: str
    acks: str
    replies: asyncio.Queue[Msg] = field(default_factory=asyncio.Queue)
    published: int = 0
    stored: int = 0

    async def publish(
        self,
        body: bytes,
        *,
        model: str = "identity",
        lane: Lane = Lane.LIVE,
        content_type: str = MSGPACK,
        **headers: str | None,
    ) -> None:
        """Publish with a reply-to; `headers` add to it, and None leaves one out. The name's `_` are `-`."""
        given = {"Ms_Reply_To": self.inbox, "Content_Type": content_type} | headers
        written = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
        self.published += 1
        await self.client.publish(infer_subject(model, lane), body, reply=self.acks, headers=written or None)

    async def until_stored(self) -> None:
        """Wait for the PubAck of everything that was published."""
        await until(lambda: self.stored == self.published, "all to be stored")

    async def reply(self) -> Result | Failure | BlobRef:
        """Return the next reply, which came as msgpack."""
        return decode_reply((await self.raw_reply()).data)

    async def raw_reply(self) -> Msg:
        async with asyncio.timeout(15):
            return await self.replies.get()

    async def ask(self, body: bytes, **keys: Any) -> Result | Failure | BlobRef:
        """Publish and return the reply."""
        await self.publish(body, **keys)
        return await self.reply()


@asynccontextmanager
async def publishing(stack: Stack) -> AsyncIterator[Publisher]:
    client = await nats.connect(stack.nats.url("publisher"), inbox_prefix=b"_INBOX_publisher")
    try:
        publisher = Publisher(client, client.new_inbox(), client.new_inbox())

        async def heard(message: Msg) -> None:
            publisher.replies.put_nowait(message)

        async def acknowledged(message: Msg) -> None:
            assert "error" not in json.loads(message.data), message.data
            publisher.stored += 1

        await client.subscribe(publisher.inbox, cb=heard)
        await client.subscribe(publisher.acks, cb=acknowledged)
        yield publisher
    finally:
        await client.close()


@asynccontextmanager
async def looking(stack: Stack) -> AsyncIterator[Declared]:
    """Look at the broker, and leave it without work and without dead letters."""
    async with connected(stack.nats, Role.SCHEDULER) as link:
        settings = StreamSettings(ack_wait_s=ACK_WAIT_S, live_ack_wait_s=ACK_WAIT_S)
        broker = Declared(Streams(link.requests, settings), link)
        await purge(broker)
        yield broker
        await purge(broker)


async def purge(broker: Declared) -> None:
    for stream in ("INFER", "INFER_LIVE", "DEAD", "RESULTS", "JOBS"):
        await broker.link.requests.api(f"STREAM.PURGE.{stream}")


def fresh(name: str) -> str:
    """Make an id that no other test uses: the broker and the worker remember them."""
    return f"{name}-{secrets.token_hex(8)}"


def x(*rows: float) -> Tensor:
    """Build the input of `identity`: one row of four for each number."""
    return Tensor("x", "float32", (len(rows), 4), b"".join(struct.pack("<4f", *[row] * 4) for row in rows))


def a_request(*tensors: Tensor, model: str = "identity") -> bytes:
    return encode_request(InferRequest(model, tensors or (x(1.0),)))


def turns(trips: int, *, model: str = "loop") -> bytes:
    """Build a request that runs for about a microsecond a trip."""
    return a_request(Tensor("trips", "int64", (1,), struct.pack("<q", trips)), model=model)


def expanded(width: int, *, model: str = "expand") -> bytes:
    """Build a request whose output is 1.5, so many times."""
    tensors = (
        Tensor("x", "float32", (1,), struct.pack("<f", 1.5)),
        Tensor("width", "int64", (1,), struct.pack("<q", width)),
    )
    return a_request(*tensors, model=model)


def output(answer: Any) -> bytes:
    assert isinstance(answer, Result), answer
    return answer.outputs[0].data


async def in_hand(broker: Declared, model: str, lane: Lane = Lane.BATCH) -> bool:
    return (await broker.streams.backlog(model, lane)).in_hand > 0


async def all_settled(broker: Declared, *models: str) -> bool:
    """Say whether nothing is stored any more, and nothing in hand or waiting to be delivered again."""
    if await broker.count("INFER") or await broker.count("INFER_LIVE"):
        return False
    states = [await broker.consumer(lane, model=model) for model in models or ("identity",) for lane in Lane]
    return all(s["num_pending"] == s["num_ack_pending"] == s["num_redelivered"] == 0 for s in states)


async def record_of(broker: Declared, job: str, item: int = 0) -> ItemRecord | None:
    results = Results(broker.link.connection, broker.link.requests, timeout_s=2)
    return await results.read("public", job, item)


GOOD = a_request()


MALFORMED: dict[str, tuple[bytes, dict[str, Any], bool]] = {
    # name: the body, what is special about the headers, and whether there is somebody to answer
    "empty": (b"", {}, True),
    "not msgpack": (b"\xc1garbage", {}, True),
    "text": (b"GET / HTTP/1.1\r\n\r\n", {}, True),
    "truncated": (GOOD[:-3], {}, True),
    "arrays a hundred thousand deep": (b"\x91" * 100_000, {}, True),
    "a map that claims 4 billion entries": (b"\xdf\xff\xff\xff\xff", {}, True),
    "an extension type": (msgpack.packb({"model": msgpack.ExtType(5, b"x")}), {}, True),
    "a timestamp": (msgpack.packb({"model": "identity", "inputs": msgpack.Timestamp(1)}), {}, True),
    "another version": (msgpack.packb({"v": 99, "model": "identity", "inputs": []}), {}, True),
    "no inputs": (msgpack.packb({"v": 1, "model": "identity", "inputs": []}), {}, True),
    "a shape of 2**62": (a_request(Tensor("x", "float32", (2**62, 4), b"")), {}, True),
    "a shape of 0 and 2**62": (a_request(Tensor("x", "float32", (0, 2**62), b"")), {}, True),
    "JSON garbage": (b"{'model': identity}", {"content_type": JSON}, True),
    "JSON nested deep": (b"[" * 100_000, {"content_type": JSON}, True),
    "JSON with a number of 400 digits": (
        b'{"model": "identity", "inputs": {"x": [[1' + b"0" * 400 + b", 1, 1, 1]]}}",
        {"content_type": JSON},
        True,
    ),
    "JSON with one long string among many": (
        json.dumps({"model": "identity", "inputs": {"x": ["y" * 30_000] + ["a"] * 15_000}}).encode(),
        {"content_type": JSON},
        True,
    ),
    "another content type": (GOOD, {"content_type": "application/x-python-pickle"}, True),
    "another model": (a_request(model="other"), {}, True),
    "a bad job id": (GOOD, {"Ms_Job": "../../etc/passwd"}, True),
    "a bad item": (GOOD, {"Ms_Job": "job-0123456789abcdef", "Ms_Item": "-1"}, True),
    "a bad deadline": (GOOD, {"Ms_Deadline_Ms": "soon"}, True),
    "a bad priority": (GOOD, {"Ms_Priority": "99"}, True),
    "a bad id": (GOOD, {"Nats_Msg_Id": "a b"}, True),
    "a bad tenant": (GOOD, {"Ms_Tenant": "*"}, True),
    "another tenant": (GOOD, {"Ms_Tenant": "acme", "Ms_Job": "job-0123456789abcdef"}, True),
    "a reply-to of JetStream's API": (GOOD, {"Ms_Reply_To": "$JS.API.STREAM.DELETE.RESULTS"}, False),
    "a reply-to of an ack": (GOOD, {"Ms_Reply_To": "$JS.ACK.INFER.identity-batch.1.1.1.1.1"}, False),
    "a reply-to of work": (GOOD, {"Ms_Reply_To": "infer.identity.batch"}, False),
    "a reply-to of another's results": (GOOD, {"Ms_Reply_To": "result.acme.job-0123456789abcdef.0"}, False),
    "a reply-to of everybody": (GOOD, {"Ms_Reply_To": "_INBOX_gateway.>"}, False),
    "a reply-to with spaces": (GOOD, {"Ms_Reply_To": "_INBOX_publisher.a b"}, False),
    "no headers and no request": (b"\xc1", {"Ms_Reply_To": None, "content_type": None}, False),
    "no reply-to and a wrong input": (
        a_request(Tensor("z", "float32", (1,), bytes(4))),
        {"Ms_Reply_To": None},
        False,
    ),
    "a blob of another tenant": (encode_blob_ref(BlobRef("acme/" + "0" * 32, "0" * 64, 5)), {}, True),
    "a blob that is not there": (encode_blob_ref(BlobRef("public/" + "0" * 32, "0" * 64, 5)), {}, True),
    "a blob over the limit": (encode_blob_ref(BlobRef("public/" + "0" * 32, "0" * 64, 2**40)), {}, True),
    "a blob elsewhere": (
        msgpack.packb({"blob": "public/../../etc/passwd", "sha256": "0" * 64, "size": 1}),
        {},
        True,
    ),
    "a full message of nothing": (bytes(1_048_576 - 200), {}, True),
}
