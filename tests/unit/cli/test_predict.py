"""What `predict` sends to the gateway, and how it shows the answer."""

import io
from pathlib import Path

import pytest

from tests.unit.cli.fake_gateway import FakeGateway
from tests.unit.cli.running import Command

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
