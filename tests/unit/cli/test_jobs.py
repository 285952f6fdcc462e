"""What the commands of `jobs` send to the gateway, what they write, and how they exit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.fake_gateway import FakeGateway
from tests.unit.cli.running import Command

JOB_ID = "job-0123456789abcdef"


def a_job(state: str, **counts: int) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "model": "embedder",
        "state": state,
        "counts": {"total": 3, "pending": 0, **counts},
        "created_at": 0.0,
    }


def test_jsonl_is_uploaded_as_it_is(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/jobs", a_job("queued"), status=202)
    lines = b"".join(b'{"inputs": {"x": [[%d, 0]]}}\n' % i for i in range(50_000))
    (tmp_path / "in.jsonl").write_bytes(lines)
    ended = ask("jobs", "submit", "adder", "--jsonl", "in.jsonl", "--output", "json")
    assert (ended.code, ended.json["id"], ended.err) == (0, JOB_ID, "")
    asked = gateway.asked[-1]
    assert asked.body == lines
    assert asked.query == {"model": "adder"}
    assert asked.headers["content-type"] == "application/jsonl"
    assert asked.headers["transfer-encoding"] == "chunked"


def test_each_file_is_one_item(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/jobs", a_job("queued"), status=202)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert ask("jobs", "submit", "embedder", "a", "b").code == 0
    items = [json.loads(line) for line in gateway.asked[-1].body.splitlines()]
    assert [item["inputs"][0] for item in items] == [
        {"name": "text", "dtype": "bytes", "shape": [1], "base64": base64} for base64 in ("YQ==", "Yg==")
    ]


@pytest.mark.parametrize(
    ("state", "code"),
    [("queued", 0), ("running", 0), ("succeeded", 0), ("failed", 4), ("cancelled", 4), ("expired", 4)],
)
def test_the_exit_code_says_how_a_job_ended(
    ask: Command, gateway: FakeGateway, state: str, code: int
) -> None:
    gateway.answer("GET", f"/v1/jobs/{JOB_ID}", a_job(state))
    ended = ask("jobs", "status", JOB_ID)
    assert (ended.code, state in ended.out) == (code, True)


def test_waiting_asks_until_the_job_has_ended(
    ask: Command, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    for state in ("receiving", "queued", "running", "succeeded"):
        gateway.answer("GET", f"/v1/jobs/{JOB_ID}", a_job(state))
    ended = ask("jobs", "status", JOB_ID, "--wait", "--output", "json")
    assert (ended.code, ended.json["state"]) == (0, "succeeded")
    assert len(gateway.asked) == 4


def test_results_are_copied_as_they_come(ask: Command, gateway: FakeGateway) -> None:
    lines = b'{"item": 0}\n{"item": 1}\n'
    gateway.answer("GET", f"/v1/jobs/{JOB_ID}/results", lines)
    assert ask("jobs", "results", JOB_ID).out.encode() == lines
    assert gateway.asked[-1].headers["accept"] == "application/jsonl"


def test_cancelling_shows_what_became_of_the_job(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("DELETE", f"/v1/jobs/{JOB_ID}", b"", status=204)
    gateway.answer("GET", f"/v1/jobs/{JOB_ID}", a_job("cancelling"))
    ended = ask("jobs", "cancel", JOB_ID)
    assert (ended.code, "cancelling" in ended.out) == (0, True)


def test_jobs_are_listed(ask: Command, gateway: FakeGateway) -> None:
    of_nats = {**a_job("succeeded"), "id": "0" * 32, "created_at": None}
    gateway.answer("GET", "/v1/jobs", {"jobs": [a_job("running", pending=2, cancelled=1), of_nats]})
    shown = ask("jobs", "list").out
    assert JOB_ID in shown
    assert "2 pending, 1 cancelled" in shown
    assert "0" * 32 in shown  # never cut short
