"""Jobs over real NATS: submitted in every form, asked for, read, cancelled, and nobody else's business."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.connections.clients import Role, open_nats
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.settings import StreamSettings
from schemas.envelope import InferRequest, Result
from schemas.errors import InferenceError, ModelFailed
from schemas.jobs import ItemState
from schemas.tensors import to_array
from tests.integration.gateway_stand import Stand, echo, standing
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration


Standing = Callable[..., AbstractAsyncContextManager[Stand]]


JSONL = {"content-type": "application/jsonl"}


AS_LINES = {"accept": "application/jsonl"}


SMALL = StreamSettings(max_requests=5, max_bytes=64 << 20, results_max_bytes=64 << 20)


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


def a_line(number: float) -> str:
    return json.dumps({"inputs": {"x": [[number]]}})


async def upload(s: Stand, lines: Iterable[str], *, model: str = "echo") -> str:
    answer = await s.client.post("/v1/jobs", params={"model": model}, content="\n".join(lines), headers=JSONL)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def results(s: Stand, job: str) -> dict[int, dict[str, Any]]:
    answer = await s.client.get(f"/v1/jobs/{job}/results", headers=AS_LINES)
    assert answer.headers["content-type"] == "application/jsonl"
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert len({one["item"] for one in found}) == len(found)
    return {one["item"]: one for one in found}


async def test_a_job_of_one_input_holds_its_result(stand: Standing) -> None:
    async with stand() as s:
        body = {"model": "echo", "inputs": {"x": [[1]]}, "metadata": {"for": "me"}}
        answer = await s.client.post("/v1/jobs", json=body)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        status = await s.until_final(answer.json()["id"])
    assert (status["state"], status["metadata"]) == ("succeeded", {"for": "me"})
    assert status["result"]["outputs"][0]["data"] == [[1.0]]
    assert status["counts"] == {
        "total": 1,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
        "expired": 0,
        "pending": 0,
    }


async def test_a_job_of_many_items_keeps_them_apart(stand: Standing) -> None:
    async with stand() as s:
        items = [{"inputs": {"x": [[n]]}} for n in range(30)]
        answer = await s.client.post("/v1/jobs", json={"model": "echo", "items": items})
        status = await s.until_final(answer.json()["id"])
        found = await results(s, answer.json()["id"])
    assert (status["counts"]["succeeded"], "result" in status) == (30, False)
    assert {item: one["outputs"][0]["data"] for item, one in found.items()} == {
        n: [[float(n)]] for n in range(30)
    }
    assert {headers.id for headers, _ in s.seen} == {f"{answer.json()['id']}.{n}" for n in range(30)}


async def test_an_item_that_fails_says_why(stand: Standing) -> None:
    def picky(request: InferRequest) -> Result | InferenceError:
        odd = to_array(request.inputs[0]).item() % 2
        return ModelFailed("odd numbers hurt") if odd else echo(request)

    async with stand() as s:
        s.behaviour = picky
        job = await upload(s, [a_line(n) for n in range(4)])
        status = await s.until_final(job)
        found = await results(s, job)
    assert (status["state"], status["counts"]["failed"]) == ("failed", 2)
    assert found[1]["error"] == {"code": "model_error", "message": "odd numbers hurt", "retryable": False}
    assert found[1].keys() == {"item", "state", "attempts", "error"}


async def test_bad_lines_fail_alone_and_say_where(stand: Standing) -> None:
    lines = [
        a_line(0),
        "",
        "not json",
        '{"inputs": {"x": [["a"]]}}',
        '{"inputs": {"x": [[1]]}, "color": "red"}',
        "[1]",
        a_line(5),
        '{"inputs": {"x": [[' + "1," * 2000 + "1]]}}",
        '{"inputs": {"x": [[NaN]]}}',
    ]
    async with stand(max_line_bytes=1024) as s:
        job = await upload(s, lines)
        status = await s.until_final(job)
        found = await results(s, job)
    assert (status["counts"]["total"], status["counts"]["succeeded"], status["counts"]["failed"]) == (8, 2, 6)
    said = {
        item: (one["error"]["message"].partition(":")[0], one["error"].get("field"))
        for item, one in found.items()
        if "error" in one
    }
    assert said == {
        1: ("line 3", "body"),
        2: ("line 4", "inputs[0].data"),
        3: ("line 5", "color"),
        4: ("line 6", "body"),
        6: ("line 8", "body"),
        7: ("line 9", "body"),
    }
    assert found[6]["error"]["code"] == "too_large"
    assert "1024" in found[6]["error"]["message"]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
async def test_an_upload_without_a_line_is_refused(stand: Standing, content: str) -> None:
    async with stand() as s:
        answer = await s.client.post("/v1/jobs?model=echo", content=content, headers=JSONL)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


async def test_more_lines_than_allowed_are_refused_and_the_job_is_cancelled(stand: Standing) -> None:
    async with stand(max_job_items=3) as s:
        answer = await s.client.post(
            "/v1/jobs?model=echo", content="\n".join(map(a_line, range(9))), headers=JSONL
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        (job,) = (await s.client.get("/v1/jobs")).json()["jobs"]
        await s.until_final(job["id"])


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_over_its_limit_of_bytes_is_413(stand: Standing, announced: bool) -> None:
    text = "\n".join(map(a_line, range(1000))).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), 500):
            yield text[start : start + 500]

    async with stand(max_upload_bytes=4096, max_body_bytes=1024) as s:
        content: Any = text if announced else chunks()
        answer = await s.client.post("/v1/jobs?model=echo", content=content, headers=JSONL)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert "4096" in answer.json()["detail"]
        small = await s.client.post(
            "/v1/jobs?model=echo", content=text[:2000].rpartition(b"\n")[0], headers=JSONL
        )
        assert small.status_code == 202  # over the limit of other bodies, within that of uploads
        whole = await s.client.post(
            "/v1/jobs", json={"model": "echo", "items": [{"inputs": {"x": [[1] * 999]}}]}
        )
        assert whole.status_code == 413


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/jobs", JSONL, 400),
        ("/v1/jobs?model=nope", JSONL, 404),
        ("/v1/jobs?model=echo&version=9", JSONL, 404),
        ("/v1/jobs?model=echo&lane=x", JSONL, 400),
        ("/v1/jobs?model=echo&timeout_ms=0", JSONL, 400),
        ("/v1/jobs?model=echo", {"content-type": "text/csv"}, 415),
        ("/v1/jobs?model=echo", JSONL | {"content-encoding": "gzip"}, 415),
    ],
)
async def test_an_upload_that_says_it_wrong_is_refused_before_a_job_exists(
    stand: Standing, path: str, headers: dict[str, str], status: int
) -> None:
    async with stand() as s:
        answer = await s.client.post(path, content=a_line(1), headers=headers)
        assert answer.status_code == status, answer.text
        assert (await s.client.get("/v1/jobs")).json()["jobs"] == []


async def test_a_job_of_whole_bodies_is_refused_whole(stand: Standing) -> None:
    async with stand(max_job_items=2) as s:
        bad = {"model": "echo", "items": [{"inputs": {"x": [[1]]}}, {"inputs": {"x": [["a"]]}}]}
        many = {"model": "echo", "items": [{"inputs": {"x": [[1]]}}] * 3}
        refused = await s.client.post("/v1/jobs", json=bad)
        too_many = await s.client.post("/v1/jobs", json=many)
        assert (refused.status_code, refused.json()["field"]) == (400, "items[1].inputs[0].data")
        assert too_many.status_code == 413
        assert (await s.client.get("/v1/jobs")).json()["jobs"] == []


async def test_thousands_of_lines_arrive_each_once(stand: Standing) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        text = "".join(a_line(n) + "\n" for n in range(3000)).encode()
        for start in range(0, len(text), 1013):
            yield text[start : start + 1013]

    async with stand() as s:
        answer = await s.client.post("/v1/jobs?model=echo", content=chunks(), headers=JSONL)
        status = await s.until_final(answer.json()["id"])
        found = await results(s, answer.json()["id"])
    assert status["counts"]["succeeded"] == 3000
    assert {item: one["outputs"][0]["data"][0][0] for item, one in found.items()} == {
        n: n for n in range(3000)
    }


async def test_another_gateway_counts_all_of_a_large_job(stand: Standing, nats_server: NatsServer) -> None:
    async with stand() as s:
        job = await upload(s, [a_line(n) for n in range(2300)])
        await s.until_final(job)
        async with open_nats(nats_server.settings("gateway"), Role.GATEWAY) as connection:
            requests = Requests(connection, timeout_s=5)
            await requests.open()
            results = Results(connection, requests, timeout_s=5)
            assert await results.counts("acme", job) == {ItemState.SUCCEEDED: 2300}
            assert {item async for item in results.items("acme", job)} == set(range(2300))


async def test_a_full_queue_makes_an_upload_wait(stand: Standing) -> None:
    async with stand(stream_settings=SMALL) as s:
        s.gate = asyncio.Event()
        uploading = asyncio.create_task(upload(s, [a_line(n) for n in range(40)]))
        await s.until_seen(1)
        await asyncio.sleep(0.3)  # time in which it could go wrong
        assert not uploading.done()
        s.gate.set()
        status = await s.until_final(await uploading)
    assert status["counts"]["succeeded"] == 40


async def test_a_queue_that_stays_full_is_429_and_the_job_is_cancelled(stand: Standing) -> None:
    async with stand(stream_settings=SMALL, upload_patience_s=0.2) as s:
        s.gate = asyncio.Event()
        answer = await s.client.post(
            "/v1/jobs?model=echo", content="\n".join(map(a_line, range(40))), headers=JSONL
        )
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        (job,) = (await s.client.get("/v1/jobs")).json()["jobs"]
        assert (await s.until_final(job["id"]))["state"] == "cancelled"


async def test_a_full_queue_refuses_a_whole_job_at_once(stand: Standing) -> None:
    async with stand(stream_settings=SMALL) as s:
        s.gate = asyncio.Event()
        items = [{"inputs": {"x": [[n]]}} for n in range(20)]
        answer = await s.client.post("/v1/jobs", json={"model": "echo", "items": items})
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")


async def test_no_streams_is_503(stand: Standing) -> None:
    async with stand(declare=False) as s:
        answer = await s.client.post("/v1/jobs?model=echo", content=a_line(1), headers=JSONL)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        for path in ("/v1/jobs", f"/v1/jobs/{'a' * 32}", f"/v1/jobs/{'a' * 32}/results"):
            answer = await s.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text


async def test_a_client_that_leaves_in_the_middle_of_its_upload_leaves_a_cancelled_job(
    stand: Standing,
) -> None:
    async with stand() as s:
        chunks = [f"{a_line(n)}\n".encode() for n in range(10)]
        statuses: list[int] = []

        async def receive() -> Any:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": True}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        headers = [(b"authorization", s.client.headers["authorization"].encode())]
        scope: Any = {
            "type": "http",
            "method": "POST",
            "path": "/v1/jobs",
            "raw_path": b"/v1/jobs",
            "root_path": "",
            "query_string": b"model=echo",
            "headers": [*headers, (b"content-type", b"application/jsonl")],
            "http_version": "1.1",
            "scheme": "http",
            "client": None,
            "server": ("x", 80),
            "extensions": {},
        }
        await s.front(scope, receive, send)
        assert all(status < 500 for status in statuses)
        (job,) = (await s.client.get("/v1/jobs")).json()["jobs"]
        status = await s.until_final(job["id"])
        assert status["counts"]["total"] == 10
        text = (await s.client.get("/metrics")).text
    assert 'outcome="cancelled",route="/v1/jobs"' in text
    assert 'outcome="error",route="/v1/jobs",model="echo"' not in text
