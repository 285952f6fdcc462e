"""Many publishes at once: how many are on their way, and what becomes of those that are refused."""

import asyncio

import pytest

from gateway.pipeline import Message, Pipeline
from infra.connections.requests import Requests
from schemas.errors import Overloaded, TooLarge, Unavailable
from tests.unit.gateway.fake_nats import FakeNats, Published

FULL, TOO_LARGE = 10077, 10054


def a_message(number: int, size: int = 1) -> Message:
    return Message("infer.m.batch", {"Nats-Msg-Id": f"job.{number}"}, bytes(size))


@pytest.fixture
async def nats() -> FakeNats:
    return FakeNats()


async def a_pipeline(
    nats: FakeNats, *, window: int = 3, patience_s: float = 0.0, ack_timeout_s: float = 1.0
) -> Pipeline:
    requests = Requests(nats.connection, timeout_s=1)
    await requests.open()
    return Pipeline(requests, window=window, ack_timeout_s=ack_timeout_s, patience_s=patience_s)


async def test_up_to_a_window_is_published_without_a_single_puback(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats, window=3)
    for number in range(3):
        await pipeline.add(a_message(number))
    adding = asyncio.create_task(pipeline.add(a_message(3)))
    await asyncio.sleep(0)
    assert len(nats.client.published) == 3
    await nats.ack(nats.client.published[0])
    await adding
    assert len(nats.client.published) == 4
    pipeline.abandon()


async def test_it_is_finished_when_every_puback_has_come(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats)
    for number in range(3):
        await pipeline.add(a_message(number))
    finishing = asyncio.create_task(pipeline.finish())
    for message in reversed(nats.client.published):
        assert not finishing.done()
        await nats.ack(message)
    await finishing


@pytest.mark.parametrize(
    ("err_code", "expected"), [(FULL, Overloaded), (TOO_LARGE, TooLarge), (1, Unavailable)]
)
async def test_a_refusal_is_raised_at_once_without_patience(
    nats: FakeNats, err_code: int, expected: type[Exception]
) -> None:
    pipeline = await a_pipeline(nats)
    await pipeline.add(a_message(0))
    await nats.ack(nats.client.published[0], err_code=err_code)
    with pytest.raises(expected):
        await pipeline.finish()


async def test_with_patience_a_full_queue_is_tried_again_under_the_same_id(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats, patience_s=30)
    await pipeline.add(a_message(0))
    finishing = asyncio.create_task(pipeline.finish())
    await nats.ack(await nats.message(0), err_code=FULL)
    await nats.ack(await nats.message(1), err_code=FULL)
    await nats.ack(await nats.message(2))
    await finishing
    assert {message.headers["Nats-Msg-Id"] for message in nats.client.published} == {"job.0"}


async def test_patience_ends(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats, patience_s=0.05)
    pending: list[asyncio.Task[None]] = []

    def refuse(message: Published) -> None:
        pending.append(asyncio.create_task(nats.ack(message, err_code=FULL)))

    nats.client.on_publish = refuse
    await pipeline.add(a_message(0))
    with pytest.raises(Overloaded):
        await pipeline.finish()


async def test_a_puback_that_does_not_come_is_unavailable(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats, ack_timeout_s=0.02)
    await pipeline.add(a_message(0))
    with pytest.raises(Unavailable):
        await pipeline.finish()


async def test_a_lost_connection_is_unavailable(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats)
    await pipeline.add(a_message(0))
    await nats.lose()
    with pytest.raises(Unavailable):
        await pipeline.finish()


async def test_large_messages_fill_the_window_by_their_bytes(nats: FakeNats) -> None:
    pipeline = await a_pipeline(nats, window=100)
    nats.client.max_payload = 64 << 20
    await pipeline.add(a_message(0, size=33 << 20))
    adding = asyncio.create_task(pipeline.add(a_message(1)))
    await asyncio.sleep(0)
    assert len(nats.client.published) == 1
    await nats.ack(nats.client.published[0])
    await adding
    pipeline.abandon()
