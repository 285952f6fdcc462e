"""How a job's state follows from its record and its items, and the bytes of the record."""

from dataclasses import replace

import msgpack
import pytest

from schemas.errors import ErrorCode
from schemas.jobs import ItemState, JobRecord, JobState, decode_job, encode_job, item_state_of, job_state
from schemas.subjects import Lane

RECORD = JobRecord("j" * 16, "m", Lane.BATCH, 1_700_000_000.5, 3, metadata={"a": "b"})
GOLDEN = (
    "8aa36a6f62b06a6a6a6a6a6a6a6a6a6a6a6a6a6a6a6aa56d6f64656ca16da46c616e65a56261746368aa637265617465"
    "645f6174cb41d954fc40200000a56974656d7303a776657273696f6ec0ab646561646c696e655f6d73c0a97265636569"
    "76696e67c2a86d6574616461746181a161a162a17601"
)


def state(
    *,
    succeeded: int = 0,
    failed: int = 0,
    cancelled: int = 0,
    expired: int = 0,
    marked: bool = False,
    receiving: bool = False,
) -> JobState:
    """Derive the state of a job of three items; `marked` is the cancel mark."""
    counts = {
        ItemState.SUCCEEDED: succeeded,
        ItemState.FAILED: failed,
        ItemState.CANCELLED: cancelled,
        ItemState.EXPIRED: expired,
    }
    return job_state(
        replace(RECORD, receiving=receiving), {k: n for k, n in counts.items() if n}, cancelled=marked
    )


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (state(), JobState.QUEUED),
        (state(succeeded=1), JobState.RUNNING),
        (state(failed=2), JobState.RUNNING),
        (state(succeeded=3), JobState.SUCCEEDED),
        (state(succeeded=2, failed=1), JobState.FAILED),
        (state(failed=3), JobState.FAILED),
        (state(succeeded=2, expired=1), JobState.EXPIRED),
        (state(failed=1, expired=2), JobState.FAILED),
        (state(succeeded=1, failed=1, cancelled=1), JobState.CANCELLED),
        (state(marked=True), JobState.CANCELLING),
        (state(marked=True, succeeded=2), JobState.CANCELLING),
        (state(marked=True, succeeded=2, cancelled=1), JobState.CANCELLED),
        (state(marked=True, cancelled=3), JobState.CANCELLED),
        (state(marked=True, succeeded=3), JobState.SUCCEEDED),  # the mark came too late
        (state(receiving=True), JobState.RECEIVING),
        (state(receiving=True, succeeded=3), JobState.RECEIVING),
        (state(receiving=True, marked=True, succeeded=1), JobState.CANCELLING),
        (state(receiving=True, marked=True, succeeded=1, cancelled=2), JobState.CANCELLED),
    ],
)
def test_a_jobs_state_follows_from_its_items(got: JobState, expected: JobState) -> None:
    assert got == expected


def test_a_job_without_items_is_done_at_once_or_cancelled() -> None:
    empty = replace(RECORD, items=0)
    assert job_state(empty, {}, cancelled=False) == JobState.SUCCEEDED
    assert job_state(empty, {}, cancelled=True) == JobState.CANCELLED


def test_the_states_that_can_not_change_are_known() -> None:
    open_ = {JobState.RECEIVING, JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING}
    assert {one for one in JobState if not one.final} == open_


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_puts_an_item_in_a_final_state(code: ErrorCode) -> None:
    expected = {
        ErrorCode.CANCELLED: ItemState.CANCELLED,
        ErrorCode.DEADLINE_EXCEEDED: ItemState.EXPIRED,
    }
    assert item_state_of(code) == expected.get(code, ItemState.FAILED)


def test_the_bytes_of_a_record_stay_the_same() -> None:
    assert encode_job(RECORD).hex() == GOLDEN
    assert decode_job(bytes.fromhex(GOLDEN)) == RECORD


def test_keys_of_a_later_version_are_ignored() -> None:
    later = msgpack.unpackb(encode_job(RECORD)) | {"later": "https://example.org"}
    assert decode_job(msgpack.packb(later)) == RECORD


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"job": "x"}), GOLDEN.encode()]
)
def test_what_is_no_record_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgpack's own has no text
        decode_job(body)
