"""Errors over HTTP: the table is whole, and an answer says what a caller needs and nothing else."""

import json

import pytest

from gateway.call import Call, new_call
from gateway.errors import HTTP_STATUS, problem_answer
from schemas.errors import (
    ERRORS_BY_CODE,
    ErrorCode,
    InferenceError,
    InvalidInput,
    Overloaded,
    Unauthorized,
    Unavailable,
)


@pytest.fixture
def call() -> Call:
    return new_call(None)


def test_every_error_code_has_an_http_status() -> None:
    assert set(HTTP_STATUS) == set(ErrorCode)


def test_what_the_caller_can_mend_is_4xx_and_what_only_we_can_is_5xx() -> None:
    ours = {
        "deadline_exceeded",
        "internal",
        "model_error",
        "model_unavailable",
        "poison",
        "resource_exhausted",
        "unavailable",
    }
    assert {code for code, status in HTTP_STATUS.items() if status >= 500} == ours


def test_a_problem_names_code_field_and_request(call: Call) -> None:
    answer = problem_answer(InvalidInput("is wrong", field="inputs[0].shape"), call)
    assert answer.status == 400
    assert json.loads(answer.body) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "is wrong",
        "code": "invalid_input",
        "field": "inputs[0].shape",
        "request_id": call.request_id,
    }
    assert call.error is ErrorCode.INVALID_INPUT


@pytest.mark.parametrize("error_class", ERRORS_BY_CODE.values())
def test_only_errors_that_may_pass_carry_retry_after(error_class: type[InferenceError], call: Call) -> None:
    assert ("retry-after" in problem_answer(error_class("x"), call).headers) is error_class.retryable


@pytest.mark.parametrize(("said", "sent"), [(None, "1"), (0.01, "1"), (1.2, "2"), (7, "7"), (9999, "120")])
def test_retry_after_is_whole_seconds_within_bounds(said: float | None, sent: str, call: Call) -> None:
    assert problem_answer(Overloaded("full", retry_after_s=said), call).headers["retry-after"] == sent


def test_unauthorized_says_how_to_authenticate(call: Call) -> None:
    assert problem_answer(Unauthorized("no"), call).headers["www-authenticate"].startswith("Bearer")
    assert "www-authenticate" not in problem_answer(Unavailable("no"), call).headers
