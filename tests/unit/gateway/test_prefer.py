"""The `Prefer` header, as strangers write it."""

import pytest

from gateway.prefer import Preference, read_preference


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Preference()),
        ([""], Preference()),
        (["respond-async"], Preference(respond_async=True)),
        (["Respond-Async"], Preference(respond_async=True)),
        (["wait=10"], Preference(wait_s=10)),
        (['wait="2.5"'], Preference(wait_s=2.5)),
        (["wait=10, respond-async"], Preference(respond_async=True, wait_s=10)),
        (["respond-async", "wait=3"], Preference(respond_async=True, wait_s=3)),
        (["respond-async; foo=bar, handling=lenient"], Preference(respond_async=True)),
        (["wait=1, wait=9"], Preference(wait_s=1)),
        (["wait=99999"], Preference(wait_s=120)),
        (["wait=soon"], Preference()),
        (["wait=-1"], Preference()),
        (["wait=nan"], Preference()),
        (["wait=inf"], Preference()),
        (["wait"], Preference()),
        (["return=minimal"], Preference()),
    ],
)
def test_what_is_understood_counts_and_the_rest_is_ignored(values: list[str], expected: Preference) -> None:
    assert read_preference(values) == expected


def test_only_callers_who_may_get_a_202_need_a_job() -> None:
    assert not Preference().as_job
    assert Preference(respond_async=True).as_job
    assert Preference(wait_s=0).as_job


def test_what_was_applied_is_said() -> None:
    assert Preference(respond_async=True).applied == "respond-async"
    assert Preference(wait_s=2.0).applied == "wait=2"
    assert Preference(respond_async=True, wait_s=0.5).applied == "respond-async, wait=0.5"
