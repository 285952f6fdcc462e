"""What each command sends to the gateway, what it writes, and how it exits."""

import io
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.cli import main
from tests.unit.cli.fake_gateway import FakeGateway

JOB_ID = "job-0123456789abcdef"
TEXT_MODEL = {
    "name": "embedder",
    "version": 1,
    "format": "onnx",
    "description": "",
    "ready": True,
    "workers": 2,
    "max_batch_size": 8,
    "signature": {
        "inputs": [{"name": "text", "dtype": "bytes", "shape": [-1]}],
        "outputs": [{"name": "embedding", "dtype": "float32", "shape": [-1, 384]}],
    },
}
NUMBER_MODEL = {
    **TEXT_MODEL,
    "name": "adder",
    "signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}], "outputs": []},
}
CLASSIFIED = {
    "id": "r1",
    "model": "content-type",
    "version": 1,
    "outputs": [
        {"name": "label", "dtype": "bytes", "shape": [1, 2], "data": [["markdown", "[red]txt"]]},
        {"name": "score", "dtype": "float32", "shape": [1, 2], "data": [[0.98765, "NaN"]]},
    ],
    "timing": {"queue_ms": 0.5, "run_ms": 3.21},
}
EMBEDDED = {
    "id": "r2",
    "model": "embedder",
    "version": 1,
    "outputs": [{"name": "embedding", "dtype": "float32", "shape": [1, 2], "data": [[0.5, 1.5]]}],
    "timing": {},
}


def a_job(state: str, **counts: int) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "model": "embedder",
        "state": state,
        "counts": {"total": 3, "pending": 0, **counts},
        "created_at": 0.0,
    }


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    fake.answer("GET", "/v1/models", {"models": [TEXT_MODEL, NUMBER_MODEL]})
    yield fake
    fake.close()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `model-serving` in an empty folder with no gateway in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL_SERVING_URL", "MODEL_SERVING_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        code = ended.value.code
        written = capsys.readouterr()
        return Ended(code if isinstance(code, int) else 0, written.out, written.err)

    return run


@pytest.fixture
def ask(command: Command, gateway: FakeGateway) -> Command:
    """Runs a command against the fake gateway."""

    def run(*arguments: str) -> Ended:
        return command(*arguments, "--url", gateway.url, "--api-key", "secret-key")

    return run


def test_a_file_is_sent_as_it_is(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/predict", CLASSIFIED)
    (tmp_path / "a.md").write_bytes(b"# \xff")
    assert ask("predict", "content-type", "a.md").code == 0
    asked = gateway.asked[-1]
    assert (asked.query, asked.body) == ({"model": "content-type"}, b"# \xff")
    assert asked.headers["content-type"] == "application/octet-stream"
    assert asked.headers["authorization"] == "Bearer secret-key"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("a.png", "image/png"), ("a.jpg", "image/jpeg"), ("a.json", "application/octet-stream")],
)
def test_an_image_keeps_its_type_and_json_is_no_body_of_ours(
    ask: Command, gateway: FakeGateway, tmp_path: Path, name: str, content_type: str
) -> None:
    gateway.answer("POST", "/v1/predict", CLASSIFIED)
    (tmp_path / name).write_bytes(b"{}")
    ask("predict", "content-type", name)
    assert gateway.asked[-1].headers["content-type"] == content_type


