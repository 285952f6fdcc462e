"""What becomes of a delivery: the table of `workers/settle.py`, and what holds for all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import Result
from schemas.errors import (
    ERRORS_BY_CODE,
    Cancelled,
    DeadlineExceeded,
    ErrorCode,
    InferenceError,
    Internal,
    InvalidInput,
    ModelFailed,
    Unavailable,
)
from schemas.jobs import ItemState
from workers.settle import NAK_DELAYS_S, Settled, Settlement, settle

RESULT = Result("id", "m", 1, ())


def settled(
    outcome: Result | InferenceError,
    *,
    attempt: int = 1,
    max_deliver: int = 3,
    is_job: bool = False,
    awaited: bool = True,
    malformed: bool = False,
) -> Settlement:
    return settle(
        outcome,
        attempt=attempt,
        max_deliver=max_deliver,
        is_job=is_job,
        awaited=awaited,
        malformed=malformed,
    )


def test_a_result_is_replied_and_acked() -> None:
    assert settled(RESULT) == Settlement(Settled.ACK, reply=True)


def test_the_result_of_a_job_is_stored_as_succeeded() -> None:
    assert settled(RESULT, is_job=True, awaited=False) == Settlement(Settled.ACK, store=ItemState.SUCCEEDED)
    assert settled(RESULT, is_job=True, awaited=True).reply


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (InvalidInput("is wrong"), ItemState.FAILED),
        (ModelFailed("raised"), ItemState.FAILED),
        (Internal("failed"), ItemState.FAILED),
        (DeadlineExceeded("late"), ItemState.EXPIRED),
        (Cancelled("was cancelled"), ItemState.CANCELLED),
    ],
)
def test_what_trying_again_can_not_help_is_final_at_the_first_attempt(
    error: InferenceError, state: ItemState
) -> None:
    assert settled(error) == Settlement(Settled.ACK, reply=True)
    assert settled(error, is_job=True) == Settlement(Settled.ACK, store=state, reply=True)


def test_a_malformed_message_is_answered_and_kept_for_people_to_look_at() -> None:
    bad = settled(InvalidInput("is not valid msgpack"), malformed=True)
    assert bad == Settlement(Settled.ACK, reply=True, dead_reason="invalid_input: is not valid msgpack")


def test_a_failure_that_nobody_can_be_told_of_goes_to_the_dead_letters() -> None:
    lost = settled(InvalidInput("is wrong"), awaited=False)
    assert lost == Settlement(Settled.ACK, dead_reason="invalid_input: is wrong")
    assert settled(InvalidInput("is wrong"), awaited=False, is_job=True).dead_reason is None


def test_our_own_plumbing_is_tried_again_after_a_growing_delay() -> None:
    delays = [settled(Unavailable("down"), attempt=n, max_deliver=9) for n in range(1, 9)]
    assert {one.settled for one in delays} == {Settled.NAK}
    assert [one.delay_s for one in delays] == [*NAK_DELAYS_S, *[NAK_DELAYS_S[-1]] * 4]
    assert list(NAK_DELAYS_S) == sorted(NAK_DELAYS_S)
    assert min(NAK_DELAYS_S) > 0  # without a delay the server delivers again at once, in a loop


def test_a_retry_tells_nobody_yet() -> None:
    assert settled(Unavailable("down"), is_job=True) == Settlement(Settled.NAK, delay_s=NAK_DELAYS_S[0])


def test_the_last_attempt_is_acked_even_when_the_error_is_retryable() -> None:
    last = settled(Unavailable("down"), attempt=3, is_job=True)
    expected = Settlement(Settled.ACK, store=ItemState.FAILED, reply=True, dead_reason="unavailable: down")
    assert last == expected
    assert settled(Unavailable("down"), attempt=1, max_deliver=1).settled is Settled.ACK
    assert settled(Unavailable("down"), attempt=7, max_deliver=3).settled is Settled.ACK


OUTCOMES = st.just(RESULT) | st.sampled_from(ErrorCode).map(lambda code: ERRORS_BY_CODE[code]("why"))


@given(
    outcome=OUTCOMES,
    attempt=st.integers(1, 10),
    max_deliver=st.integers(1, 10),
    is_job=st.booleans(),
    awaited=st.booleans(),
    malformed=st.booleans(),
)
def test_nothing_ends_without_a_trace(
    *,
    outcome: Result | InferenceError,
    attempt: int,
    max_deliver: int,
    is_job: bool,
    awaited: bool,
    malformed: bool,
) -> None:
    end = settle(
        outcome, attempt=attempt, max_deliver=max_deliver, is_job=is_job, awaited=awaited, malformed=malformed
    )
    if end.settled is Settled.NAK:
        assert attempt < max_deliver
        assert end.delay_s > 0
        assert (end.store, end.reply, end.dead_reason) == (None, False, None)
        return
    assert end.delay_s == 0
    assert (end.store is not None) == is_job
    assert end.reply == awaited
    if not isinstance(outcome, Result):
        assert is_job or awaited or end.dead_reason is not None
        assert not malformed or end.dead_reason is not None
