"""What a webhook is told, how it is signed, and the bytes of what is kept of it."""

import base64
import json

import pytest

from schemas.jobs import JobState
from schemas.webhooks import (
    Outcome,
    WebhookRecord,
    decode_webhook,
    encode_webhook,
    job_event,
    read_secret,
    read_secrets,
    signed_headers,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"k" * 32).decode()


def test_the_published_example_of_the_scheme_is_signed_as_published() -> None:
    body = b'{"test": 2432232314}'
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", body, key=read_secret(SECRET), timestamp=1614265330
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_an_event_names_the_job_its_state_and_its_counts() -> None:
    record = job_event("j1", JobState.EXPIRED, {"total": 3, "expired": 3}, created_at=1_700_000_000)
    assert record.outcome is Outcome.PENDING
    assert json.loads(record.body) == {
        "id": "evt_j1",
        "object": "event",
        "type": "job.expired",
        "created_at": 1_700_000_000,
        "data": {"id": "j1", "state": "expired", "counts": {"total": 3, "expired": 3}},
    }


def test_what_is_kept_of_a_webhook_is_read_as_it_was_written() -> None:
    record = WebhookRecord("evt_j1", b"{}", 2, Outcome.GIVEN_UP, 0.5)
    assert decode_webhook(encode_webhook(record)) == record


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x80", b"\x01"])
def test_what_is_no_record_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgpack's own has no text
        decode_webhook(body)


def test_each_tenant_has_a_secret_of_its_own() -> None:
    keys = read_secrets(f" acme:{SECRET}, umbrella:{OTHER},")
    assert keys == {"acme": read_secret(SECRET), "umbrella": b"k" * 32}
    assert read_secrets("") == {}


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"acme:{SECRET},acme:{OTHER}",
        "acme:whsec_!!!",
        "acme:whsec_c2hvcnQ=",
        f"acme:{SECRET.removeprefix('whsec_')}",
        "acme:whsec_" + base64.b64encode(b"k" * 65).decode(),
    ],
)
def test_a_secret_that_can_not_sign_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_<base64>|24 to 64 bytes") as refused:
        read_secrets(text)
    assert text.rpartition("_")[2] not in str(refused.value)
