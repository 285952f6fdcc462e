"""What is common to all commands: usage, refusals, connections, help."""

import socket
from collections.abc import Sequence

import pytest

from tests.unit.cli.fake_gateway import FakeGateway
from tests.unit.cli.running import NUMBER_MODEL, TEXT_MODEL, Command


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


@pytest.mark.parametrize(
    "arguments", [[], ["up"], ["predict"], ["jobs"], ["jobs", "submit"], ["models"], ["worker"], ["check"]]
)
def test_every_command_explains_itself(command: Command, arguments: Sequence[str]) -> None:
    ended = command(*arguments, "--help")
    assert (ended.code, "Usage: model-serving" in ended.out) == (0, True)


def test_help_names_the_exit_codes(command: Command) -> None:
    assert "4 the job" in command("--help").out
