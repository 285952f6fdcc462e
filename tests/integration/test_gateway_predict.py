"""The predict route over real NATS and Valkey, with a small worker of the tests' own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from infra.connections.clients import open_redis
from infra.connections.settings import StreamSettings
from schemas.envelope import InferRequest, Result, decode_reply
from schemas.errors import InvalidInput, ModelFailed
from schemas.placement import CARDS_KEY, WORKER_KEY_PREFIX
from schemas.tensors import from_array, unpack_bytes
from tests.integration.gateway_stand import ECHO, Stand, standing, until
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration

Standing = Callable[..., AbstractAsyncContextManager[Stand]]
ONE = {"model": "echo", "inputs": {"x": [[1, 2]]}}


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


async def test_json_is_answered_with_json(stand: Standing) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/predict", json=ONE)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["outputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 2], "data": [[1.0, 2.0]]}]
        assert body.keys() == {"id", "model", "version", "outputs", "timing"}
        headers, _ = s.seen[0]
        assert (headers.tenant, headers.job) == ("acme", None)
        assert headers.id == answer.headers["x-request-id"]


async def test_msgpack_in_and_out(stand: Standing) -> None:
    tensor = from_array("x", np.array([[3.5]], dtype=np.float32))
    body = msgpack.packb(
        {
            "model": "echo",
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 1], "data": tensor.data}],
        }
    )
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    async with stand() as s:
        answer = await s.client.post("/v1/predict", content=body, headers=headers)
    reply = decode_reply(answer.content)
    assert isinstance(reply, Result)
    assert reply.outputs == (tensor,)


async def test_a_plain_body_reaches_the_model_whole_also_when_it_is_large(stand: Standing) -> None:
    async with stand() as s:
        for size in (10, 300_000):
            answer = await s.client.post(
                "/v1/predict?model=org/files.v1", content=bytes(size), headers={"content-type": "image/png"}
            )
            assert answer.status_code == 200, answer.text
            assert unpack_bytes(s.seen[-1][1].inputs[0].data) == [bytes(size)]
        blobs = [p for p in s.blobs_folder.rglob("*") if p.is_file()]
    assert len(blobs) <= 2  # deleted in the background, at the latest when the gateway stops
    assert not [p for p in s.blobs_folder.rglob("*") if p.is_file()]


async def test_floats_that_are_not_finite_come_as_strings(stand: Standing) -> None:
    def odd(request: InferRequest) -> Result:
        output = from_array("y", np.array([np.nan, np.inf, -np.inf, 1], dtype=np.float64))
        return Result(id="x", model="echo", version=3, outputs=(output,))

    async with stand() as s:
        s.behaviour = odd
        answer = await s.client.post("/v1/predict", json=ONE)
    assert answer.json()["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity", 1.0]


async def test_a_failure_of_the_worker_becomes_the_status_of_its_code(stand: Standing) -> None:
    async with stand() as s:
        s.behaviour = lambda _: InvalidInput("expected [-1, 4], got [1, 2]", field="inputs.x.shape")
        refused = await s.client.post("/v1/predict", json=ONE)
        s.behaviour = lambda _: ModelFailed("the model raised")
        failed = await s.client.post("/v1/predict", json=ONE)
    assert (refused.status_code, refused.json()["field"]) == (400, "inputs.x.shape")
    assert "expected [-1, 4], got [1, 2]" in refused.json()["detail"]
    assert (failed.status_code, failed.json()["code"]) == (500, "model_error")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nope", "inputs": {"x": [[1]]}}, 404, "unknown_model"),
        ({"model": "echo", "version": 9, "inputs": {"x": [[1]]}}, 404, "unknown_model"),
        ({"model": "echo", "inputs": {"x": [[1]]}, "unknwon": 1}, 400, "invalid_input"),
        ({"model": "echo", "inputs": {}}, 400, "invalid_input"),
    ],
)
async def test_what_is_wrong_is_a_problem_with_a_code(
    stand: Standing, body: dict[str, Any], status: int, code: str
) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/predict", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Body" not in problem["detail"]  # no name of a class of ours


async def test_tokens_that_are_not_json_are_refused(stand: Standing) -> None:
    async with stand() as s:
        for token in (b"NaN", b"Infinity", b"-Infinity"):
            body = b'{"model": "echo", "inputs": {"x": [[%s]]}}' % token
            answer = await s.client.post(
                "/v1/predict", content=body, headers={"content-type": "application/json"}
            )
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_and_names_the_limit(stand: Standing, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(100)

    async with stand(max_body_bytes=2048) as s:
        content: Any = chunks() if chunked else bytes(4000)
        answer = await s.client.post(
            "/v1/predict", content=content, headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "2048" in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "image/png"},
    ],
)
async def test_a_type_that_is_not_read_is_415(stand: Standing, headers: dict[str, str]) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/predict?model=echo", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


HOSTILE = [
    "*",
    ">",
    "a.>",
    "a b",
    "..",
    "../../etc/passwd",
    "a/b/c",
    "$JS.API.STREAM.PURGE.INFER",
    "_INBOX.x",
]
HOSTILE += [
    "\u0430pple",
    "a\u202eb",
    "a\nb",
    "a\r\nb",
    "a\x00b",
    "a\tb",
    "x" * 300,
    "",
    " ",
    "%2e%2e%2f",
    "a\\b",
]


async def test_a_hostile_model_name_never_becomes_a_foreign_subject(stand: Standing) -> None:
    async with stand() as s:
        s.published.clear()
        for name in HOSTILE:
            asked = [
                await s.client.post("/v1/predict", json={"model": name, "inputs": {"x": [[1]]}}),
                await s.client.post(
                    "/v1/predict", params={"model": name}, content=b"x", headers={"content-type": "image/png"}
                ),
                await s.client.post("/v1/jobs", json={"model": name, "inputs": {"x": [[1]]}}),
                await s.client.post(
                    "/v1/jobs",
                    params={"model": name},
                    content=b"x",
                    headers={"content-type": "application/jsonl"},
                ),
                await s.client.get(
                    "/v1/models/"
                    + name.replace("\x00", "%00")
                    .replace("\n", "%0a")
                    .replace("\r", "%0d")
                    .replace("\t", "%09")
                ),
            ]
            codes = {answer.status_code for answer in asked[:4]}
            assert codes <= {400, 404}, (name, [a.text for a in asked])
            assert asked[4].status_code in (200, 400, 404), (name, asked[4].text)  # 200: `..` is the list
        assert s.published == []


async def test_a_request_that_is_not_answered_in_time_is_504(stand: Standing) -> None:
    async with stand() as s:
        s.behaviour = lambda _: None
        answer = await s.client.post("/v1/predict", json=ONE | {"timeout_ms": 100})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


async def test_the_lane_follows_the_priority(stand: Standing) -> None:
    async with stand() as s:
        s.published.clear()
        for lane in ("live", "interactive", "batch"):
            answer = await s.client.post("/v1/predict", json=ONE | {"priority": lane})
            assert answer.status_code == 200
    assert s.published == ["infer.echo.live", "infer.echo.interactive", "infer.echo.batch"]


async def test_many_callers_each_get_their_own_answer(stand: Standing) -> None:
    async with stand() as s:
        bodies = [{"model": "echo", "inputs": {"x": [[n]]}} for n in range(200)]
        answers = await asyncio.gather(*(s.client.post("/v1/predict", json=body) for body in bodies))
    assert [a.json()["outputs"][0]["data"][0][0] for a in answers] == [float(n) for n in range(200)]


async def test_respond_async_answers_202_at_once_and_the_result_later(stand: Standing) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/predict", json=ONE, headers={"prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "respond-async"
        assert int(answer.headers["retry-after"]) >= 1
        location = answer.headers["location"]
        assert location == f"/v1/jobs/{answer.json()['id']}"
        status = await s.until_final(answer.json()["id"])
        assert status["result"]["outputs"][0]["data"] == [[1.0, 2.0]]
        assert "retry-after" not in (await s.client.get(location)).headers
        headers, _ = s.seen[0]
        assert (headers.job, headers.item, headers.id) == (answer.json()["id"], 0, f"{headers.job}.0")


async def test_wait_answers_200_if_it_is_quick(stand: Standing) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/predict", json=ONE, headers={"prefer": "wait=10"})
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=10"
    assert answer.headers["content-location"].startswith("/v1/jobs/")
    assert answer.json()["outputs"][0]["data"] == [[1.0, 2.0]]


async def test_wait_turns_into_202_for_the_same_running_request(stand: Standing) -> None:
    async with stand() as s:
        go = asyncio.Event()
        s.gate = go
        answer = await s.client.post("/v1/predict", json=ONE, headers={"prefer": "wait=0.1"})
        assert answer.status_code == 202
        job = answer.json()["id"]
        waiting = (await s.client.get(f"/v1/jobs/{job}")).json()
        assert (waiting["state"], waiting["counts"]["pending"]) == ("queued", 1)
        go.set()
        assert (await s.until_final(job))["state"] == "succeeded"
    assert len(s.seen) == 1


async def test_no_streams_is_503_with_retry_after(stand: Standing) -> None:
    async with stand(declare=False) as s:
        for headers in ({}, {"prefer": "respond-async"}):
            answer = await s.client.post("/v1/predict", json=ONE, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_full_queue_is_429_at_once(stand: Standing) -> None:
    limits = StreamSettings(max_requests=2, max_bytes=64 << 20, results_max_bytes=64 << 20, max_ack_pending=1)
    async with stand(stream_settings=limits) as s:
        s.behaviour = lambda _: None
        body = ONE | {"timeout_ms": 1500}
        waiting = [asyncio.create_task(s.client.post("/v1/predict", json=body)) for _ in range(2)]
        await s.until_seen(1)
        answer = await s.client.post("/v1/predict", json=body)
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert {(await w).status_code for w in waiting} == {504}


async def test_a_broker_that_restarts_while_callers_wait_costs_them_nothing(
    stand: Standing, nats_server: NatsServer
) -> None:
    async with stand() as s:
        s.gate = asyncio.Event()
        body = ONE | {"timeout_ms": 20_000}
        waiting = [asyncio.create_task(s.client.post("/v1/predict", json=body)) for _ in range(5)]
        await s.until_seen(1)
        nats_server.stop(kill=True)
        assert (await s.client.get("/health")).status_code == 200
        nats_server.start()
        s.gate.set()
        await s.declare()
        answers = [await answer for answer in waiting]
    assert [answer.status_code for answer in answers] == [200] * 5


async def test_a_broker_that_stays_away_is_503_and_not_ready(
    stand: Standing, nats_server: NatsServer
) -> None:
    async with stand() as s:
        s.gate = asyncio.Event()
        waiting = asyncio.create_task(s.client.post("/v1/predict", json=ONE))
        await s.until_seen(1)
        nats_server.stop(kill=True)
        try:
            lost = await waiting
            refused = await s.client.post("/v1/predict", json=ONE)
            ready = await s.client.get("/health/ready")
            live = await s.client.get("/health/live")
        finally:
            nats_server.start()
        assert (lost.status_code, refused.status_code) == (503, 503)
        assert int(lost.headers["retry-after"]) >= 1
        assert (ready.status_code, live.status_code) == (503, 200)
        assert ready.json()["checks"]["nats"] == "disconnected"
        await s.until_ready()
        await s.declare()


async def test_redis_gone_changes_nothing_for_known_models(
    stand: Standing, valkey_server: ValkeyServer
) -> None:
    async with stand() as s:
        valkey_server.stop(kill=True)
        try:
            answer = await s.client.post("/v1/predict", json=ONE)
            unknown = await s.client.post("/v1/predict", json=ONE | {"model": "nope"})
        finally:
            valkey_server.start()
    assert answer.status_code == 200
    assert unknown.status_code == 404


async def test_placement_that_can_not_be_read_is_left_out(
    stand: Standing, valkey_server: ValkeyServer
) -> None:
    async with open_redis(valkey_server.settings()) as redis, stand() as s:
        await redis.set(f"{WORKER_KEY_PREFIX}from-the-future", b'{"state": "dreaming"}')
        await redis.hset(CARDS_KEY, "odd", b"not json")
        await redis.hset(CARDS_KEY, "late", ECHO.model_copy(update={"name": "late"}).model_dump_json())

        async def seen() -> bool:
            return (await s.client.get("/v1/models/late")).status_code == 200

        await until(seen)
        health = (await s.client.get("/health")).json()
        assert health["checks"]["redis"] == "ok"
        assert health["models_loaded"] == ["echo", "org/files.v1"]


async def test_the_openapi_document_describes_every_body(stand: Standing) -> None:
    async with stand() as s:
        document = (await s.client.get("/schema/openapi.json")).json()
        page = await s.client.get("/schema")
    assert page.headers["content-type"].startswith("text/html")
    predict = document["paths"]["/v1/predict"]["post"]
    assert {"application/json", "application/msgpack", "image/*"} <= predict["requestBody"]["content"].keys()
    assert {"200", "202", "400", "404", "413", "415", "429", "503", "504"} <= predict["responses"].keys()
    assert "application/jsonl" in document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert text.count(f'"#/components/schemas/{name}"') >= 1 or name == "JobItem", name
    wanted = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert wanted <= document["components"]["schemas"].keys()


async def test_metrics_name_known_models_only(stand: Standing) -> None:
    async with stand() as s:
        await s.client.post("/v1/predict", json=ONE)
        await s.client.post("/v1/predict", json=ONE | {"model": "made-up-name"})
        text = (await s.client.get("/metrics")).text
    assert 'model_serving_requests_total{model="echo",outcome="success",route="/v1/predict"}' in text
    assert 'model_serving_requests_total{model="unknown",outcome="client_error",route="/v1/predict"}' in text
    assert "made-up-name" not in text
