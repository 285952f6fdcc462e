"""Placement in a real Valkey: announced, lapsed, left, and what a Redis that is away means."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from infra.connections.clients import open_redis
from infra.connections.placement import Placement
from infra.connections.settings import RedisSettings
from schemas.errors import Unavailable
from schemas.models import ModelCard, Signature, TensorSpec
from schemas.placement import CARDS_KEY, WORKER_KEY_PREFIX, WorkerState, WorkerStatus
from tests.integration.broker_stand import hung
from tests.servers import ValkeyServer
from tests.waiting import until

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def client(valkey_server: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    """Valkey, empty before and after the test."""
    async with open_redis(valkey_server.settings()) as client:
        await client.flushdb()
        yield client
        await client.flushdb()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey server that this test may stop and hang."""
    with ValkeyServer(tmp_path) as server:
        yield server


def a_card(name: str, *, version: int = 1) -> ModelCard:
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 4))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    return ModelCard(name=name, version=version, format="onnx", signature=signature, max_batch_size=8)


def a_status(worker: str, *models: str) -> WorkerStatus:
    return WorkerStatus(worker=worker, state=WorkerState.READY, models=models, host="h")


async def test_what_a_worker_announces_is_seen(client: redis.asyncio.Redis) -> None:
    placement = Placement(client)
    assert await placement.cards() == {}
    assert await placement.workers() == []
    await placement.announce(a_status("w1", "a", "org/b"), [a_card("a"), a_card("org/b")])
    await placement.announce(a_status("w2", "a"), [a_card("a", version=2)])
    assert await placement.cards() == {"a": a_card("a", version=2), "org/b": a_card("org/b")}
    workers = sorted(await placement.workers(), key=lambda status: status.worker)
    assert workers == [a_status("w1", "a", "org/b"), a_status("w2", "a")]


async def test_a_worker_that_falls_silent_lapses_and_its_models_stay_known(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.connections.placement.WORKER_TTL_S", 0.2)
    placement = Placement(client)
    await placement.announce(a_status("w1", "a"), [a_card("a")])

    async def lapsed() -> bool:
        return await placement.workers() == []

    await until(lapsed, "the heartbeat to lapse")
    assert list(await placement.cards()) == ["a"]


async def test_a_worker_that_leaves_is_gone_at_once(client: redis.asyncio.Redis) -> None:
    placement = Placement(client)
    await placement.announce(a_status("w1"), [])
    await placement.announce(a_status("w2"), [])
    await placement.leave("w1")
    await placement.leave("w1")
    assert [status.worker for status in await placement.workers()] == ["w2"]


async def test_what_can_not_be_read_is_left_out(client: redis.asyncio.Redis) -> None:
    """Another version may write forms that this one does not know."""
    placement = Placement(client)
    await placement.announce(a_status("w1", "a"), [a_card("a")])
    await client.hset(CARDS_KEY, mapping={"broken": b"\xff{", "other": b'{"name": 5}'})
    await client.set(f"{WORKER_KEY_PREFIX}w2", b'{"worker": "w2", "state": "hibernating"}')
    await client.set(f"{WORKER_KEY_PREFIX}w3", b"\xff")
    assert list(await placement.cards()) == ["a"]
    assert await placement.workers() == [a_status("w1", "a")]


async def test_a_key_of_another_kind_is_unavailable_and_not_a_crash(client: redis.asyncio.Redis) -> None:
    await client.set(CARDS_KEY, b"not a hash")
    placement = Placement(client)
    with pytest.raises(Unavailable):
        await placement.cards()
    with pytest.raises(Unavailable):
        await placement.announce(a_status("w1"), [a_card("a")])


async def test_no_redis_is_unavailable_within_the_deadline(own_server: ValkeyServer) -> None:
    settings = RedisSettings(url=own_server.settings().url, timeout_s=0.3)
    async with open_redis(settings) as client:
        placement = Placement(client)
        await placement.announce(a_status("w1"), [a_card("a")])
        await asyncio.to_thread(own_server.stop)
        await every_call_is_unavailable(placement)
        await asyncio.to_thread(own_server.start)
        assert list(await placement.cards()) in (["a"], [])
        with hung(own_server):
            await every_call_is_unavailable(placement)
        await placement.announce(a_status("w1"), [a_card("a")])
        assert list(await placement.cards()) == ["a"]


async def every_call_is_unavailable(placement: Placement) -> None:
    for attempt in (
        placement.cards(),
        placement.workers(),
        placement.announce(a_status("w1"), [a_card("a")]),
        placement.leave("w1"),
    ):
        async with asyncio.timeout(3):
            with pytest.raises(Unavailable):
                await attempt
