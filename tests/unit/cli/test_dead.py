"""What the commands of `dead` send to the gateway, what they write, and how they exit."""

from pathlib import Path
from typing import Any

import pytest

from scripts.cli.target import find_target
from scripts.stack.folder import DataFolder, Endpoints
from tests.unit.cli.fake_gateway import FakeGateway
from tests.unit.cli.running import Command


def a_letter(seq: int = 7, **parts: Any) -> dict[str, Any]:
    letter = {
        "seq": seq,
        "model": "adder",
        "subject": "infer.adder.batch",
        "reason": "poison: delivered 23 times",
        "stored_at": 0.0,
        "size_bytes": 12,
        "tenant": "acme",
        "job": None,
        "attempts": 23,
    }
    return letter | parts


def test_letters_are_listed(ask: Command, gateway: FakeGateway) -> None:
    page = {"letters": [a_letter(9), a_letter(7, model=None, subject="infer.~odd.x")], "next": None}
    gateway.answer("GET", "/v1/dead", page)
    ended = ask("dead", "list", "--model", "adder", "--limit", "2", "--after", "10")
    assert ended.code == 0
    assert all(part in ended.out for part in ("9", "adder", "poison", "acme", "infer.~odd.x"))
    assert gateway.asked[-1].query == {"model": "adder", "limit": "2", "after": "10"}
    assert ask("dead", "list", "--output", "json").json == page


def test_one_letter_is_shown_with_its_headers_and_on_request_its_body(
    ask: Command, gateway: FakeGateway
) -> None:
    gateway.answer("GET", "/v1/dead/7", a_letter(headers={"Ms-Item": "3"}, body="eA=="))
    shown = ask("dead", "show", "7").out
    assert "Ms-Item" in shown
    assert gateway.asked[-1].query == {}
    assert ask("dead", "show", "7", "--body", "--output", "json").json["body"] == "eA=="
    assert gateway.asked[-1].query == {"body": "true"}


def test_a_replay_tells_the_new_job(ask: Command, gateway: FakeGateway) -> None:
    gateway.answer("POST", "/v1/dead/7/replay", {"job": "j" * 32, "tenant": "acme", "model": "m"}, status=202)
    ended = ask("dead", "replay", "7")
    assert (ended.code, "j" * 32 in ended.out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "path", "query"),
    [
        (["7"], "/v1/dead/7", {}),
        (["--model", "adder"], "/v1/dead", {"model": "adder"}),
        (["--older-than", "7d"], "/v1/dead", {"older_than_s": "604800"}),
        (["--model", "m", "--older-than", "15m"], "/v1/dead", {"model": "m", "older_than_s": "900"}),
    ],
)
def test_purging_says_what_goes(
    ask: Command, gateway: FakeGateway, arguments: list[str], path: str, query: dict[str, str]
) -> None:
    gateway.answer("DELETE", path, {"purged": 5})
    ended = ask("dead", "purge", *arguments, "--output", "json")
    assert (ended.code, ended.json) == (0, {"purged": 5})
    assert gateway.asked[-1].query == query


@pytest.mark.parametrize("arguments", [[], ["7", "--model", "m"], ["--older-than", "week"], ["0"]])
def test_nothing_is_purged_by_half_a_word(ask: Command, gateway: FakeGateway, arguments: list[str]) -> None:
    assert ask("dead", "purge", *arguments).code == 2
    assert not gateway.asked


def test_a_refusal_is_told(ask: Command, gateway: FakeGateway) -> None:
    problem = {"title": "Forbidden", "status": 403, "detail": "for admins", "code": "forbidden"}
    gateway.answer("GET", "/v1/dead", problem | {"request_id": "r"}, status=403)
    ended = ask("dead", "list")
    assert (ended.code, "for admins" in ended.err) == (1, True)


def test_an_admins_key_comes_from_its_own_places(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    secrets = folder.secrets()
    folder.announce(Endpoints("http://g", "n", "r", "m", "/models", 1))
    variables = {"MODEL_SERVING_API_KEY": "callers", "MODEL_SERVING_ADMIN_API_KEY": "admins"}
    assert find_target(None, None, tmp_path, admin=True, environment={}).api_key == secrets["ADMIN_API_KEY"]
    assert find_target(None, None, tmp_path, environment={}).api_key == secrets["API_KEY"]
    assert find_target(None, None, tmp_path, admin=True, environment=variables).api_key == "admins"
