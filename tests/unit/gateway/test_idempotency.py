"""The Idempotency-Key header: what is a key, and which job it names."""

import pytest
from litestar import Request

from gateway.idempotency import HEADER, Fingerprint, read_key
from schemas.errors import IdempotencyMismatch, InvalidInput
from schemas.jobs import JobRecord
from schemas.subjects import JOB_ID, Lane


def a_fingerprint(
    tenant: str = "acme", key: str = "k", *, path: str = "/v1/jobs", body: bytes = b""
) -> Fingerprint:
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    request: Request[None, None, None] = Request(scope)  # type: ignore[type-var, arg-type]
    fingerprint = Fingerprint(request, tenant, key)
    fingerprint.add(body)
    return fingerprint


def a_record(fingerprint: str | None) -> JobRecord:
    return JobRecord(
        job="j" * 40, model="m", lane=Lane.BATCH, created_at=0.0, items=1, fingerprint=fingerprint
    )


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        ("8e03978e-40d5", "8e03978e-40d5"),
        (' "a b" ', "a b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ("k" * 255, "k" * 255),
    ],
)
def test_a_key_is_a_quoted_string_or_a_bare_token(value: str, key: str) -> None:
    assert read_key([value]) == key


@pytest.mark.parametrize(
    "values", [[""], ['""'], ["k" * 256], ["a b"], ['"a'], ["\u00e9"], ["a\x7f"], ["a", "a"]]
)
def test_anything_else_is_refused_and_the_header_named(values: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_key(values)
    assert refused.value.field == HEADER


def test_a_key_names_one_job_of_its_tenant() -> None:
    ids = [a_fingerprint(tenant, key).job for tenant, key in (("a", "k"), ("a", "k"), ("b", "k"), ("a", "l"))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(JOB_ID.fullmatch(job) for job in ids)


def test_the_body_counts_however_it_is_cut() -> None:
    cut = a_fingerprint(body=b"ab")
    cut.add(b"c")
    assert cut.identity == a_fingerprint(body=b"abc").identity


@pytest.mark.parametrize("other", [a_fingerprint(body=b"y"), a_fingerprint(body=b"x", path="/v1/predict")])
def test_another_request_under_the_same_key_is_a_mismatch(other: Fingerprint) -> None:
    identity = a_fingerprint(body=b"x").identity
    identity.check(a_record(identity.fingerprint))
    for fingerprint in (other.identity.fingerprint, None):
        with pytest.raises(IdempotencyMismatch):
            identity.check(a_record(fingerprint))
