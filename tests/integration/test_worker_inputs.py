"""What a worker says of inputs that are wrong, late, cancelled or large."""

import hashlib
import struct

import pytest

from infra.connections.clients import Role
from infra.connections.jobs import Jobs
from schemas.envelope import (
    BlobRef,
    Failure,
    Result,
    decode_reply,
    encode_blob_ref,
)
from schemas.jobs import ItemState
from schemas.subjects import Lane
from schemas.tensors import Tensor
from tests.integration.broker_stand import connected
from tests.integration.services import Service
from tests.integration.worker_stand import (
    GOOD,
    Stack,
    a_request,
    all_settled,
    expanded,
    fresh,
    in_hand,
    looking,
    output,
    publishing,
    record_of,
    turns,
    x,
)
from tests.waiting import until

pytestmark = pytest.mark.integration


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
