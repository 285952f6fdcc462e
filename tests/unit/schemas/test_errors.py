"""The tree of errors is whole: each code has one class, and the docstring draws what is there."""

import re

import pytest

from schemas import errors
from schemas.errors import (
    ERRORS_BY_CODE,
    MAX_FIELD_CHARS,
    Conflict,
    ErrorCode,
    InferenceError,
    InvalidInput,
    ModelUnavailable,
    Overloaded,
    Unavailable,
)


def classes() -> list[type[InferenceError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [one for one in found if issubclass(one, InferenceError) and one is not InferenceError]


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_one_class(code: ErrorCode) -> None:
    own = [error for error in classes() if vars(error).get("code") == code]
    assert len(own) == 1 or code == ErrorCode.NOT_FOUND
    assert ERRORS_BY_CODE[code] is own[0]


@pytest.mark.parametrize("error", classes())
def test_every_class_has_a_code_of_its_own(error: type[InferenceError]) -> None:
    assert "code" in vars(error)
    assert ERRORS_BY_CODE[error.code] is error


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(error.__name__ for error in classes())


def test_trying_again_helps_only_where_nothing_is_wrong_with_the_request() -> None:
    assert {error for error in classes() if error.retryable} == {
        Conflict,
        Overloaded,
        ModelUnavailable,
        Unavailable,
    }


def test_a_code_is_a_word_in_snake_case() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in ErrorCode)


def test_an_error_carries_its_message_and_field() -> None:
    error = InvalidInput("is wrong", field="inputs[0]", retry_after_s=1.5)
    assert (str(error), error.message, error.field, error.retry_after_s) == (
        "is wrong",
        "is wrong",
        "inputs[0]",
        1.5,
    )
    assert len(InvalidInput("is wrong", field="k" * 100_000).field or "") == MAX_FIELD_CHARS
