"""What becomes of jobs over HTTP: results by pages, cancelling, and whose they are."""

import asyncio
import secrets
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import gateway.cancellation
from schemas.envelope import Result, encode_reply
from schemas.jobs import ItemState
from schemas.tensors import from_array, to_array
from tests.integration.gateway_stand import echo, standing, until
from tests.integration.test_gateway_jobs import Standing, a_line, results, upload
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration


@pytest.fixture
def stand(nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path) -> Standing:
    return partial(standing, nats_server, valkey_server, tmp_path)


async def test_pages_go_on_where_the_last_one_ended(stand: Standing) -> None:
    async with stand() as s:
        job = await upload(s, [a_line(n) for n in range(25)])
        await s.until_final(job)
        seen: list[int] = []
        page = (await s.client.get(f"/v1/jobs/{job}/results?limit=10")).json()
        while True:
            seen += [one["item"] for one in page["results"]]
            if page["next"] is None:
                break
            assert len(page["results"]) == 10
            page = (await s.client.get(f"/v1/jobs/{job}/results?limit=10&after={page['next']}")).json()
    assert sorted(seen) == list(range(25))


async def test_the_cursor_stays_while_more_may_come(stand: Standing) -> None:
    async with stand() as s:
        s.gate = asyncio.Event()
        job = await upload(s, [a_line(0)])
        page = (await s.client.get(f"/v1/jobs/{job}/results")).json()
        assert page == {"results": [], "next": 0}
        s.gate.set()
        await s.until_final(job)
        page = (await s.client.get(f"/v1/jobs/{job}/results?after={page['next']}")).json()
        assert ([one["item"] for one in page["results"]], page["next"]) == ([0], None)


async def test_large_results_are_fetched_from_the_blob_store(stand: Standing) -> None:
    large = from_array("y", np.arange(50_000, dtype=np.float32))
    async with stand() as s:
        s.behaviour = lambda _: Result(id="x", model="echo", version=3, outputs=(large,))
        job = await upload(s, [a_line(n) for n in range(3)])
        await s.until_final(job)
        for _ in range(2):  # reading does not use them up
            found = await results(s, job)
            assert [len(one["outputs"][0]["data"]) for one in found.values()] == [50_000] * 3
        for blob in s.blobs_folder.rglob("*"):
            if blob.is_file():
                blob.unlink()
        found = await results(s, job)
    assert {one["error"]["code"] for one in found.values()} == {"not_found"}


async def test_cancelling_ends_what_has_not_ended_and_keeps_what_has(stand: Standing) -> None:
    async with stand() as s:
        s.behaviour = lambda request: echo(request) if to_array(request.inputs[0]).item() < 3 else None
        job = await upload(s, [a_line(n) for n in range(700)])

        async def three_ended() -> bool:
            return bool((await s.client.get(f"/v1/jobs/{job}")).json()["counts"]["succeeded"] == 3)

        await until(three_ended)
        answer = await s.client.delete(f"/v1/jobs/{job}")
        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        assert answer.json()["counts"]["cancelled"] == 697
        again = await s.client.delete(f"/v1/jobs/{job}")
        assert again.json() == answer.json()
        found = await results(s, job)
        assert found[0]["state"] == "succeeded"
        assert found[5]["error"]["code"] == "cancelled"
        late = await s.results.write(
            "acme", job, 5, state=ItemState.SUCCEEDED, body=encode_reply(echo(s.seen[0][1])), attempts=1
        )
        assert late is False


async def test_cancelling_a_large_job_answers_before_it_is_done(
    stand: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.cancellation, "PATIENCE_S", 0.01)
    async with stand() as s:
        s.gate = asyncio.Event()
        job = await upload(s, [a_line(n) for n in range(2000)])
        answers = await asyncio.gather(*(s.client.delete(f"/v1/jobs/{job}") for _ in range(3)))
        assert {answer.json()["state"] for answer in answers} <= {"cancelling", "cancelled"}
        status = await s.until_final(job)
    assert (status["state"], status["counts"]["cancelled"]) == ("cancelled", 2000)


async def test_a_job_that_has_ended_can_not_be_cancelled(stand: Standing) -> None:
    async with stand() as s:
        job = await upload(s, [a_line(1)])
        before = await s.until_final(job)
        assert (await s.client.delete(f"/v1/jobs/{job}")).json() == before
        assert (await s.client.get(f"/v1/jobs/{job}")).json() == before


async def test_another_tenants_job_does_not_exist(stand: Standing) -> None:
    async with stand() as s:
        job = await upload(s, [a_line(1)])
        await s.until_final(job)
        other = s.other_tenant
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/results")):
            answer = await s.client.request(method, f"/v1/jobs/{job}{path}", headers=other)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")
        assert (await s.client.get("/v1/jobs", headers=other)).json()["jobs"] == []
        assert (await s.client.get(f"/v1/jobs/{job}")).json()["state"] == "succeeded"


@pytest.mark.parametrize("job", ["x", "..", "*", ">", "a.b", "a" * 10_000, "a" * 32, "ä" * 20, "a b" * 10])
async def test_a_job_that_can_not_be_is_404(stand: Standing, job: str) -> None:
    async with stand() as s:
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/results"):
            if job != "..":
                assert (await s.client.get(path)).status_code == 404


async def test_the_newest_jobs_come_first(stand: Standing) -> None:
    async with stand() as s:
        jobs = [await upload(s, [a_line(n)]) for n in range(4)]
        listed = (await s.client.get("/v1/jobs?limit=3")).json()["jobs"]
    assert [job["id"] for job in listed] == jobs[:0:-1]


async def test_a_job_of_a_direct_publisher_is_known_by_its_result(stand: Standing) -> None:
    async with stand() as s:
        job = secrets.token_hex(16)
        assert (await s.client.get(f"/v1/jobs/{job}")).status_code == 404
        body = encode_reply(Result(id="x", model="echo", version=3, outputs=()))
        await s.results.write("acme", job, 0, state=ItemState.SUCCEEDED, body=body, attempts=1)
        status = (await s.client.get(f"/v1/jobs/{job}")).json()
        page = (await s.client.get(f"/v1/jobs/{job}/results")).json()
        cancelled = await s.client.delete(f"/v1/jobs/{job}")
    assert (status["state"], status["model"], status["counts"]["total"]) == ("succeeded", "echo", 1)
    assert "created_at" not in status
    assert (len(page["results"]), page["next"]) == (1, None)
    assert cancelled.json() == status
