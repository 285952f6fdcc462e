"""Names as subjects: escaping is reversible, and nothing that a stranger writes addresses anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInput
from schemas.subjects import (
    MAX_TOKEN_CHARS,
    Lane,
    cancel_subject,
    check_job_id,
    check_model_name,
    check_tenant,
    consumer_name,
    dead_subject,
    infer_subject,
    is_reply_subject,
    job_subject,
    model_of_token,
    model_token,
    parse_infer_subject,
    result_subject,
)

PART = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,60}"
NAMES = st.from_regex(rf"({PART}/)?{PART}", fullmatch=True).filter(
    lambda name: ".." not in name and len(model_token(name)) <= MAX_TOKEN_CHARS
)
HOSTILE_NAMES = [
    "",
    " ",
    ".",
    "..",
    "...",
    "../../etc/passwd",
    "a/../b",
    "a..b",
    "/a",
    "a/",
    "a//b",
    "a/b/c",
    "a\\b",
    "%2e%2e%2f",
    "~2E",
    "a~2Fb",
    "-a",
    ".a",
    "_a",
    "a b",
    "a\tb",
    "a\r\nb",
    "a\n",
    "a\0b",
    "*",
    ">",
    "a.*",
    "a.>",
    "a*b",
    "$JS.API.STREAM.PURGE.x",
    "$SYS.REQ",
    "_INBOX.x",
    "modèle",
    "аdmin",  # noqa: RUF001 - the first letter is Cyrillic, which is the point
    "\u202eledom",
    "a\u200bb",
    "١",  # noqa: RUF001 - a digit, but not one of ours
    "x" * 129,
    "x" * 100_000,
    "o" * 129 + "/m",
    "a:b",
    "a;b",
    "a'b",
    'a"b',
    "<a>",
]


@given(NAMES)
def test_a_name_comes_back_from_its_token(name: str) -> None:
    token = model_token(check_model_name(name))
    assert model_of_token(token) == name
    assert set(token).isdisjoint(". */>\t\r\n")


@given(NAMES, NAMES)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (model_token(one) == model_token(other)) == (one == other)


@given(NAMES, st.sampled_from(Lane))
def test_a_subject_has_three_tokens_and_says_model_and_lane(name: str, lane: Lane) -> None:
    subject = infer_subject(name, lane)
    assert len(subject.split(".")) == 3
    assert parse_infer_subject(subject) == (name, lane)
    assert len(dead_subject(name).split(".")) == 2


@given(NAMES, st.sampled_from(Lane))
def test_a_consumers_name_is_one_that_the_server_takes(name: str, lane: Lane) -> None:
    assert len(consumer_name(name, lane)) <= 255
    assert set(consumer_name(name, lane)).isdisjoint(". */>\\\t\r\n")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_model_name(name)
    assert refused.value.field == "model"
    assert len(name) < 5 or name not in refused.value.message


@given(st.text())
def test_any_name_that_passes_makes_one_token(name: str) -> None:
    try:
        check_model_name(name)
    except InvalidInput:
        return
    assert len(infer_subject(name, Lane.LIVE).split(".")) == 3
    assert infer_subject(name, Lane.LIVE).isascii()


def test_a_name_is_as_long_as_a_consumers_name_can_hold() -> None:
    longest = "o" * 109 + "/" + "m" * 128
    assert len(model_token(check_model_name(longest))) == MAX_TOKEN_CHARS
    for name in ("o" + longest, "a." * 60 + "a" * 8):
        with pytest.raises(InvalidInput, match="is longer than 240 characters, each"):
            check_model_name(name)


@pytest.mark.parametrize(
    "token",
    ["", "a.b", "a/b", "a~2e", "a~", "a~2", "~2Ea", "a~2E~2Eb", "a~2Fb~2Fc", "*", ">", "a b", "é", "a~00"],
)
def test_a_token_that_no_name_makes_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        model_of_token(token)


@pytest.mark.parametrize(
    "subject",
    [
        "infer.m",
        "infer.m.live.more",
        "infer.m.fast",
        "infer.m.LIVE",
        "infer.*.live",
        "infer.>.live",
        "infer..live",
        "infer.\ufffd.batch",
        "other.m.live",
        "infer.m.",
        "",
    ],
)
def test_what_is_not_an_infer_subject_is_refused(subject: str) -> None:
    with pytest.raises(InvalidInput):
        parse_infer_subject(subject)


@pytest.mark.parametrize("lane", Lane)
def test_only_the_live_lane_is_kept_in_memory(lane: Lane) -> None:
    assert lane.stream == ("INFER_LIVE" if lane is Lane.LIVE else "INFER")


@pytest.mark.parametrize("job", ["x" * 16, "x" * 64, "0" * 16, "A-_" + "b" * 20])
def test_a_job_id_makes_one_token(job: str) -> None:
    assert check_job_id(job) == job
    assert job_subject("acme", job) == f"job.acme.{job}"
    assert cancel_subject("acme", job) == f"cancel.acme.{job}"
    assert result_subject("acme", job, 3) == f"result.acme.{job}.3"


@pytest.mark.parametrize(
    "job", ["", "x" * 15, "x" * 65, "_" + "x" * 20, "-" + "x" * 20, "x" * 16 + ".x", "*" * 16, ">" * 16]
)
def test_a_hostile_job_id_is_refused(job: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_job_id(job)
    assert refused.value.field == "job"


@given(st.text())
def test_any_job_id_or_tenant_that_passes_is_one_token(text: str) -> None:
    for check in (check_job_id, check_tenant):
        try:
            check(text)
        except InvalidInput:
            continue
        assert text.isascii()
        assert set(text).isdisjoint(". */>\t\r\n")


@pytest.mark.parametrize(
    "subject",
    [
        "_INBOX_gateway.0123456789abcdef.reply.0123456789abcdef0123456789abcdef",
        "_INBOX_publisher.abc",
        "_INBOX_publisher.a-b_c.d",
    ],
)
def test_an_inbox_of_a_caller_may_be_replied_to(subject: str) -> None:
    assert is_reply_subject(subject)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        " ",
        ">",
        "*",
        "infer.other.live",
        "work.other",
        "result.acme.job.0",
        "dead.m",
        "cancel.acme.job",
        "$JS.API.STREAM.DELETE.RESULTS",
        "$JS.ACK.INFER.m-live.1.2.3.4.5",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.abc",
        "_INBOX_worker.abc",
        "_INBOX_scheduler.abc",
        "_INBOX_monitor.abc",
        "_INBOX_gateway",
        "_INBOX_gateway.",
        "_INBOX_gateway..a",
        "_INBOX_gateway.a.",
        "_INBOX_gateway.*",
        "_INBOX_gateway.>",
        "_INBOX_gateway.a b",
        "_INBOX_gateway.a\n",
        "_INBOX_gateway.a\r\nPUB infer.m.live 0",
        "_INBOX_gateway.a\0",
        "_INBOX_gateway.é",
        "_INBOX_gatewayx.a",
        "x_INBOX_gateway.a",
        "_INBOX_gateway." + "a" * 65,
        "_INBOX_gateway." + ".".join("a" * 7),
        "_inbox_gateway.a",
    ],
)
def test_nothing_else_may_be_replied_to(subject: str) -> None:
    assert not is_reply_subject(subject)
