"""How workers end, and what becomes of what they had in hand."""

import asyncio
import signal
import struct
from pathlib import Path

import httpx
import psutil
import pytest

from schemas.envelope import (
    BlobRef,
    Result,
    decode_reply,
)
from schemas.jobs import ItemState
from schemas.subjects import Lane
from tests.integration.broker_stand import declared
from tests.integration.services import Service, service
from tests.integration.worker_stand import (
    GOOD,
    MALFORMED,
    OWN,
    OWN_LOOP,
    SETTINGS,
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
from tests.servers import NatsServer
from tests.waiting import until

pytestmark = pytest.mark.integration


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
