"""The front: ids, keys and metrics around every request, whatever lies behind."""

from typing import Any

import pytest
from litestar import Litestar, Request, Response, get
from litestar.types import Message
from structlog.testing import capture_logs

from gateway import metrics
from gateway.auth import Keys, parse_keys
from gateway.call import call_of, new_call
from gateway.errors import exception_handlers
from gateway.front import Front
from schemas.errors import ErrorCode, Overloaded

KEY = "a-key-0123456789abcdef"
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


@get("/who/{name:str}", sync_to_thread=False)
def who(request: Request[Any, Any, Any]) -> Response[str]:
    """Answer with what the front found out."""
    call = call_of(request.scope)
    return Response(f"{call.tenant} {call.trace_id}", media_type="text/plain")


@get("/full", sync_to_thread=False)
def full() -> None:
    """Fail as a full queue does."""
    raise Overloaded("the queue is full")


@get("/bug", sync_to_thread=False)
def bug() -> None:
    """Fail as a bug does."""
    raise ZeroDivisionError("secret detail")


def a_front(keys: Keys | None = None) -> Front:
    app = Litestar(
        [who, full, bug], exception_handlers=exception_handlers(), openapi_config=None, logging_config=None
    )
    return Front(app, keys=keys, open_paths={"/health"})


async def ask(front: Front, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent: list[Message] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": raw,
        "http_version": "1.1",
        "scheme": "http",
        "client": None,
        "server": ("x", 80),
        "extensions": {},
    }
    await front(scope, receive, send)
    start, body = sent[0], sent[1]
    found = {name.decode(): value.decode() for name, value in start["headers"]}  # type: ignore[typeddict-item]
    return start["status"], found, body["body"]  # type: ignore[typeddict-item]


async def test_a_known_key_passes_as_its_tenant() -> None:
    status, _, body = await ask(a_front(parse_keys(f"acme:{KEY}")), "/who/x", authorization=f"Bearer {KEY}")
    assert (status, body.split()[0]) == (200, b"acme")


@pytest.mark.parametrize("path", ["/who/x", "/nowhere", "/health/", "//health", "/health/../who/x"])
async def test_without_a_key_every_path_is_closed_even_one_that_does_not_exist(path: str) -> None:
    status, headers, _ = await ask(a_front(parse_keys(KEY)), path)
    assert status == 401
    assert headers["content-type"] == "application/problem+json"


async def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert (await ask(a_front(), "/who/x"))[2].split()[0] == b"public"


async def test_every_answer_carries_an_id_of_its_own() -> None:
    front = a_front(parse_keys(KEY))
    ids = {(await ask(front, path))[1]["x-request-id"] for path in ("/who/x", "/health", "/nowhere")}
    assert len(ids) == 3


async def test_the_callers_trace_goes_on_and_a_malformed_one_is_replaced() -> None:
    assert (await ask(a_front(), "/who/x", traceparent=TRACE))[2].split()[1] == b"a" * 32
    for bad in ("", "00-xyz", TRACE + "\r\nx: y", TRACE.upper()):
        trace = (await ask(a_front(), "/who/x", traceparent=bad))[2].split()[1]
        assert len(trace) == 32
        assert trace != b"a" * 32


async def test_a_failed_request_is_logged_once_with_its_ids() -> None:
    with capture_logs() as logs:
        _, headers, _ = await ask(a_front(), "/full", traceparent=TRACE)
    (line,) = logs
    assert line["event"] == "request failed"
    assert (line["code"], line["status"], line["route"]) == ("overloaded", 429, "/full")
    assert line["request_id"] == headers["x-request-id"]
    assert line["trace_id"] == "a" * 32


async def test_a_bug_is_answered_without_its_text_and_logged_with_it() -> None:
    with capture_logs() as logs:
        status, _, body = await ask(a_front(), "/bug")
    assert status == 500
    assert b"secret" not in body
    assert "ZeroDivisionError" in repr(logs[0]["exc_info"])


async def test_requests_count_by_route_and_not_by_path() -> None:
    counted = metrics.requests_total.labels("unknown", "/who/{name:str}", "success")
    before = counted._value.get()
    await ask(a_front(), "/who/one")
    await ask(a_front(), "/who/two")
    template = [s.labels["route"] for m in metrics.requests_total.collect() for s in m.samples]
    assert counted._value.get() - before in (0, 2)
    assert not {"/who/one", "/who/two"} & set(template)


async def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "websocket", "path": "/who/x", "headers": []}
    await a_front()(scope, None, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (200, None, "success"),
        (202, None, "success"),
        (400, ErrorCode.INVALID_INPUT, "client_error"),
        (404, None, "client_error"),
        (429, ErrorCode.OVERLOADED, "rejected"),
        (499, ErrorCode.CANCELLED, "cancelled"),
        (500, ErrorCode.POISON, "deadlettered"),
        (500, ErrorCode.MODEL_ERROR, "error"),
        (503, ErrorCode.UNAVAILABLE, "error"),
        (504, ErrorCode.DEADLINE_EXCEEDED, "expired"),
    ],
)
def test_outcomes_are_few(status: int, error: ErrorCode | None, outcome: str) -> None:
    assert metrics.outcome_of(status, error) == outcome


def test_request_ids_can_not_be_guessed_or_chosen() -> None:
    assert len({new_call(TRACE).request_id for _ in range(100)}) == 100
