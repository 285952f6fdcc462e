"""The real worker beside the real scheduler, as processes: what publishers send it, and how it ends.

Requests come from plain nats-py with the credentials of a publisher, as a service on NATS would send them."""

import json
from typing import Any

import msgpack
import pytest
from nats.aio.msg import Msg

from infra.connections.clients import Role
from infra.connections.dead import ORIGINAL_BYTES
from infra.connections.pulling import Settler, parse_delivery
from schemas.envelope import (
    Failure,
    Result,
    decode_reply,
    encode_blob_ref,
)
from schemas.headers import JSON, MSGPACK, REASON
from schemas.jobs import ItemState
from schemas.subjects import Lane, consumer_name
from schemas.tensors import Tensor
from tests.integration.broker_stand import connected, raw_connection
from tests.integration.services import Service
from tests.integration.worker_stand import (
    GOOD,
    MALFORMED,
    OWN,
    Stack,
    a_request,
    all_settled,
    fresh,
    looking,
    output,
    publishing,
    record_of,
    x,
)
from tests.waiting import until

pytestmark = pytest.mark.integration


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


REPLY = "_INBOX_publisher.nobody"


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
            raw.publish(b"infer.identity.batch", GOOD, b"NATS/1.")
            raw.publish(b"infer.identity.batch", bytes(1_048_576))
        await until(lambda: all_settled(broker), "the messages to be settled")
        letters = await broker.dead_letters()
        assert len(letters) == 6
        assert [one[REASON] for one in letters].count("invalid_input: can not be read") == 2
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
