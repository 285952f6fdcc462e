"""Advisories of JetStream: what is read, and what is left alone."""

import json

import pytest

from infra.connections.advisories import Advisory, AdvisoryKind, kind_of, read_advisory

SUBJECT = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.INFER.m-batch"
BODY = {
    "type": "io.nats.jetstream.advisory.v1.max_deliver",
    "id": "x",
    "timestamp": "2026-01-01T00:00:00Z",
    "stream": "INFER",
    "consumer": "m-batch",
    "stream_seq": 7,
    "deliveries": 3,
}


def test_the_kind_stands_in_the_subject() -> None:
    assert kind_of(SUBJECT) is AdvisoryKind.MAX_DELIVERIES
    assert kind_of(SUBJECT.replace("MAX_DELIVERIES", "MSG_TERMINATED")) is AdvisoryKind.MSG_TERMINATED


@pytest.mark.parametrize("subject", ["", SUBJECT + ".x", SUBJECT.replace("$JS", "JS"), SUBJECT[:40]])
def test_another_subject_is_no_advisory(subject: str) -> None:
    assert kind_of(subject) is None


def test_an_advisory_names_one_request() -> None:
    assert read_advisory(json.dumps(BODY).encode()) == Advisory("INFER", "m-batch", 7, 3)


@pytest.mark.parametrize(
    "wrong", [{"stream_seq": 0}, {"stream_seq": "7"}, {"consumer": None}, {"deliveries": -1}]
)
def test_a_body_that_names_none_is_unreadable(wrong: dict[str, object]) -> None:
    assert read_advisory(json.dumps(BODY | wrong).encode()) is None
    assert read_advisory(b"{") is None
