"""The headers of a request: what is read, which header is at fault, and how deadlines become TTLs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import headers as h
from schemas.errors import InvalidInput
from schemas.headers import RequestHeaders, read_headers, read_reply_to, write_headers

JOB = "job-0123456789abcdef"
REPLY = "_INBOX_publisher.abcDEF123"
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

HEADERS = st.builds(
    RequestHeaders,
    id=st.from_regex(r"[\x21-\x7e]{1,128}", fullmatch=True),
    tenant=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    reply_to=st.none() | st.just(REPLY),
    job=st.none() | st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{15,63}", fullmatch=True),
    deadline_ms=st.none() | st.integers(1, h.MAX_DEADLINE_MS),
    priority=st.integers(0, 9),
    content_type=st.sampled_from([h.MSGPACK, h.JSON]),
    traceparent=st.none() | st.just(TRACE),
)


def read(**raw: str) -> RequestHeaders:
    return read_headers({name.replace("_", "-"): value for name, value in raw.items()}, fallback_id="INFER:7")


@given(HEADERS, st.integers(0, h.MAX_ITEM))
def test_what_is_written_is_read_back(headers: RequestHeaders, item: int) -> None:
    if headers.job is not None:
        headers = RequestHeaders(
            **{name: getattr(headers, name) for name in headers.__slots__} | {"item": item}
        )
    assert read_headers(write_headers(headers), fallback_id="unused") == headers


def test_a_message_without_headers_is_the_publics_and_named_after_its_place() -> None:
    assert read() == RequestHeaders(id="INFER:7")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (h.CONTENT_TYPE, "application/x-python-pickle"),
        (h.CONTENT_TYPE, ""),
        (h.MSG_ID, ""),
        (h.MSG_ID, "x" * 129),
        (h.MSG_ID, "a b"),
        (h.MSG_ID, "id\nforged: yes"),
        (h.MSG_ID, "idé"),
        (h.TENANT, ""),
        (h.TENANT, "Acme"),
        (h.TENANT, "acme.other"),
        (h.TENANT, "*"),
        (h.TENANT, ">"),
        (h.TENANT, "a" * 64),
        (h.TENANT, "acme\n"),
        (h.REPLY_TO, "$JS.API.STREAM.DELETE.RESULTS"),
        (h.JOB, ""),
        (h.JOB, "short"),
        (h.JOB, "x" * 65),
        (h.JOB, "job.0123456789abcdef"),
        (h.JOB, "../../../../etc/passwd"),
        (h.JOB, "-0123456789abcdef"),
        (h.JOB, JOB + "\n"),
        (h.ITEM, "-1"),
        (h.ITEM, "1.5"),
        (h.ITEM, "10000001"),
        (h.ITEM, "1" * 5000),
        (h.ITEM, "٣"),
        (h.ITEM, ""),
        (h.ITEM, "1\n"),
        (h.DEADLINE_MS, "soon"),
        (h.DEADLINE_MS, "1e3"),
        (h.DEADLINE_MS, "-5"),
        (h.DEADLINE_MS, str(h.MAX_DEADLINE_MS + 1)),
        (h.PRIORITY, "10"),
        (h.PRIORITY, "-1"),
        (h.PRIORITY, "high"),
    ],
)
def test_a_bad_header_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_headers({name: value}, fallback_id="INFER:7")
    assert refused.value.field == name
    assert value == "" or value not in refused.value.message


@pytest.mark.parametrize(
    ("written", "content_type"),
    [
        ("application/json", h.JSON),
        ("application/json; charset=utf-8", h.JSON),
        ("Application/MsgPack ", h.MSGPACK),
    ],
)
def test_a_content_type_is_read_as_http_reads_it(written: str, content_type: str) -> None:
    assert read(Content_Type=written).content_type == content_type


@pytest.mark.parametrize(
    "wrong", ["", "00-short", TRACE.upper(), TRACE + "-more", TRACE + "\n", "00" + "-" * 60, "é" * 55]
)
def test_a_bad_trace_header_is_dropped_and_costs_nobody_an_answer(wrong: str) -> None:
    assert read(traceparent=wrong).traceparent is None
    assert read(traceparent=TRACE).traceparent == TRACE


@pytest.mark.parametrize(
    ("deadline_ms", "ttl"), [(1, "1s"), (999, "1s"), (1000, "1s"), (1001, "2s"), (59_999, "60s")]
)
def test_the_broker_forgets_no_request_before_its_deadline(deadline_ms: int, ttl: str) -> None:
    assert write_headers(RequestHeaders(id="i", deadline_ms=deadline_ms))[h.TTL] == ttl


@given(st.integers(1, h.MAX_DEADLINE_MS))
def test_a_ttl_is_the_deadline_rounded_up_to_whole_seconds(deadline_ms: int) -> None:
    ttl = write_headers(RequestHeaders(id="i", deadline_ms=deadline_ms))[h.TTL]
    assert 0 <= int(ttl.removesuffix("s")) * 1000 - deadline_ms < 1000


def test_a_request_without_a_deadline_is_kept_for_good() -> None:
    assert h.TTL not in write_headers(RequestHeaders(id="i"))
    assert read().deadline_s is None
    assert read(Ms_Deadline_Ms="1500").deadline_s == 1.5


def test_a_reply_to_is_read_even_where_another_header_is_wrong() -> None:
    raw = {h.REPLY_TO: REPLY, h.PRIORITY: "high"}
    assert read_reply_to(raw) == REPLY
    with pytest.raises(InvalidInput):
        read_headers(raw, fallback_id="i")


@given(
    st.dictionaries(st.sampled_from([getattr(h, n) for n in ("MSG_ID", "JOB", "ITEM", "TENANT")]), st.text())
)
def test_any_text_is_read_or_refused(raw: dict[str, Any]) -> None:
    try:
        read_headers(raw, fallback_id="i")
    except InvalidInput as refused:
        field = refused.field
    else:
        return
    assert field in raw
