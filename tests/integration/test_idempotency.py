"""Idempotency-Key over real NATS: one job for a key, whichever gateway is asked, and however often."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

import gateway.claims
from gateway.errors import ClientGone
from gateway.submission import Submission
from schemas.errors import Unavailable
from tests.integration.gateway_stand import Stand, another_gateway, standing, until
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration

Standing = Callable[..., AbstractAsyncContextManager[Stand]]
LINES = "\n".join(json.dumps({"inputs": {"x": [[n]]}}) for n in range(5)).encode()
ONE = {"model": "echo", "inputs": {"x": [[1]]}}
OTHER = {"model": "echo", "inputs": {"x": [[2]]}}
KEYED = {"idempotency-key": '"a-key"'}
AS_LINES = {"content-type": "application/jsonl", "idempotency-key": "lines"}


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


@asynccontextmanager
async def two(s: Stand) -> AsyncIterator[list[httpx.AsyncClient]]:
    async with another_gateway(s) as second:
        yield [s.client, second]


async def upload(client: httpx.AsyncClient, body: bytes = LINES) -> httpx.Response:
    return await client.post("/v1/jobs?model=echo", content=body, headers=AS_LINES)


async def test_fifty_at_once_at_two_gateways_are_one_job_and_run_once(stand: Standing) -> None:
    async with stand() as s, two(s) as clients:
        answers = await asyncio.gather(
            *(clients[n % 2].post("/v1/jobs", json=ONE, headers=KEYED) for n in range(50))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.headers["location"] for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        assert (await s.until_final(answers[0].json()["id"]))["state"] == "succeeded"
        assert len(s.seen) == 1


async def test_another_body_is_refused_and_another_tenant_has_another_job(stand: Standing) -> None:
    async with stand() as s:
        mine = await s.client.post("/v1/jobs", json=ONE, headers=KEYED)
        refused = await s.client.post("/v1/jobs", json=OTHER, headers=KEYED)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")
        assert refused.json()["field"] == "Idempotency-Key"
        elsewhere = await s.client.post("/v1/predict", json=ONE, headers=KEYED)
        assert elsewhere.status_code == 422
        other = await s.client.post("/v1/jobs", json=ONE, headers=KEYED | s.other_tenant)
        assert other.status_code == 202
        assert other.headers["location"] != mine.headers["location"]


async def test_a_key_that_is_none_is_refused_and_the_header_named(stand: Standing) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/jobs", json=ONE, headers={"idempotency-key": "two words"})
        assert (answer.status_code, answer.json()["field"]) == (400, "Idempotency-Key")


async def test_a_broker_restarted_in_between_changes_nothing(
    stand: Standing, nats_server: NatsServer
) -> None:
    async with stand() as s:
        first = await s.client.post("/v1/jobs", json=ONE, headers=KEYED)
        await s.until_final(first.json()["id"])
        nats_server.restart(kill=True)
        await s.declare()
        await s.until_ready()
        again = await s.client.post("/v1/jobs", json=ONE, headers=KEYED)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotent-replayed"] == "true"
        await asyncio.sleep(0.2)
        assert len(s.seen) == 1


async def test_what_was_begun_and_not_finished_is_completed_by_the_next(
    stand: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"model": "echo", "items": [{"inputs": {"x": [[n]]}} for n in range(4)]}
    message = Submission.message

    async def dies_at_the_third(self: Submission, *arguments: object, **options: object) -> object:
        if arguments[2] == 2:
            raise Unavailable("the gateway is gone")
        return await message(self, *arguments, **options)  # type: ignore[arg-type]

    async with stand() as s:
        with monkeypatch.context() as patch:
            patch.setattr(Submission, "message", dies_at_the_third)
            assert (await s.client.post("/v1/jobs", json=items, headers=KEYED)).status_code == 503
        await s.until_seen(2)
        answer = await s.client.post("/v1/jobs", json=items, headers=KEYED)
        assert answer.headers["idempotent-replayed"] == "true"
        status = await s.until_final(answer.json()["id"])
        assert (status["state"], status["counts"]["succeeded"]) == ("succeeded", 4)
        assert len(s.seen) == 4


async def test_callers_who_wait_get_one_result_of_one_run(stand: Standing) -> None:
    async with stand() as s, two(s) as clients:
        s.gate = asyncio.Event()
        waiting = [
            asyncio.create_task(clients[n % 2].post("/v1/predict", json=ONE, headers=KEYED))
            for n in range(10)
        ]
        await s.until_seen(1)
        s.gate.set()
        answers = await asyncio.gather(*waiting)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        later = await s.client.post("/v1/predict", json=ONE, headers=KEYED)
        assert (later.content, later.headers["idempotent-replayed"]) == (answers[0].content, "true")
        assert len(s.seen) == 1


async def test_a_stored_failure_is_replayed_as_one(stand: Standing) -> None:
    async with stand() as s:
        slow = ONE | {"timeout_ms": 150}
        s.gate = asyncio.Event()
        assert (await s.client.post("/v1/predict", json=slow, headers=KEYED)).status_code == 504
        s.gate.set()
        await s.until_seen(1)
        answer = await s.client.post("/v1/predict", json=slow, headers=KEYED)
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")


async def test_an_upload_is_replayed_refused_or_a_conflict(stand: Standing) -> None:
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield LINES[:30]
        await go_on.wait()
        yield LINES[30:]

    async with stand() as s, two(s) as clients:
        first = asyncio.create_task(
            clients[0].post("/v1/jobs?model=echo", content=slowly(), headers=AS_LINES)
        )

        async def begun() -> bool:
            return any(subject.startswith("job.") for subject in s.published)

        await until(begun)
        conflict = await upload(clients[1])
        assert (conflict.status_code, conflict.json()["code"]) == (409, "conflict")
        assert 1 <= int(conflict.headers["retry-after"]) <= 120
        go_on.set()
        stored = await first
        assert stored.status_code == 202, stored.text
        again, other = await upload(clients[1]), await upload(clients[1], LINES + b"\n" + LINES)
        assert again.headers["location"] == stored.headers["location"]
        assert again.headers["idempotent-replayed"] == "true"
        assert other.status_code == 422
        assert (await s.until_final(stored.json()["id"]))["counts"]["succeeded"] == 5
        assert len(s.seen) == 5


async def test_an_upload_whose_caller_left_is_taken_over(
    stand: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.claims, "SILENCE_S", 0.3)

    async def breaks_off() -> AsyncIterator[bytes]:
        yield LINES[:60]
        raise ClientGone

    async with stand() as s:
        left = await s.client.post("/v1/jobs?model=echo", content=breaks_off(), headers=AS_LINES)
        assert left.status_code == 499
        answer = await upload(s.client)
        assert answer.status_code == 202, answer.text
        assert (await s.until_final(answer.json()["id"]))["counts"]["succeeded"] == 5
        assert len(s.seen) == 5
