"""The real worker beside the real scheduler, as processes: what publishers send it, and how it ends.

Requests come from plain nats-py with the credentials of a publisher, as a service on NATS would send them.
"""

import asyncio
import hashlib
import json
import secrets
import signal
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgpack
import nats
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connections.blobs import BlobStore, open_blobs
from infra.connections.clients import Role
from infra.connections.dead import ORIGINAL_BYTES
from infra.connections.jobs import Jobs
from infra.connections.pulling import Settler, parse_delivery
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
from schemas.headers import JSON, MSGPACK, REASON
from schemas.jobs import ItemState
from schemas.subjects import Lane, consumer_name, infer_subject
from schemas.tensors import Tensor
from scripts.models.identity import identity_model
from tests.integration.broker_stand import Declared, connected, declared, raw_connection
from tests.integration.services import Service, service
from tests.models import add_model, expand_model, install_test_models, loop_model
from tests.servers import NatsServer, ValkeyServer
from tests.waiting import until

pytestmark = pytest.mark.integration

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


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything but workers, for the tests of this file."""
    folder = tmp_path_factory.mktemp("worker")
    install_test_models(folder / "models")
    add_model(folder / "models", OWN, identity_model())
    add_model(folder / "models", OWN_LOOP, loop_model())
    add_model(folder / "models", "own-expand", expand_model())
    add_model(folder / "models", "hanging", loop_model(), max_execution_s=1.0)
    with ExitStack() as opened:
        broker = opened.enter_context(NatsServer(folder / "nats"))
        valkey = opened.enter_context(ValkeyServer(folder / "valkey"))
        scheduler = opened.enter_context(service("scheduler", folder, broker, valkey, **SETTINGS))
        scheduler.wait_ready()
        yield Stack(folder, broker, valkey)


@pytest.fixture(scope="module")
def shared_worker(stack: Stack) -> Iterator[Service]:
    """One worker for the tests that leave it as it was. It does not serve the models named own-... ."""
    with stack.worker() as worker:
        yield worker


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


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("content_type", [MSGPACK, JSON, "JSON with base64", "blob"])
async def test_every_way_in_gives_the_same_answer(
    stack: Stack, shared_worker: Service, lane: Lane, content_type: str
) -> None:
    body = a_request(x(1.5, -2.0))
    id_, job = fresh("id"), fresh("job")
    written: dict[str, Any] = {"model": "identity", "inputs": {"x": [[1.5] * 4, [-2.0] * 4]}}
    if content_type == "JSON with base64":
        data = "AADAPwAAwD8AAMA/AADAPwAAAMAAAADAAAAAwAAAAMA="
        written["inputs"] = [{"name": "x", "dtype": "float32", "shape": [2, 4], "base64": data}]
    bodies = {
        MSGPACK: body,
        "blob": encode_blob_ref(await stack.blobs().put("public", body)),
    }
    encoding = MSGPACK if content_type in bodies else JSON
    async with looking(stack) as broker, publishing(stack) as publisher:
        sent = bodies.get(content_type, json.dumps(written).encode())
        await publisher.publish(sent, lane=lane, content_type=encoding, Nats_Msg_Id=id_, Ms_Job=job)
        reply = await publisher.raw_reply()
        if encoding == JSON:
            answer = json.loads(reply.data)
            assert answer["outputs"] == [
                {"name": "y", "dtype": "float32", "shape": [2, 4], "data": [[1.5] * 4, [-2.0] * 4]}
            ]
            identity = (answer["id"], answer["model"], answer["version"])
        else:
            result = decode_reply(reply.data)
            assert isinstance(result, Result)
            assert result.outputs == (Tensor("y", "float32", (2, 4), x(1.5, -2.0).data),)
            identity = (result.id, result.model, result.version)
            assert set(result.timing) == {"queue_ms", "worker_ms", "run_ms"}
        assert identity == (id_, "identity", 1)
        record = await record_of(broker, job)
        assert record is not None
        assert (record.state, record.attempts) == (ItemState.SUCCEEDED, 1)
        assert output(decode_reply(record.body)) == x(1.5, -2.0).data
        await until(lambda: all_settled(broker), "the request to be settled")
        assert await broker.count("DEAD") == 0


async def test_requests_that_come_together_run_together_and_none_gets_anothers_answer(
    stack: Stack, shared_worker: Service
) -> None:
    id_ = fresh("id")
    batches = shared_worker.metric("model_serving_batch_size_count", model="identity")
    items = shared_worker.metric("model_serving_batch_size_sum", model="identity")
    async with looking(stack) as broker, publishing(stack) as publisher:
        for n in range(600):
            lane = list(Lane)[n % 3]
            await publisher.publish(a_request(x(float(n))), lane=lane, Nats_Msg_Id=f"{id_}-{n}")
        for _ in range(600):
            answer = await publisher.reply()
            assert isinstance(answer, Result)
            assert output(answer) == x(float(answer.id.removeprefix(f"{id_}-"))).data
        assert publisher.replies.empty()
        await until(lambda: all_settled(broker), "all to be settled")
    assert shared_worker.metric("model_serving_batch_size_sum", model="identity") - items == 600
    assert shared_worker.metric("model_serving_batch_size_count", model="identity") - batches < 300


async def test_a_request_that_was_delivered_before_runs_alone(stack: Stack) -> None:
    async with looking(stack) as broker, publishing(stack) as publisher:
        for n in range(8):
            await publisher.publish(a_request(x(float(n)), model=OWN), model=OWN, lane=Lane.BATCH)
        await broker.streams.declare_consumers(OWN)
        await deliver_once(stack, 8)
        with stack.worker(models=OWN) as worker:
            answers = [await publisher.reply() for _ in range(8)]
            assert sorted(output(one) for one in answers) == sorted(x(float(n)).data for n in range(8))
            assert worker.metric("model_serving_batch_size_count", model=OWN) == 8
            assert worker.metric("model_serving_redeliveries_total", model=OWN) == 8
            await until(lambda: all_settled(broker, OWN), "all to be settled")


async def deliver_once(stack: Stack, count: int) -> None:
    """Take `count` requests as a worker would, and give them back at once."""
    async with connected(stack.nats, Role.WORKER) as link:
        inbox = f"{link.connection.inbox_prefix}.taken"
        taken = await link.connection.client.subscribe(inbox)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.INFER.{consumer_name(OWN, Lane.BATCH)}"
        await link.connection.client.publish(subject, json.dumps({"batch": count}).encode(), reply=inbox)
        for _ in range(count):
            delivery = parse_delivery(await taken.next_msg(10))
            await Settler(link.connection, link.requests).nak(delivery, 0.01)
        await link.connection.client.flush()


GOOD = a_request()
REPLY = "_INBOX_publisher.nobody"
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


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_message_is_answered_buried_and_never_seen_again(
    stack: Stack, shared_worker: Service, name: str
) -> None:
    body, special, answered = MALFORMED[name]
    async with looking(stack) as broker, publishing(stack) as publisher:
        await publisher.publish(body, **({"lane": Lane.BATCH} | special))
        await publisher.until_stored()
        await until(lambda: all_settled(broker), "the message to be settled")
        (letter,) = await broker.dead_letters()
        assert letter["Ms-Subject"] == "infer.identity.batch"
        if answered:
            message = await publisher.raw_reply()
            failure = (
                json.loads(message.data) if special.get("content_type") == JSON else message_map(message)
            )
            assert failure["kind"] == "failure"
            assert failure["code"] in ("invalid_input", "unsupported_media", "too_large")
            assert letter[REASON] == f"{failure['code']}: {failure['message']}"
        assert await broker.count("RESULTS") == 0
        assert output(await publisher.ask(GOOD)) == x(1.0).data
        assert publisher.replies.empty()


def message_map(message: Msg) -> dict[str, Any]:
    unpacked: dict[str, Any] = msgpack.unpackb(message.data)
    return unpacked


async def test_a_reference_to_a_reference_is_malformed(stack: Stack, shared_worker: Service) -> None:
    inner = await stack.blobs().put("public", GOOD)
    outer = await stack.blobs().put("public", encode_blob_ref(inner))
    async with looking(stack) as broker, publishing(stack) as publisher:
        failure = await publisher.ask(encode_blob_ref(outer))
        assert isinstance(failure, Failure)
        assert (failure.code, failure.field) == ("invalid_input", "blob")
        await until(lambda: all_settled(broker), "the message to be settled")
        assert len(await broker.dead_letters()) == 1


async def test_headers_that_are_no_headers_are_buried_too(stack: Stack, shared_worker: Service) -> None:
    async with looking(stack) as broker, publishing(stack) as publisher:
        with raw_connection(stack.nats) as raw:
            for headers in (b"X", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 503\r\n\r\n", bytes(500)):
                raw.publish(b"infer.identity.batch", b"\xc1", headers)
            raw.publish(b"infer.identity.batch", bytes(1_048_576))
        await until(lambda: all_settled(broker), "the messages to be settled")
        letters = await broker.dead_letters()
        assert len(letters) == 5
        assert [one[ORIGINAL_BYTES] for one in letters if ORIGINAL_BYTES in one] == ["1048576"]
        assert output(await publisher.ask(GOOD)) == x(1.0).data


async def test_a_request_without_anybody_to_answer_is_run_and_forgotten(
    stack: Stack, shared_worker: Service
) -> None:
    async with looking(stack) as broker, publishing(stack) as publisher:
        await publisher.publish(GOOD, lane=Lane.BATCH, Ms_Reply_To=None, content_type=None)  # type: ignore[arg-type]
        await publisher.until_stored()
        await until(lambda: all_settled(broker), "the request to be settled")
        assert await broker.count("DEAD") == 0


NAN = struct.pack("<4f", 1, 2, float("nan"), 4)
WRONG_INPUTS = {
    "dtype": (Tensor("x", "float64", (1, 4), bytes(32)), "'x': expected float32 [-1, 4], got float64 [1, 4]"),
    "width": (Tensor("x", "float32", (1, 5), bytes(20)), "'x': expected float32 [-1, 4], got float32 [1, 5]"),
    "rank": (Tensor("x", "float32", (4,), bytes(16)), "'x': expected float32 [-1, 4], got float32 [4]"),
    "name": (Tensor("z", "float32", (1, 4), bytes(16)), "takes 'x'"),
    "NaN": (Tensor("x", "float32", (1, 4), NAN), "input 'x' holds NaN or infinite values"),
    "no items": (Tensor("x", "float32", (0, 4), b""), "input 'x' holds no items"),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
async def test_a_wrong_input_is_told_which_what_was_expected_and_what_came(
    stack: Stack, shared_worker: Service, name: str
) -> None:
    job = fresh("job")
    wrong, text = WRONG_INPUTS[name]
    async with looking(stack) as broker, publishing(stack) as publisher:
        failure = await publisher.ask(a_request(wrong), Ms_Job=job)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.retryable) == ("invalid_input", False)
        assert text in failure.message
        assert (failure.field or "").startswith("inputs[0]")
        await until(lambda: all_settled(broker), "the request to be settled")
        record = await record_of(broker, job)
        assert record is not None
        assert (record.state, decode_reply(record.body)) == (ItemState.FAILED, failure)
        assert await broker.count("DEAD") == 0


async def test_one_bad_input_does_not_fail_those_it_came_with(stack: Stack, shared_worker: Service) -> None:
    id_ = fresh("id")
    async with looking(stack) as broker, publishing(stack) as publisher:
        for n in range(20):
            bad = n % 5 == 0
            tensor = Tensor("x", "float32", (1, 4), NAN) if bad else x(float(n))
            await publisher.publish(a_request(tensor), lane=Lane.BATCH, Nats_Msg_Id=f"{id_}-{n}")
        for _ in range(20):
            answer = await publisher.reply()
            assert not isinstance(answer, BlobRef)
            n = int(answer.id.removeprefix(f"{id_}-"))
            assert isinstance(answer, Failure if n % 5 == 0 else Result)
        await until(lambda: all_settled(broker), "all to be settled")


async def test_a_request_over_the_batch_size_is_too_large(stack: Stack, shared_worker: Service) -> None:
    async with publishing(stack) as publisher:
        failure = await publisher.ask(a_request(x(*[1.0] * 33)))
        assert isinstance(failure, Failure)
        assert (failure.code, failure.field) == ("too_large", "inputs[0]")
        assert "at most 32" in failure.message


async def test_the_items_of_a_cancelled_job_end_cancelled(stack: Stack, shared_worker: Service) -> None:
    job = fresh("job")
    inferences = shared_worker.metric("model_serving_inferences_total", model="loop")
    async with (
        looking(stack) as broker,
        publishing(stack) as publisher,
        connected(stack.nats, Role.GATEWAY) as gateway,
    ):
        await publisher.publish(turns(1_000_000), model="loop", lane=Lane.BATCH)
        await until(lambda: in_hand(broker, "loop"), "the engine to be busy")
        for item in range(5):
            await publisher.publish(
                turns(10), model="loop", lane=Lane.BATCH, Ms_Job=job, Ms_Item=str(item), Ms_Reply_To=None
            )
        await Jobs(gateway.connection, gateway.requests, timeout_s=2).cancel("public", job)
        await publisher.publish(
            turns(10), model="loop", lane=Lane.BATCH, Ms_Job=job, Ms_Item="5", Ms_Reply_To=None
        )
        assert isinstance(await publisher.reply(), Result)
        await until(lambda: all_settled(broker, "loop"), "all to be settled")
        records = [await record_of(broker, job, item) for item in range(6)]
        assert {record and record.state for record in records} == {ItemState.CANCELLED}
    assert shared_worker.metric("model_serving_inferences_total", model="loop") - inferences == 1


async def test_a_request_past_its_deadline_is_not_run(stack: Stack, shared_worker: Service) -> None:
    id_, job = fresh("late"), fresh("job")
    inferences = shared_worker.metric("model_serving_inferences_total", model="loop")
    async with looking(stack) as broker, publishing(stack) as publisher:
        await publisher.publish(turns(700_000), model="loop", lane=Lane.BATCH)
        await until(lambda: in_hand(broker, "loop"), "the engine to be busy")
        for n in range(3):
            await publisher.publish(
                turns(10),
                model="loop",
                lane=list(Lane)[n],
                Nats_Msg_Id=f"{id_}-{n}",
                Ms_Deadline_Ms="100",
                Ms_Job=job,
                Ms_Item=str(n),
            )
        answers = [await publisher.reply() for _ in range(4)]
        late = [one for one in answers if isinstance(one, Failure)]
        assert sorted(one.id for one in late) == [f"{id_}-{n}" for n in range(3)]
        assert {one.code for one in late} == {"deadline_exceeded"}
        await until(lambda: all_settled(broker, "loop"), "all to be settled")
        records = [await record_of(broker, job, n) for n in range(3)]
        assert {record and record.state for record in records} == {ItemState.EXPIRED}
    assert shared_worker.metric("model_serving_inferences_total", model="loop") - inferences == 1


async def test_a_body_over_the_inline_limit_travels_as_a_blob_both_ways(
    stack: Stack, shared_worker: Service
) -> None:
    job = fresh("job")
    blobs = stack.blobs()
    async with looking(stack) as broker, publishing(stack) as publisher:
        sent = encode_blob_ref(await blobs.put("public", expanded(1000)))
        reference = await publisher.ask(sent, model="expand", Ms_Job=job)
        assert isinstance(reference, BlobRef)
        whole = await blobs.get("public", reference)
        assert hashlib.sha256(whole).hexdigest() == reference.sha256
        result = decode_reply(whole)
        assert isinstance(result, Result)
        assert result.outputs[0].shape == (1, 1000)
        assert output(result) == struct.pack("<f", 1.5) * 1000
        record = await record_of(broker, job)
        assert record is not None
        stored = decode_reply(record.body)
        assert isinstance(stored, BlobRef)
        assert decode_reply(await blobs.get("public", stored)) == result
        await until(lambda: all_settled(broker, "expand"), "the request to be settled")


async def test_a_store_that_is_away_is_tried_again_and_not_the_callers_fault(
    stack: Stack, shared_worker: Service
) -> None:
    ref = encode_blob_ref(await stack.blobs().put("public", GOOD))
    folder = stack.folder / "blobs" / "public"
    async with looking(stack), publishing(stack) as publisher:
        folder.rename(folder.with_name("away"))
        folder.write_text("not a folder")
        try:
            await publisher.publish(ref, lane=Lane.BATCH)
            retried = "model_serving_worker_answers_total"
            await until(
                lambda: shared_worker.metric(retried, model="identity", outcome="retried") > 0, "a retry"
            )
        finally:
            folder.unlink()
            folder.with_name("away").rename(folder)
        assert output(await publisher.reply()) == x(1.0).data


async def test_draining_under_load_answers_what_is_in_hand_and_leaves_the_rest(stack: Stack) -> None:
    id_ = fresh("id")
    async with looking(stack) as broker, publishing(stack) as publisher:
        with stack.worker(models=OWN, MAX_BATCH_SIZE="4") as worker:
            for n in range(1500):
                await publisher.publish(
                    a_request(x(float(n)), model=OWN),
                    model=OWN,
                    lane=list(Lane)[n % 3],
                    Nats_Msg_Id=f"{id_}-{n}",
                    Ms_Job=f"{id_}-{n}",
                )
            answers = [await publisher.raw_reply() for _ in range(30)]
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0
            assert "draining" in worker.log
        await publisher.client.flush()
        while not publisher.replies.empty():
            answers.append(publisher.replies.get_nowait())
        assert len(answers) < 1500
        backlogs = [await broker.streams.backlog(OWN, lane) for lane in Lane]
        # What the broker was about to send when we stopped listening it counts, and sends to the next.
        assert len(answers) + sum(backlog.waiting + backlog.in_hand for backlog in backlogs) == 1500
        with stack.worker(models=OWN):
            answers += [await publisher.raw_reply() for _ in range(1500 - len(answers))]
            await until(lambda: all_settled(broker, OWN), "all to be settled")
        results = [decode_reply(message.data) for message in answers]
        outputs = {result.id: output(result) for result in results if isinstance(result, Result)}
        assert outputs == {f"{id_}-{n}": x(float(n)).data for n in range(1500)}
        assert publisher.replies.empty()
        assert await broker.count("RESULTS") == 1500


async def test_what_a_killed_worker_had_in_hand_is_answered_by_another(stack: Stack) -> None:
    job = fresh("job")
    async with looking(stack) as broker, publishing(stack) as publisher:
        with stack.worker(models=OWN_LOOP) as first:
            await publisher.publish(
                turns(1_000_000, model=OWN_LOOP), model=OWN_LOOP, lane=Lane.BATCH, Ms_Job=job
            )
            await until(lambda: in_hand(broker, OWN_LOOP), "the request to run")
            first.signal(signal.SIGKILL)
            assert await asyncio.to_thread(first.wait) == -signal.SIGKILL
        with stack.worker(models=OWN_LOOP) as second:
            assert output(await publisher.reply()) == struct.pack("<q", 1_000_000)
            assert second.metric("model_serving_redeliveries_total", model=OWN_LOOP) == 1
        record = await record_of(broker, job)
        assert record is not None
        assert (record.state, record.attempts) == (ItemState.SUCCEEDED, 2)
        await until(lambda: all_settled(broker, OWN_LOOP), "the request to be settled")


async def test_a_long_run_keeps_its_lease(stack: Stack, shared_worker: Service) -> None:
    job = fresh("job")
    async with looking(stack) as broker, publishing(stack) as publisher:
        await publisher.publish(turns(4_000_000), model="loop", lane=Lane.BATCH, Ms_Job=job)
        assert output(await publisher.reply()) == struct.pack("<q", 4_000_000)
        record = await record_of(broker, job)
        assert record is not None
        assert record.attempts == 1
        await until(lambda: all_settled(broker, "loop"), "the request to be settled")


async def test_an_engine_that_hangs_ends_its_worker(stack: Stack) -> None:
    async with looking(stack), publishing(stack) as publisher:
        with stack.worker(models="hanging") as worker:
            await publisher.publish(turns(2**62, model="hanging"), model="hanging", lane=Lane.BATCH)
            assert await asyncio.to_thread(worker.wait, 10) == 70
            assert "ran over its max_execution_s" in worker.log


async def test_a_drain_that_takes_too_long_ends_with_status_1_though_the_engine_hangs(stack: Stack) -> None:
    async with looking(stack) as broker, publishing(stack) as publisher:
        with stack.worker(models=OWN_LOOP, WORKER_DRAIN_GRACE_S="0.5") as worker:
            await publisher.publish(turns(2**62, model=OWN_LOOP), model=OWN_LOOP, lane=Lane.BATCH)
            await until(lambda: in_hand(broker, OWN_LOOP), "the engine to hang")
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 8) == 1
            assert "drain took too long" in worker.log


async def test_nothing_is_pulled_before_the_cancel_marks_were_read(stack: Stack, tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with declared(server, OWN) as broker:
            await broker.link.requests.api("STREAM.DELETE.JOBS")
            environment = SETTINGS | {"WORKER_MODELS": OWN}
            with service("workers", stack.folder, server, stack.valkey, **environment) as worker:
                await until(lambda: "broker not followed" in worker.log, "the worker to look for the marks")
                assert (await broker.consumer(model=OWN))["num_waiting"] == 0
                await broker.streams.declare()
                await asyncio.to_thread(worker.wait_ready)
                assert (await broker.consumer(model=OWN))["num_waiting"] > 0


async def test_a_reply_as_large_as_a_message_leaves_the_room_that_headers_take(stack: Stack) -> None:
    job = fresh("job")
    async with looking(stack), publishing(stack) as publisher:
        with stack.worker(models="own-expand", BLOB_INLINE_LIMIT_BYTES="1048576") as worker:
            for size in (1_048_500, 1_048_400):  # bytes of outputs; the rest of the reply is about 130
                body = expanded(size // 4, model="own-expand")
                await publisher.publish(body, model="own-expand", Ms_Job=job, Ms_Item=str(size))
                reference = await publisher.reply()
                assert isinstance(reference, BlobRef)
                result = decode_reply(await stack.blobs().get("public", reference))
                assert len(output(result)) == size
            assert worker.runs


async def test_hostile_messages_leave_nothing_in_memory(stack: Stack, shared_worker: Service) -> None:
    process = psutil.Process(shared_worker.pid)

    async def send_all(times: int) -> None:
        for _ in range(times):
            for body, special, _ in MALFORMED.values():
                await publisher.publish(body, **({"lane": Lane.BATCH} | special))
        await publisher.until_stored()
        await until(lambda: all_settled(broker), "all to be settled")

    async with looking(stack) as broker, publishing(stack) as publisher:
        await send_all(5)
        before = process.memory_info().rss
        await send_all(20)
        assert process.memory_info().rss - before < 32 << 20
        await publisher.client.flush()
        while not publisher.replies.empty():
            publisher.replies.get_nowait()
        assert output(await publisher.ask(GOOD)) == x(1.0).data


def subscriptions_of_workers(server: NatsServer) -> list[int]:
    """Count, by way of the broker's monitoring port, what each worker listens to."""
    connections = httpx.get(f"{server.monitoring_url}/connz", timeout=5).json()["connections"]
    return [one["subscriptions"] for one in connections if one["name"].startswith("model-serving-worker-")]


def holds_nothing(worker: Service, model: str) -> bool:
    return worker.metric("model_serving_worker_in_hand", model=model) == 0


async def test_a_worker_outlives_a_restart_of_the_broker(stack: Stack, shared_worker: Service) -> None:
    """Last in this file: live work and the publisher's connection do not."""
    async with publishing(stack) as publisher:
        assert output(await publisher.ask(GOOD)) == x(1.0).data
    subscriptions = subscriptions_of_workers(stack.nats)
    await asyncio.to_thread(stack.nats.restart, kill=True)
    await until(lambda: not shared_worker.is_ready(), "the worker to notice")
    await asyncio.to_thread(shared_worker.wait_ready)
    async with looking(stack), publishing(stack) as publisher:
        for lane in Lane:
            assert output(await publisher.ask(GOOD, lane=lane)) == x(1.0).data
    assert subscriptions_of_workers(stack.nats) == subscriptions
    for model in ("identity", "div", "loop", "expand"):
        await until(lambda model=model: holds_nothing(shared_worker, model), f"{model} to be let go")  # type: ignore[misc]
