"""Jobs end to end: many lines, bad lines, workers and brokers that die meanwhile."""

import json
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.stack import Stack
from tests.servers import wait_until

pytestmark = pytest.mark.e2e

FINAL = ("succeeded", "failed", "cancelled", "expired")


def line(number: int) -> str:
    return json.dumps({"inputs": {"x": [[float(number), 1.0, 2.0, 3.0]]}})


def upload(http: httpx.Client, lines: list[str]) -> str:
    answer = http.post(
        "/v1/jobs?model=identity",
        content="\n".join(lines).encode(),
        headers={"Content-Type": "application/jsonl"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(http: httpx.Client, job: str, *, within_s: float = 90) -> dict[str, Any]:
    wait_until(lambda: status(http, job).get("state") in FINAL, "the job to end", timeout_s=within_s)
    return status(http, job)


def status(http: httpx.Client, job: str) -> dict[str, Any]:
    """The job's status; empty while the gateway or the broker is away."""
    try:
        answer = http.get(f"/v1/jobs/{job}")
    except httpx.HTTPError:
        return {}
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


def results(http: httpx.Client, job: str) -> dict[int, dict[str, Any]]:
    lines = http.get(f"/v1/jobs/{job}/results", headers={"Accept": "application/jsonl"}).text.splitlines()
    found = [json.loads(one) for one in lines]
    assert len({one["item"] for one in found}) == len(found)
    return {one["item"]: one for one in found}


def first_number(result: dict[str, Any]) -> float:
    return float(result["outputs"][0]["data"][0][0])


def test_every_line_gets_its_own_answer(http: httpx.Client) -> None:
    job = upload(http, [line(n) for n in range(2000)])
    assert ended(http, job)["counts"]["succeeded"] == 2000
    found = results(http, job)
    assert {item: first_number(result) for item, result in found.items()} == {
        n: float(n) for n in range(2000)
    }


def test_a_bad_line_fails_alone_and_says_where(http: httpx.Client) -> None:
    job = upload(http, [line(0), "not json", line(2), '{"inputs": {"x": [[1, 2]]}}', line(4)])
    assert ended(http, job)["counts"] | {} == {
        "total": 5,
        "succeeded": 3,
        "failed": 2,
        "cancelled": 0,
        "expired": 0,
        "pending": 0,
    }
    found = results(http, job)
    assert "line 2" in json.dumps(found[1]["error"])
    assert "expected float32" in json.dumps(found[3]["error"])


def test_a_worker_killed_in_the_middle_loses_nothing(stack: Stack, http: httpx.Client) -> None:
    job = upload(http, [line(n) for n in range(3000)])
    wait_until(lambda: status(http, job)["state"] == "running", "the first answers")
    workers = stack.find("workers")
    workers[0].kill()
    assert ended(http, job)["counts"]["succeeded"] == 3000
    assert len(results(http, job)) == 3000
    wait_until(lambda: "identity" in http.get("/health").json()["models_loaded"], "the worker to be back")


def test_a_broker_killed_in_the_middle_loses_nothing(stack: Stack, http: httpx.Client) -> None:
    job = upload(http, [line(n) for n in range(3000)])
    wait_until(lambda: status(http, job).get("state") == "running", "the first answers")
    broker = next(p for p in stack.processes() if "nats-server" in p.name())
    broker.kill()
    psutil.wait_procs([broker], timeout=10)
    assert ended(http, job)["counts"]["succeeded"] == 3000
    wait_until(lambda: http.get("/health/ready").status_code == 200, "the gateway to be ready")
    body = {"model": "identity", "inputs": {"x": [[1, 2, 3, 4]]}}
    wait_until(lambda: http.post("/v1/predict", json=body).status_code == 200, "a live answer")


def test_a_cancelled_job_ends_cancelled_and_stays_so(http: httpx.Client) -> None:
    job = upload(http, [line(n) for n in range(5000)])
    assert http.delete(f"/v1/jobs/{job}").status_code == 200
    first = ended(http, job)
    assert first["state"] in ("cancelled", "succeeded")
    assert sum(first["counts"][state] for state in FINAL) == 5000
    assert status(http, job)["counts"] == first["counts"]