def test_stdin_is_sent_as_it_is(ask: Command, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.answer("POST", "/v1/predict", CLASSIFIED)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert ask("predict", "content-type", "-").code == 0
    assert gateway.asked[-1].body == b"piped"


def test_text_goes_to_the_one_input_that_takes_it(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("POST", "/v1/predict", EMBEDDED)
    assert ask("predict", "embedder", "--text", "hällo").code == 0
    assert gateway.asked[-1].json == {"model": "embedder", "inputs": {"text": ["hällo"]}}


def test_text_for_a_model_of_numbers_is_a_usage_error(ask: Command) -> None:
    ended = ask("predict", "adder", "--text", "hello")
    assert ended.code == 2
    assert "adder takes x (float32), not text" in ended.err


@pytest.mark.parametrize("text", ['{"x": [[1, 2]]}', '{"inputs": {"x": [[1, 2]]}, "model": "other"}'])
def test_json_may_be_inputs_or_a_whole_body(ask: Command, gateway: FakeGateway, text: str) -> None:
    gateway.answer("POST", "/v1/predict", EMBEDDED)
    assert ask("predict", "adder", "--json", text).code == 0
    assert gateway.asked[-1].json == {"model": "adder", "inputs": {"x": [[1, 2]]}}


def test_a_timeout_becomes_the_deadline(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/predict", EMBEDDED)
    ask("predict", "adder", "--json", "[]", "--timeout", "1.5")
    assert gateway.asked[-1].json["timeout_ms"] == 1500
    (tmp_path / "a").write_bytes(b"x")
    ask("predict", "adder", "a", "--timeout", "1.5")
    assert gateway.asked[-1].query["timeout_ms"] == "1500"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "m"],
        ["predict", "m", "a", "--text", "b"],
        ["predict", "m", "--json", "{nonsense"],
        ["predict", "m", "no-such-file"],
        ["predict", "m", "--text", "a", "--timeout", "0"],
        ["jobs", "submit", "m"],
        ["jobs", "submit", "m", "no-such-file"],
        ["jobs", "status", "../models"],
        ["jobs", "status"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2_and_asks_nothing(
    ask: Command, gateway: FakeGateway, arguments: Sequence[str]
) -> None:
    ended = ask(*arguments)
    assert ended.code == 2
    assert ended.err
    assert gateway.asked == []


def test_labels_and_scores_are_a_table(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/predict", CLASSIFIED)
    (tmp_path / "a").write_bytes(b"x")
    shown = ask("predict", "content-type", "a").out
    assert "content-type, version 1" in shown
    assert "markdown" in shown
    assert "0.9877" in shown
    assert "[red]txt" in shown
    assert "NaN" in shown
    assert "queue 0.5 ms, run 3.2 ms, request r1" in shown


def test_other_outputs_are_json(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("POST", "/v1/predict", EMBEDDED)
    assert ask("predict", "embedder", "--text", "a").json == EMBEDDED


def test_output_json_is_the_answer_unchanged(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/predict", CLASSIFIED)
    (tmp_path / "a").write_bytes(b"x")
    assert ask("predict", "content-type", "a", "--output", "json").json == CLASSIFIED


def test_a_refusal_shows_detail_field_and_request_id(ask: Command, gateway: FakeGateway) -> None:
    problem = {
        "title": "Invalid input",
        "status": 400,
        "detail": "must be float32",
        "code": "invalid_input",
        "request_id": "r-77",
        "field": "inputs[0].dtype",
    }
    gateway.answer("POST", "/v1/predict", problem, status=400, Retry_After="7")
    ended = ask("predict", "adder", "--json", "[]")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "model-serving: must be float32 (invalid_input, HTTP 400)\n"
        "  field: inputs[0].dtype\n  try again in: 7 s\n  request id: r-77\n"
    )


def test_an_error_that_is_no_problem_document_is_still_one_line(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("POST", "/v1/predict", b"<html>", status=502)
    ended = ask("predict", "adder", "--json", "[]")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "HTTP 502" in ended.err


def test_an_answer_that_is_no_json_is_refused(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("POST", "/v1/predict", b"<html>")
    assert ask("predict", "adder", "--json", "[]").code == 1


def test_a_gateway_that_is_not_there_exits_with_3(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = command("models", "list", "--url", f"http://127.0.0.1:{port}")
    assert ended.code == 3
    assert f"cannot connect to http://127.0.0.1:{port}" in ended.err


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://[", "http://host:port"])
def test_an_address_that_is_none_does_not_end_in_a_traceback(command: Command, url: str) -> None:
    ended = command("models", "list", "--url", url)
    assert ended.code in {2, 3}
    assert ended.err.startswith("model-serving: ")


def test_without_a_gateway_the_message_says_how_to_start_one(command: Command) -> None:
    ended = command("models", "list")
    assert ended.code == 3
    assert "model-serving up" in ended.err


def test_models_are_listed(ask: Command) -> None:
    shown = ask("models", "list").out
    assert "embedder" in shown
    assert "text: bytes ?" in shown
    assert "embedding: float32 ?x384" in shown
    assert ask("models", "list", "--output", "json").json == [TEXT_MODEL, NUMBER_MODEL]


def test_jsonl_is_uploaded_as_it_is(ask: Command, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("POST", "/v1/jobs", a_job("queued"), status=202)
    lines = b"".join(b'{"inputs": {"x": [[%d, 0]]}}\n' % i for i in range(50_000))
    (tmp_path / "in.jsonl").write_bytes(lines)
    ended = ask("jobs", "submit", "adder", "--jsonl", "in.jsonl", "--output", "json")
    assert (ended.code, ended.json["id"]) == (0, JOB_ID)
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
    gateway.answer("GET", "/v1/jobs", {"jobs": [a_job("running", pending=2)]})
    assert JOB_ID in ask("jobs", "list").out


@pytest.mark.parametrize(
    "arguments", [[], ["up"], ["predict"], ["jobs"], ["jobs", "submit"], ["models"], ["worker"], ["check"]]
)
def test_every_command_explains_itself(command: Command, arguments: Sequence[str]) -> None:
    ended = command(*arguments, "--help")
    assert (ended.code, "Usage: model-serving" in ended.out) == (0, True)


def test_help_names_the_exit_codes(command: Command) -> None:
    assert "4 the job" in command("--help").out
